"""Data of a study: sources, splits, preprocessing and prepared arrays."""
