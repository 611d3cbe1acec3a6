"""A study: a grid of trainings and measurements, over processes and restarts."""
