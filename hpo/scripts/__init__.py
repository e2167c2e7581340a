"""Optuna scripts and functions of a user on the fleet of workers."""
