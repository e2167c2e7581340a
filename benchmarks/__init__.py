"""What hpo costs and what it survives, measured on the real commands."""
