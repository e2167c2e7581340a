"""The experiments of the report that hpo started from."""
