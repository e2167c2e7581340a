"""Neural nets: NumPy and PyTorch implementations, hyperparameters, and their kind."""
