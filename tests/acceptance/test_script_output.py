"""The output of a script's workers, and their GPUs."""

import re
from pathlib import Path

import pytest
from commands import hpo

from hpo.utils.system import cores

SCRIPT = """
import os
import subprocess
import sys

gpus = os.environ.get("CUDA_VISIBLE_DEVICES")

import optuna


def objective(trial):
    print("number", trial.number, "gpus", gpus)
    subprocess.run(["echo", "from a command"], check=True)
    print("an error", file=sys.stderr)
    return trial.suggest_float("x", 0, 1)


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
study.optimize(objective, n_trials=4)
print("trials", len(study.trials))
"""
LOGS = Path("results/train")


@pytest.fixture(autouse=True)
def script():
    Path("train.py").write_text(SCRIPT)


def launch(*arguments: object, exit_code: int = 0, **environment: str) -> str:
    """Run the script; return stderr."""
    done = hpo("launch", "train.py", "--no-dashboard", *arguments, **environment)
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ("trials 4\n" if exit_code == 0 else "")
    return done.stderr


def logs() -> list[str]:
    return [path.read_text() for path in sorted(LOGS.glob("worker-*.log"))]


def test_each_worker_has_its_log():
    stderr = launch("--workers", 2)
    assert sorted(path.name for path in LOGS.iterdir()) == ["best.json", "worker-1.log", "worker-2.log"]
    numbers = [int(number) for log in logs() for number in re.findall(r"^number (\d+)", log, re.MULTILINE)]
    assert sorted(numbers) == [0, 1, 2, 3]
    assert "".join(logs()).count("from a command\nan error\n") == 4
    assert "from a command" not in stderr


@pytest.mark.slow
def test_verbose_shows_lines_with_their_trial():
    stderr = launch("--workers", 1, "--verbose")
    # A busy launch reads a line after its trial.
    for line in (r"number \d gpus None", "from a command", "an error"):
        assert len(re.findall(rf"^(?:trial \d|worker 1): {line}$", stderr, re.MULTILINE)) == 4, stderr
    assert logs()[0].count("from a command\nan error\n") == 4


@pytest.mark.slow
def test_second_launch_continues_log():
    launch("--workers", 1)
    done = hpo("launch", "train.py", "--no-dashboard", "--workers", 1, "--trials", 5)
    assert done.returncode == 0, done.stderr
    (log,) = logs()
    before, separator, after = log.partition(" worker 1 starts again ---\n")
    assert separator
    assert [before.count("from a command"), after.count("from a command")] == [4, 1]


@pytest.mark.slow
def test_workers_share_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("train.py").write_text(SCRIPT.replace('"gpus", gpus', '"threads", os.environ.get("OMP_NUM_THREADS")'))
    launch("--workers", 2)
    used = {threads for log in logs() for threads in re.findall(r"threads (\w*)$", log, re.MULTILINE)}
    assert used == {str(max(1, cores() // 2))}


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "expected"), [("3,5", {"3", "5"}), ("none", {""}), ("auto", {"7", "8"})])
def test_workers_share_gpus(gpus, expected):
    launch("--workers", 2, "--gpus", gpus, CUDA_VISIBLE_DEVICES="7,8")
    used = {gpu for log in logs() for gpu in re.findall(r"gpus (\w*)$", log, re.MULTILINE)}
    # A worker may find no trial left.
    assert used <= expected
    assert used


def test_wrong_gpus_are_wrong_usage():
    stderr = launch("--gpus", "all", exit_code=2)
    assert "Invalid value for '--gpus': 'all' is not auto, none, or a list of GPUs such as 0,1" in stderr


@pytest.mark.slow
def test_log_that_cannot_be_opened_ends_nothing():
    (LOGS / "worker-1.log").mkdir(parents=True)
    stderr = launch("--workers", 1)
    assert stderr.count("worker-1.log: cannot be written: Is a directory; the workers run without a log") == 1


@pytest.mark.slow
@pytest.mark.parametrize("verbose", [True, False])
def test_full_disk_ends_nothing(verbose):
    LOGS.mkdir(parents=True)
    (LOGS / "worker-1.log").symlink_to("/dev/full")
    # A command of the script fails on a full disk like under plain Python, so the script starts none.
    path = Path("train.py")
    path.write_text(path.read_text().replace('subprocess.run(["echo"', '(lambda *_, **__: None)(["echo"'))
    stderr = launch("--workers", 1, *["--verbose"] * verbose)
    assert "4 complete" in stderr
