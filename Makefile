# Everything happens in .venv and, for the study, in the working directory. Python 3.11 or newer is all it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: launch test setup clean

# stdout is the best parameters as JSON, so what the installation prints goes to stderr.
launch: .venv/.installed
	@$(BIN)/python -m hpo.launch --workers 8

test: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

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
