# Everything happens in .venv and, for the study, in the working directory. Python 3.11 or newer is all it needs.
PYTHON ?= python3
BIN := .venv/bin
# The output of each test appears when it ends, also in a file.
export PYTHONUNBUFFERED := 1

.PHONY: launch test test-fast test-slow setup clean

# stdout is the best parameters as JSON, so the output of the installation goes to stderr.
launch: .venv/.installed
	@$(BIN)/python -m hpo.launch --workers 8

# Starts no process and no database, and tries fewer random examples. For two cores. The tests of tables and estimators
# are left out, because the import of their packages takes longer than the other tests.
test-fast: export OPENBLAS_NUM_THREADS := 1
test-fast: .venv/.installed-test
	$(BIN)/python -m pytest tests/unit -n 2 -m "not slow" --hypothesis-profile fast \
		--ignore-glob "tests/unit/test_estimator*" --ignore-glob "tests/unit/test_table*" --ignore tests/unit/test_sampling.py

test: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.installed-test
	$(BIN)/python -m pytest -m slow

setup: .venv/.installed-test

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpo needs Python 3.11 or newer: make PYTHON=python3.11 ...")' >&2
	@$(PYTHON) -m venv .venv >&2

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . >&2
	@touch $@

.venv/.installed-test: .venv/bin/python pyproject.toml constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]' >&2
	@touch .venv/.installed $@

clean:
	rm -rf .venv
