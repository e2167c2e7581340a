"""Objectives that start processes of their own."""

from pathlib import Path

import psutil
import pytest
from commands import descendants, hpo, started, wait_for_end, wait_until

SCRIPT = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import joblib
import optuna


def square(x):
    return x * x


def objective(trial):
    values = [trial.suggest_float("x", 0, 1)] * 4
    squares = joblib.Parallel(n_jobs=2)(joblib.delayed(square)(x) for x in values)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, values) == squares
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert list(executor.map(square, values)) == squares
    return sum(squares)


if __name__ == "__main__":
    study = optuna.create_study()
    study.optimize(objective, n_trials=3)
    print("trials", len(study.trials))
"""

ENDLESS = """
import subprocess
import time

import optuna


def objective(trial):
    subprocess.run(["sleep", "3600"])


optuna.create_study().optimize(objective, n_trials=2)
"""


@pytest.mark.slow
def test_objective_starts_processes():
    Path("train.py").write_text(SCRIPT)
    done = hpo("launch", "train.py", "--workers", 2, "--no-dashboard")
    assert (done.returncode, done.stdout) == (0, "trials 3\n"), done.stderr


def name_of(pid: int) -> str | None:
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return None


@pytest.mark.slow
def test_stopped_launch_leaves_no_process_of_objective():
    Path("train.py").write_text(ENDLESS)
    with started("launch", "train.py", "--workers", 2, "--no-dashboard") as process:
        wait_until(process, lambda: list(map(name_of, descendants(process.pid))).count("sleep") == 2)
        processes = descendants(process.pid)
        process.terminate()
        wait_for_end(process, processes)
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "0 of 2 trials are finished" in stderr
