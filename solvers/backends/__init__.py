"""Where error-controlled integration comes from: one loop per library, each with the library's quirks in one file."""
