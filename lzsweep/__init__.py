"""Train Leela Zero networks and sweep their hyperparameters."""
