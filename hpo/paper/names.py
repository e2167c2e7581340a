"""Names of the experiments, for the command line; this module imports nothing slow."""

EXPERIMENTS = ("gradients", "toy", "raw", "pca", "random-grid", "best", "torch", "deep", "saved")

# These take seconds, and are never cut down.
NEVER_CUT = ("gradients", "toy")
