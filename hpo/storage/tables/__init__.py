"""Rows of Optuna's tables and of hpo's: trials, leases, checkpoints, parameters, budgets."""
