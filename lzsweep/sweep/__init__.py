"""Sweeps: search space, study, workers, trial processes."""
