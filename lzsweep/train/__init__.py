"""Training: network, store, data, module and the short training script."""
