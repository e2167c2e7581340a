"""Scripts with code outside their objective: exceptions before, between and after trials, and callbacks."""

from pathlib import Path

import pytest
from commands import hpo, strict_json

SCRIPT = """
import optuna

study = optuna.create_study()
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
print(study.no_such_attribute)
"""
RESULT = Path("results/train/best.json")


@pytest.mark.slow
def test_exception_after_trials_keeps_result():
    Path("train.py").write_text(SCRIPT)
    failed = hpo("launch", "train.py", "--workers", 2, "--no-dashboard")
    assert failed.returncode == 1
    lines = failed.stderr.splitlines()
    assert "AttributeError: 'Study' object has no attribute 'no_such_attribute'" in lines
    assert lines[-1].startswith("hpo: train.py: AttributeError: ")
    assert strict_json(RESULT.read_text())["trials"]["complete"] == 4
    Path("train.py").write_text(SCRIPT.replace("no_such_attribute", "study_name"))
    corrected = hpo("launch", "train.py", "--workers", 2, "--no-dashboard", "--allow-changes")
    assert (corrected.returncode, corrected.stdout) == (0, "train\n"), corrected.stderr
    assert strict_json(RESULT.read_text())["trials"]["complete"] == 4


def test_exception_before_trials_leaves_no_result():
    Path("train.py").write_text("raise ValueError('no data')\n")
    failed = hpo("launch", "train.py", "--workers", 2, "--no-dashboard")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("hpo: train.py: ValueError: no data; ")
    assert not RESULT.exists()


@pytest.mark.slow
def test_database_error_of_callback_ends_neither_trials_nor_launch():
    Path("train.py").write_text(
        """
import optuna
import sqlalchemy as sa


def log(study, trial):
    if trial.number < 4:
        raise sa.exc.ProgrammingError("SELECT", {}, Exception("no such table: log"))


study = optuna.create_study()
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=6, callbacks=[log])
"""
    )
    done = hpo("launch", "train.py", "--workers", 1, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("callback log: ProgrammingError: ") == 4
    assert "in log\n" in Path("results/train/worker-1.log").read_text()
    assert strict_json(RESULT.read_text())["trials"]["complete"] == 6


def test_callbacks_of_workers_run_one_after_the_other():
    Path("train.py").write_text(
        """
import os
import time

import optuna


def callback(study, trial):
    # Two callbacks at once raise FileExistsError.
    os.close(os.open("busy", os.O_CREAT | os.O_EXCL))
    time.sleep(0.05)
    os.remove("busy")


study = optuna.create_study()
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=24, callbacks=[callback])
"""
    )
    done = hpo("launch", "train.py", "--workers", 4, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert "FileExistsError" not in done.stderr
