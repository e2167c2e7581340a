"""Prepared data: scaling, PCA, and the cache of arrays on each machine."""
