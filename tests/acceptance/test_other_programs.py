"""Launches beside other programs in the same database, as the dashboard and Optuna's own clients."""

import contextlib
import json
import os
import signal
import sqlite3

import optuna
import pytest
from commands import SHORT, Gates, descendants, hpo, leases, ledger, started, storage, wait_until, write_study
from optuna.trial import TrialState

TRIALS = 6

pytestmark = pytest.mark.slow


def delete_study():
    with storage() as rdb:
        optuna.delete_study(study_name="tiny", storage=rdb)


def launching(study, gates, *arguments):
    return started("launch", study, "--no-dashboard", *arguments, **gates.environment)


def assert_ends_in_one_line(process, text):
    stdout, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert stdout == ""
    assert [line for line in stderr.splitlines() if text in line], stderr
    assert "Traceback" not in stderr
    assert "a bug in hpo" not in stderr


def trials_of(url="sqlite:///hpo.db"):
    with storage(url) as rdb:
        return optuna.load_study(study_name="tiny", storage=rdb).trials


def trial_rows():
    with contextlib.closing(sqlite3.connect("hpo.db")) as connection:
        return connection.execute("SELECT * FROM trials").fetchall()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_trial_failed_by_hand_is_one_failure(request, server, workers):
    url = "sqlite:///hpo.db" if server == "sqlite" else request.getfixturevalue("postgres").new_database()
    gates = Gates(range(workers))
    with gates, launching(write_study(), gates, "--workers", workers, "--trials", TRIALS, "--storage", url) as process:
        wait_until(process, lambda: gates.reached == set(range(workers)))
        with storage(url) as rdb:
            optuna.load_study(study_name="tiny", storage=rdb).tell(0, state=TrialState.FAIL)
        gates.open(*range(1, workers))
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    states = [(trial.number, trial.state) for trial in trials_of(url)]
    assert states == [(0, TrialState.FAIL), *((number, TrialState.COMPLETE) for number in range(1, TRIALS))]
    assert json.loads(stdout)["trial"] != 0
    again = hpo("launch", "tiny.toml", "--no-dashboard", "--trials", TRIALS, "--storage", url)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["trial"] == json.loads(stdout)["trial"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("change", ["rename", "delete"])
def test_launch_of_removed_study_ends(change, workers):
    gates = Gates(range(1, 1 + workers))
    with gates, launching(write_study(), gates, "--workers", workers) as process:
        wait_until(process, lambda: len(gates.reached) == workers)
        if change == "delete":
            delete_study()
        else:
            with storage() as rdb, rdb.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE studies SET study_name = 'other'")
        # The trials do not end by themselves.
        assert_ends_in_one_line(process, "was deleted, renamed or replaced")


def test_asked_and_enqueued_trials_count_in_budget():
    gates = Gates([1])
    with gates, launching(write_study(), gates, "--workers", 1, "--trials", TRIALS) as process:
        wait_until(process, lambda: gates.reached == {1})
        with storage() as rdb:
            study = optuna.load_study(study_name="tiny", storage=rdb)
            assert study.ask().number == 2
            study.enqueue_trial({"learning_rate": 0.01})
        gates.open(1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    trials = trials_of()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    assert trials[3].params["learning_rate"] == 0.01
    assert all(lease.finished for lease in leases())


def test_frozen_launch_does_not_mix_with_its_successor():
    study = write_study(SHORT)
    gates = Gates([2, 3])
    with gates, launching(study, gates, "--workers", 2, "--trials", 12) as process:
        wait_until(process, lambda: gates.reached == {2, 3})
        frozen = [process.pid, *descendants(process.pid)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        delete_study()
        gates.open(2, 3)
        again = hpo("launch", study, "--workers", 2, "--trials", 7, "--no-dashboard")
        assert again.returncode == 0, again.stderr
        before = trial_rows()
        for pid in frozen:
            # The process that prepared the data may have been a zombie.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert_ends_in_one_line(process, "was deleted, renamed or replaced")
    assert ledger() == [(number, "COMPLETE") for number in range(7)]
    assert trial_rows() == before


def delete_trials(*numbers):
    """Delete only the trials' own rows, as sqlite3 does without foreign keys."""
    with storage() as rdb, rdb.engine.begin() as connection:
        for number in numbers:
            connection.exec_driver_sql(f"DELETE FROM trials WHERE number = {number}")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("deleted", [(0,), (2,), (1, 2)])
def test_launch_with_deleted_earlier_trial_ends(workers, deleted):
    gates = Gates(range(3, 3 + workers))
    with gates, launching(write_study(), gates, "--workers", workers, "--trials", 8) as process:
        wait_until(process, lambda: len(gates.reached) == workers)
        delete_trials(*deleted)
        gates.open(*range(3, 3 + workers))
        assert_ends_in_one_line(process, "a trial before trial")
    again = hpo("launch", "tiny.toml", "--no-dashboard", "--trials", 8)
    assert again.returncode == 1
    assert again.stdout == ""
    assert f"a trial before trial {deleted[-1] + 1} of the study" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("deleted", [1, "all"])
def test_launch_makes_deleted_newest_trials_again(workers, deleted):
    newest = 2 + workers
    gates = Gates(range(3, 3 + workers))
    with gates, launching(write_study(), gates, "--workers", workers, "--trials", TRIALS) as process:
        wait_until(process, lambda: len(gates.reached) == workers)
        delete_trials(*(range(newest + 1) if deleted == "all" else [newest]))
        gates.open(*range(3, 3 + workers))
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert ledger() == [(number, "COMPLETE") for number in range(TRIALS)]
    assert all(lease.finished for lease in leases())
    delete_trials(TRIALS - 1)
    again = hpo("launch", "tiny.toml", "--no-dashboard", "--trials", TRIALS)
    assert again.returncode == 0, again.stderr
    assert ledger() == [(number, "COMPLETE") for number in range(TRIALS)]
