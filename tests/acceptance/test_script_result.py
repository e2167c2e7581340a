"""The result of a script: its JSON, the checkpoint of the best trial, the confirmation, and the exit code."""

import signal
from pathlib import Path

import optuna
import pytest
from commands import hpo, ledger, started, storage, strict_json, wait_until

# A repeat waits at its gate, and ends if its worker has to stop.
SCRIPT = """
import itertools, pathlib, time
import optuna
import hpo


def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    hpo.save_checkpoint(trial, f"x = {x}".encode(), 1)
    if trial.study.study_name.endswith(":confirmation"):
        pathlib.Path("repeating").touch()
        for step in itertools.takewhile(lambda _: pathlib.Path("gate").exists(), itertools.count(1)):
            trial.report(0.0, step)
            time.sleep(0.05)
    return x**2 + trial.user_attrs.get("seed", 0) / 2**40


def callback(study, trial):
    with open("callbacks", "a") as file:
        print(trial.number, file=file)


study = optuna.create_study(direction="maximize")
study.optimize(objective, n_trials=3, callbacks=[callback])
print("done")
"""

LAUNCH = ("launch", "train.py", "--workers", 2, "--no-dashboard")


@pytest.fixture
def _script():
    Path("train.py").write_text(SCRIPT)


def read_result():
    return strict_json(Path("results/train/best.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("_script")
def test_export_writes_result_and_checkpoint_of_best_trial():
    done = hpo(*LAUNCH)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    result = read_result()
    for study in ("train.py", "train"):
        done = hpo("export", study, "--artifact", "best.bin")
        assert (done.returncode, done.stdout) == (0, Path("results/train/best.json").read_text()), done.stderr
        assert Path("best.bin").read_bytes() == f"x = {result['params']['x']}".encode()
    other = (result["trial"] + 1) % 3
    done = hpo("export", "train.py", "--trial", other, "--artifact", "other.bin")
    exported = strict_json(done.stdout)
    assert exported["trial"] == other
    assert Path("other.bin").read_bytes() == f"x = {exported['params']['x']}".encode()


@pytest.mark.slow
@pytest.mark.usefixtures("_script")
def test_interrupted_confirmation_goes_on():
    Path("gate").touch()
    with started(*LAUNCH, HPO_CONFIRM="2") as launch:
        wait_until(launch, Path("repeating").exists)
        launch.send_signal(signal.SIGINT)
        stdout, stderr = launch.communicate()
    assert (launch.returncode, stdout) == (130, "done\n"), stderr
    assert "confirmation of train: 0 of 6 trials are finished" in stderr
    assert "the same command goes on" in stderr
    Path("gate").unlink()
    done = hpo(*LAUNCH, HPO_CONFIRM="2")
    assert done.returncode == 0, done.stderr
    result = read_result()
    assert (result["confirmation"]["seeds"], len(result["confirmation"]["trials"])) == (3, 2)
    assert result["trials"]["complete"] == 3
    assert sorted(ledger()) == sorted([(n, "COMPLETE") for n in range(3)] + [(n, "COMPLETE") for n in range(6)])
    assert sorted(Path("callbacks").read_text().split()) == ["0", "1", "2"]
    again = hpo(*LAUNCH, HPO_CONFIRM="2")
    assert (again.returncode, read_result()) == (0, result), again.stderr
    assert hpo("export", "train.py").stdout == Path("results/train/best.json").read_text()


def test_result_without_seed_is_not_confirmed():
    script = SCRIPT.replace('trial.user_attrs.get("seed", 0)', "trial.number")
    Path("train.py").write_text(script)
    done = hpo(*LAUNCH, HPO_CONFIRM="3")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "not confirmed" in line]
    assert 'because the objective does not read the seed of hpo, trial.user_attrs["seed"]' in line
    assert read_result()["confirmation"] is None
    with storage() as rdb:
        assert optuna.get_all_study_names(rdb) == ["train"]


FAILING = """
import math
import optuna


def objective(trial):
    if trial.number == 1:
        return math.nan
    if trial.number == 2:
        raise ValueError("expected")
    if trial.number == 3:
        raise CRASH("sudden")
    return 1.0


study = optuna.create_study()
study.optimize(objective, n_trials=4, catch=(ValueError,))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("error", "code"), [("ValueError", 0), ("KeyError", 1)])
def test_exception_that_script_does_not_catch_is_exit_code_1(error, code):
    Path("train.py").write_text(FAILING.replace("CRASH", error))
    done = hpo(*LAUNCH)
    assert done.returncode == code, done.stderr
    assert read_result()["trials"] == {"complete": 1, "pruned": 0, "failed": 3, "unfinished": 0}
    assert "trial 2 failed: caught ValueError: expected" in done.stderr or error == "ValueError"
    last = done.stderr.splitlines()[-1]
    assert (last == "hpo: trial 3 failed: KeyError: 'sudden'") == (code == 1)


# The worker of the first repeat kills itself once.
CALLS = """
import os, pathlib, signal
import optuna

died = pathlib.Path("died")


def rough(trial):
    return trial.suggest_float("x", 0, 1) + 10 + trial.user_attrs["seed"] / 2**40


def fine(trial):
    if trial.study.study_name.endswith(":confirmation") and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    value = trial.suggest_float("x", 0, 1) + trial.user_attrs["seed"] / 2**40
    if len(study.trials) == 6:
        study.stop()
    return value


other = optuna.create_study(study_name="other")
other.optimize(rough, n_trials=2)
study = optuna.create_study()
study.optimize(rough, n_trials=2)
while len(study.trials) < 6:
    study.optimize(fine, n_trials=2)
"""


@pytest.mark.slow
def test_repeats_run_in_call_of_best_trial_and_survive_kill():
    Path("train.py").write_text(CALLS)
    done = hpo(*LAUNCH, HPO_CONFIRM="1")
    assert done.returncode == 0, done.stderr
    assert Path("died").exists()
    for name, low, high in (("train", 0, 1.01), ("other", 10, 11.01)):
        result = strict_json(Path(f"results/{name}/best.json").read_text())
        confirmation = result["confirmation"]
        assert len(confirmation["values"]) == 3
        assert all(low <= value <= high for value in [result["value"], *confirmation["values"]])
        # The seed is all that differs.
        assert confirmation["mean"] == pytest.approx(result["value"], abs=0.01)
    with storage() as rdb:
        trials = optuna.load_study(study_name="train:confirmation", storage=rdb).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
