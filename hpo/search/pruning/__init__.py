"""Pruners: decisions about the remaining steps of trials."""
