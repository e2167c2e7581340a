"""Optuna scripts and functions under hpo: errors in one line, exact budgets, and launches that go on."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
from commands import contents, descendants, hpo, leases, started, storage, strict_json, wait_for_end, wait_until

URL = "sqlite:///hpo.db"

SIMPLE = """
import optuna

study = optuna.create_study(direction="maximize")
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
print(len(study.trials))
"""


def write(text, path="train.py"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def launch(target, *arguments, workers=1):
    return hpo("launch", target, "--workers", workers, "--no-dashboard", *arguments)


def error_line(done):
    """Return the last line of a command that has failed, and check that no traceback is in the output."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].removeprefix("hpo: ")


def states(name):
    return Counter(state.name for _, state, *_ in contents(URL, name))


# Errors before the first trial


@pytest.mark.parametrize(
    ("target", "text", "problem"),
    [
        ("folder/no.py", "", "folder/no.py: no such file; give the path of a Python script"),
        ("train.py", "import optuna\n\ndef f(:\n    pass\n", "train.py:3: invalid syntax; correct the script"),
        pytest.param(
            "train.py",
            "import optuna\noptuna.create_study()\n",
            "train.py: the script has not called optimize of a study that it created or loaded by optuna; ",
            marks=pytest.mark.slow,
        ),
        (
            "train.py",
            "import optuna\nstudy = optuna.create_study()\n\nstudy.optimize(len)\n",
            "train.py:4: optimize has no n_trials; give --trials or --timeout",
        ),
        pytest.param(
            "train.py:objektive",
            "def objective(trial): ...",
            "train.py: no function 'objektive'; give one as ",
            marks=pytest.mark.slow,
        ),
        ("no_such_module:objective", "", "no_such_module: no such module; "),
    ],
)
def test_script_that_cannot_run_is_one_line(target, text, problem):
    write(text)
    done = launch(target)
    assert error_line(done).startswith(problem)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert not Path("results/train").exists()


@pytest.mark.slow
def test_changed_script_is_refused_until_allowed():
    write(SIMPLE)
    assert launch("train.py").stdout == "2\n"
    write(SIMPLE.replace("maximize", "minimize"))
    assert "train" in (line := error_line(launch("train.py", "--allow-changes")))
    assert "direction" in line
    write(SIMPLE.replace("n_trials=2", "n_trials=3"))
    assert "--allow-changes" in error_line(launch("train.py"))
    assert len(contents(URL, "train")) == 2
    done = launch("train.py", "--allow-changes")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    # The new version is the version of the study now.
    assert launch("train.py").stdout == "3\n"


def test_broken_script_stops_after_three_failures():
    write(
        """
import optuna


def broken(trial):
    trial.suggest_float("x", 0, 1)
    return undefined_name


optuna.create_study().optimize(broken, n_trials=50)
print("not reached")
"""
    )
    done = launch("train.py")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert "NameError: name 'undefined_name' is not defined" in lines
    assert lines[-1].startswith("hpo: the first 3 trials failed: NameError: name 'undefined_name' is not defined; ")
    trials = contents(URL, "train")
    assert [(number, state.name) for number, state, *_ in trials] == [(0, "FAIL"), (1, "FAIL"), (2, "FAIL")]
    *_, attributes = trials[0]
    assert attributes["reason"] == "NameError: name 'undefined_name' is not defined"
    assert "return undefined_name" in attributes["traceback"]
    assert "hpo/runner" not in attributes["traceback"]


# Budgets

SEVERAL = """
import sys

import optuna


def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    for layer in range(trial.suggest_int("layers", 1, 3)):
        trial.suggest_float(f"dropout_{layer}", 0, 1)
    trial.set_user_attr("list", [1, {"a": None}])
    if trial.number == 3:
        raise ValueError("expected")
    if trial.number == 4:
        raise optuna.TrialPruned
    return x


def stop(study, trial):
    if trial.number >= 3:
        study.stop()


def main():
    sampler = optuna.samplers.RandomSampler(seed=1)
    first = optuna.create_study(study_name="first", direction="maximize", sampler=sampler)
    first.set_user_attr("data", "none")
    first.enqueue_trial({"x": 0.25, "layers": 2})
    first.optimize(objective, n_trials=6, catch=ValueError, n_jobs=3)
    print("first", len(first.trials), first.trials[0].params["x"])
    first.optimize(objective, n_trials=3)
    print("first", len(first.trials), first.best_trial.number == max(first.trials, key=lambda t: t.value or -1).number)

    unnamed = optuna.create_study(directions=["minimize", "maximize"])
    unnamed.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)), n_trials=5)
    print(unnamed.study_name, len(unnamed.trials), all(len(trial.values) == 2 for trial in unnamed.trials))

    grid = optuna.create_study(study_name="grid", sampler=optuna.samplers.GridSampler({"n": [1, 2, 3]}))
    grid.optimize(lambda t: t.suggest_int("n", 1, 3), n_trials=50)
    print("grid", sorted({trial.params["n"] for trial in grid.trials}))

    stopped = optuna.create_study(study_name="stopped")
    stopped.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1000, callbacks=[stop])
    print("stopped", 4 <= len(stopped.trials) < 20)
    print(sys.argv)


if __name__ == "__main__":
    main()
"""

OUTPUT = """\
first 6 0.25
first 9 True
several 5 True
grid [1, 2, 3]
stopped True
['folder/several.py', '--name', 'a b']
"""


def read_studies():
    """Return the trials of each study."""
    with storage() as rdb:
        return {
            study.study_name: optuna.load_study(study_name=study.study_name, storage=rdb).trials
            for study in rdb.get_all_studies()
        }


@pytest.mark.slow
def test_several_studies_have_exact_budgets():
    write(SEVERAL, "folder/several.py")
    arguments = ["folder/several.py", "--output", "out", "--", "--name", "a b"]
    done = launch(*arguments, workers=2)
    assert done.stdout == OUTPUT, done.stderr
    assert "n_jobs = 3 is replaced by --workers 2" in done.stderr
    # The failed trial was expected.
    assert done.returncode in (0, 1)
    before = read_studies()
    for trials in before.values():
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert all(trial.state.is_finished() for trial in trials)
    first = before["first"]
    assert Counter(trial.state.name for trial in first) == {"COMPLETE": 7, "FAIL": 1, "PRUNED": 1}
    assert first[0].user_attrs["list"] == [1, {"a": None}]
    result = strict_json(Path("out/first/best.json").read_text())
    assert result["trials"] == {"complete": 7, "pruned": 1, "failed": 1, "unfinished": 0}
    assert result["value"] == max(trial.value or 0 for trial in first)
    front = strict_json(Path("out/several/best.json").read_text())
    assert len(front["pareto_front"]) == len(front["values"]) >= 1

    again = launch(*arguments, workers=2)
    assert again.stdout == OUTPUT, again.stderr
    assert read_studies() == before


REMAINING = """
import optuna

study = optuna.create_study(study_name="s", storage="sqlite:///own.db", load_if_exists=True)
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
remaining = 8 - len(study.trials)
if remaining > 0:
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=remaining)
print(len(study.trials), study.best_value == min(trial.value for trial in study.trials))
"""


@pytest.mark.slow
def test_script_that_counts_its_remaining_trials_ends_at_its_budget():
    write(REMAINING)
    for _ in range(2):
        done = launch("train.py", workers=2)
        assert (done.returncode, done.stdout) == (0, "8 True\n"), done.stderr
    assert len(contents("sqlite:///own.db", "s")) == 8
    assert not Path("hpo.db").exists()
    # Plain Python goes on with the same study.
    plain = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=True)
    assert plain.stdout == "11 True\n"


MOVING = """
import os

import optuna

os.chdir(os.path.dirname(os.path.abspath(__file__)))
study = optuna.create_study()
os.mkdir(f"of {os.getpid()}")
os.chdir(f"of {os.getpid()}")
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
print(len(study.trials), os.path.basename(os.getcwd()) == f"of {os.getpid()}")
"""


@pytest.mark.slow
def test_script_that_changes_its_working_folder_runs():
    write(MOVING, "folder/train.py")
    done = launch("folder/train.py", workers=2)
    assert (done.returncode, done.stdout) == (0, "3 True\n"), done.stderr
    assert len(contents(URL, "train")) == 3
    assert Path("results/train/best.json").exists()


# Functions

FUNCTIONS = """
from sibling import offset


def objective(trial):
    return (trial.suggest_float("x", -1.0, 1.0) - offset) ** 2
"""


@pytest.mark.slow
def test_function_of_file_is_optimized():
    write("offset = 0.5", "folder/sibling.py")
    write(FUNCTIONS, "folder/train.py")
    done = launch("folder/train.py:objective", "--trials", 4, "--direction", "maximize", workers=2)
    assert done.returncode == 0, done.stderr
    result = strict_json(done.stdout)
    values = [value for *_, value, _ in contents(URL, "train")]
    assert len(values) == 4
    assert (result["direction"], result["value"]) == ("maximize", max(values))
    assert strict_json(Path("results/train/best.json").read_text()) == result


STUDY_FILE = """
[study]
name = "toml-study"
trials = 5
sampler = "random"
seed = 3

[objective]
call = "train.py:objective"

[space]
x = { low = -1.0, high = 1.0 }
"""


@pytest.mark.slow
def test_function_of_study_file_is_optimized_in_its_space():
    write("offset = 0.5", "folder/sibling.py")
    write(FUNCTIONS, "folder/train.py")
    write(STUDY_FILE, "folder/study.toml")
    write(json.dumps({"x": 0.75}), "first.json")
    done = launch("folder/study.toml", "--enqueue", "first.json", workers=2)
    assert done.returncode == 0, done.stderr
    trials = contents(URL, "toml-study")
    assert trials[0][2] == {"x": 0.75}
    assert len({params["x"] for _, _, params, *_ in trials}) == 5
    result = strict_json(Path("results/toml-study/best.json").read_text())
    assert result["value"] == min(value for *_, value, _ in trials)
    # A sampler of hpo that does not learn has the same trials for any number of workers.
    again = launch("folder/study.toml", "--enqueue", "first.json", "--storage", "sqlite:///again.db", workers=1)
    assert again.returncode == 0, again.stderr
    assert contents("sqlite:///again.db", "toml-study") == trials


# Launches that are interrupted

SLOW = """
import signal
import sys
import time
from pathlib import Path

import optuna


def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    step = 0
    while not Path("open").exists() and trial.number >= 2:
        step += 1
        trial.report(x, step)
        time.sleep(0.01)
    return x


# The handler of the script must not fail the running trials.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
study.optimize(objective, n_trials=6)
print(len(study.trials))
"""


@pytest.mark.slow
def test_stopped_launch_goes_on():
    write(SLOW)
    with started("launch", "train.py", "--workers", 2, "--no-dashboard") as process:
        wait_until(process, lambda: sum(lease.finished for lease in leases()) == 2 and len(leases()) == 4)
        others = descendants(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        wait_for_end(process, others)
        stderr = process.stderr.read()
        assert process.stdout.read() == ""
    assert process.returncode == 130, stderr
    assert "2 of 6 trials are finished, 2 interrupted, 2 not started; the same command goes on" in stderr
    before = contents(URL, "train")
    assert Counter(state.name for _, state, *_ in before) == {"COMPLETE": 2, "RUNNING": 2}
    Path("open").touch()
    done = launch("train.py", workers=2)
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
    after = contents(URL, "train")
    assert [params for _, _, params, *_ in after[:4]] == [params for _, _, params, *_ in before]
    assert states("train") == {"COMPLETE": 6}


@pytest.mark.slow
def test_two_launches_share_the_budget():
    write(SLOW)
    arguments = ["launch", "train.py", "--workers", 2, "--no-dashboard"]
    with started(*arguments) as one, started(*arguments) as other:
        wait_until(one, lambda: len(leases()) == 6)
        Path("open").touch()
        outputs = [process.communicate() for process in (one, other)]
    assert [stdout for stdout, _ in outputs] == ["6\n", "6\n"], outputs
    assert (one.returncode, other.returncode) == (0, 0)
    assert states("train") == {"COMPLETE": 6}


# Objectives that end their process

EXITS = """
import ctypes
import os
from pathlib import Path

import optuna


def once(name):
    if Path(name).exists():
        return False
    Path(name).touch()
    return True


def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number == 0 and once("exit 0"):
        os._exit(0)
    if trial.number == 1 and once("exit 3"):
        os._exit(3)
    if trial.number == 2 and once("segmentation fault"):
        ctypes.string_at(0)
    if trial.number == 3:
        raise SystemExit(5)
    return x


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
study.optimize(objective, n_trials=5)
print([trial.state.name for trial in study.trials])
raise SystemExit(7)
"""


@pytest.mark.slow
def test_objective_that_ends_its_worker_does_not_end_the_study():
    write(EXITS)
    done = launch("train.py", workers=1)
    assert done.stdout == f"{['COMPLETE'] * 3 + ['FAIL', 'COMPLETE']}\n", done.stderr
    assert done.returncode == 7
    for reason in ("exited with 0", "exited with 3", "killed by SIGSEGV"):
        assert f"{reason}; another takes its place" in done.stderr
    with storage() as rdb:
        trials = optuna.load_study(study_name="train", storage=rdb).trials
    assert trials[3].user_attrs["reason"] == "SystemExit: 5"
