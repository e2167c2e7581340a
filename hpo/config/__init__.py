"""Study files: tables, validation and lookup."""
