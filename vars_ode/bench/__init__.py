"""Measurements of speed, memory and accuracy, each by name under `vars-ode bench`. Ratios within a run are the point."""
