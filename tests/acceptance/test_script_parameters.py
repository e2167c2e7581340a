"""A seeded random sampler and one worker: a script has the same trials under hpo as under plain Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import hpo

# A worker kills itself once at each of its points of death, if there is a folder for them.
SCRIPT = """
import json, os, pathlib, signal
import optuna

deaths = pathlib.Path("deaths")


def die(point):
    if (deaths / point).exists():
        (deaths / point).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def objective(trial):
    die(f"{trial.number}-start")
    x = trial.suggest_float("x", -3, 3)
    die(f"{trial.number}-suggested")
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    trial.suggest_int("constant", 7, 7)
    depth = trial.suggest_int("depth", 1, 3)
    total = sum(trial.suggest_float(f"layer_{layer}", 1e-3, 1, log=True) for layer in range(depth))
    for step in range(1, 4):
        trial.report(x**2 + total / step, step)
    die(f"{trial.number}-reported")
    if trial.number == 3:
        raise ValueError("a trial that fails")
    if kind == "c":
        raise optuna.TrialPruned
    return x**2 + total


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
known = {"params": {"x": 1.0}, "distributions": {"x": optuna.distributions.FloatDistribution(-3, 3)}}
study.add_trial(optuna.trial.create_trial(value=9.0, **known))
study.enqueue_trial({"x": 0.5, "depth": 2})
study.optimize(objective, n_trials=10, catch=ValueError)
trials = [[list(trial.params.items()), trial.values, trial.state.name] for trial in study.trials]
print(json.dumps(trials))
"""


@pytest.fixture
def expected():
    """Return the trials under plain Python."""
    Path("script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=True)
    trials = json.loads(done.stdout)
    assert len(trials) == 11
    assert {state for _, _, state in trials} == {"COMPLETE", "PRUNED", "FAIL"}
    return trials


def run_under_hpo():
    done = hpo("launch", "script.py", "--workers", 1, "--no-dashboard")
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[0])


def test_script_has_the_same_trials_as_under_plain_python(expected):
    assert run_under_hpo() == expected


@pytest.mark.slow
def test_killed_workers_do_not_change_trials(expected):
    Path("deaths").mkdir()
    points = ["1-suggested", "2-suggested", "4-reported", "5-start", "8-suggested"]
    for point in points:
        (Path("deaths") / point).touch()
    assert run_under_hpo() == expected
    assert not list(Path("deaths").iterdir()), "a worker did not die"
