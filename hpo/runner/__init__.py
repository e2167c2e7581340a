"""Execution of one trial in one process."""
