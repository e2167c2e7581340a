"""Reproduction of the report that hpo started from."""
