"""Data sets: sources, splits, preprocessing and the cache of prepared arrays."""
