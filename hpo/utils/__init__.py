"""Helpers that know nothing of studies: files, signals, the machine."""
