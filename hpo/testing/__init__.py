"""Public contract suites: a test class subclasses one to check an implementation of a seam."""
