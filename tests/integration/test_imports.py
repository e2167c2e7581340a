"""Imports of the commands and their processes, seen from new interpreters."""

import subprocess
import sys

import pytest


def run(script: str) -> tuple[str, str]:
    """Run a script in a new interpreter, and return its output."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


def test_worker_starts_without_scikit_learn():
    packages = ("optuna", "sklearn", "pandas")
    script = f"import sys, hpo.runner.worker_loop; print([name for name in {packages} if name in sys.modules])"
    assert run(script) == ("['optuna']\n", "")


@pytest.mark.parametrize("command", ["launch", "reproduce", "worker"])
def test_command_line_is_read_before_slow_imports(command):
    slow = {"numpy", "optuna", "sqlalchemy", "pydantic", "rich"}
    assert run(f"import sys, hpo.{command}; print({slow} & set(sys.modules))") == ("set()\n", "")


def test_fork_server_preloads_modules_of_a_study():
    needed = {"alembic.migration", "alembic.script", "optuna.storages._rdb.models", "sqlalchemy.dialects.sqlite"}
    only_some_samplers = {"cmaes", "torch"}
    found = f"{needed} - set(sys.modules) | {only_some_samplers} & set(sys.modules)"
    assert run(f"import sys, hpo.tuning._preload; print({found})") == ("set()\n", "")
