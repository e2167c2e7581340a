"""Launches of different budgets or of many workers, and launches that are frozen or killed in an unusual stage."""

import os
import signal
from pathlib import Path

import pytest
from command_hooks import GATES
from commands import (
    FEW,
    SHORT,
    TINY,
    Gates,
    contents,
    count_finished,
    hooked,
    hpo,
    kill,
    read_until,
    started,
    wait_until,
    write_study,
)
from factories import HOUR_S, execute, make_database
from optuna.trial import TrialState

pytestmark = pytest.mark.slow


def test_launches_with_different_budgets_end_with_larger(storage_url, undisturbed):
    study = write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--no-dashboard", "--storage", storage_url, "--trials"]
    with (
        Gates([0, 1]) as gates,
        started(*arguments, 8, **gates.environment) as first,
        started(*arguments, FEW, **gates.environment) as second,
    ):
        for process in (first, second):
            read_until(process, "running")
        gates.open(0, 1)
        errors = [process.communicate()[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), errors
    assert contents(storage_url) == undisturbed[:FEW]


def test_workers_go_on_while_launcher_is_frozen(storage_url, undisturbed):
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with (
        Gates([0, 1, FEW - 1]) as gates,
        started(*arguments, "--storage", storage_url, **gates.environment) as process,
    ):
        wait_until(process, lambda: gates.reached == {0, 1})
        os.kill(process.pid, signal.SIGSTOP)
        gates.open(0, 1)
        wait_until(process, lambda: count_finished(storage_url) == FEW - 1)
        os.kill(process.pid, signal.SIGCONT)
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "died" not in stderr
    assert contents(storage_url) == undisturbed[:FEW]


def test_launch_killed_in_preparation_leaves_nothing(undisturbed):
    GATES.mkdir()
    (GATES / "import").touch()
    own_data = {"HPO_DATA_DIR": str(Path("data").absolute())}
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard"]
    environment = own_data | hooked("gate_import('hpo.launch', 'sklearn.decomposition')")
    with started(*arguments, **environment) as process:
        wait_until(process, (GATES / "import.reached").exists)
        kill(process)
    prepared = Path("data/prepared")
    assert {path.suffix for path in prepared.glob("[!.]*")} == {".part"}
    done = hpo(*arguments, **own_data)
    assert done.returncode == 0, done.stderr
    assert [path.suffix for path in prepared.glob("[!.]*")] == [""]
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


def test_launch_killed_in_confirmation_goes_on():
    arguments = ["launch", write_study(), "--workers", 2, "--no-dashboard", "--confirm", 3, "--storage"]
    assert hpo(*arguments, "sqlite:///undisturbed.db").returncode == 0
    # Only the confirmation has a trial 8.
    with Gates([8]) as gates, started(*arguments, "sqlite:///hpo.db", **gates.environment) as process:
        wait_until(process, lambda: gates.reached == {8})
        kill(process)
    done = hpo(*arguments, "sqlite:///hpo.db")
    assert done.returncode == 0, done.stderr
    for study in ("tiny", "tiny:confirmation"):
        assert contents("sqlite:///hpo.db", study) == contents("sqlite:///undisturbed.db", study)


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_step_of_clock_changes_no_trial(storage_url, undisturbed, step_s):
    last = [FEW - 2, FEW - 1]
    arguments = ["launch", write_study(SHORT), "--workers", 3, "--trials", FEW, "--no-dashboard"]
    with Gates(last) as gates, started(*arguments, "--storage", storage_url, **gates.environment) as process:
        # The third worker is idle, and may claim the trials of the others.
        wait_until(process, lambda: gates.reached == set(last) and count_finished(storage_url) == FEW - 2)
        database = make_database(storage_url)
        ((before,),) = execute(database, "SELECT max(expires) FROM hpo_leases WHERE NOT finished")
        execute(database, f"UPDATE hpo_leases SET expires = expires - {step_s}")
        # Each lease is renewed or claimed at the new time.
        moved = f"SELECT 1 FROM hpo_leases WHERE NOT finished AND abs(expires - {before}) > {HOUR_S / 2}"
        wait_until(process, lambda: not execute(database, moved))
        gates.open(*last)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "died" not in stderr
    assert contents(storage_url) == undisturbed[:FEW]


def test_many_workers_run_each_of_many_tiny_trials_once(storage_url):
    trials = 40
    arguments = ["--workers", 16, "--trials", trials, "--no-dashboard", "--storage", storage_url]
    done = hpo("launch", write_study(TINY), *arguments)
    assert done.returncode == 0, done.stderr
    assert "died" not in done.stderr
    assert [trial[:2] for trial in contents(storage_url)] == [(n, TrialState.COMPLETE) for n in range(trials)]
    attempts = execute(make_database(storage_url), "SELECT attempt FROM hpo_leases ORDER BY number")
    assert attempts == [(1,)] * trials
