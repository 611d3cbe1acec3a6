"""Where error-controlled integration comes from: one file per library, with all that is particular to it."""
