"""Workers that stand still past their leases, as on a laptop that sleeps."""

import contextlib
import os
import signal
import sqlite3

from commands import LONG, contents, hpo, ledger, owners, read_until, started, workers, write_study


def lease(number: int) -> tuple[int, bool]:
    """How often a trial was attempted, and whether it has ended."""
    with contextlib.closing(sqlite3.connect("hpo.db")) as connection:
        return connection.execute("SELECT attempt, finished FROM hpo_leases WHERE number = ?", (number,)).fetchone()


def test_another_finishes_what_a_frozen_worker_held_and_the_thawed_one_goes_on_with_other_trials():
    study = write_study(LONG.replace("trials = 8", "trials = 40"))
    with started("launch", study, "--workers", 2, "--no-dashboard") as process:
        read_until(process, "2 running")
        one, other = workers(process.pid)
        os.kill(one, signal.SIGSTOP)
        while not any(attempt > 1 and finished for attempt, finished in map(lease, range(len(ledger())))):
            assert process.poll() is None
            read_until(process, "finished")
        os.kill(one, signal.SIGCONT)
        # Now all is left to the first.
        os.kill(other, signal.SIGSTOP)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "died" not in stderr
    undisturbed = hpo("launch", study, "--workers", 2, "--no-dashboard", "--storage", "sqlite:///other.db")
    assert undisturbed.returncode == 0
    assert contents("sqlite:///hpo.db") == contents("sqlite:///other.db")


def test_a_frozen_worker_is_ended_with_the_launch_and_its_trial_is_free():
    study = write_study(LONG)
    with started("launch", study, "--workers", 2, "--no-dashboard") as process:
        read_until(process, "2 running")
        os.kill(workers(process.pid)[0], signal.SIGSTOP)
        process.terminate()
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert owners("hpo.db") == {None}
    done = hpo("launch", study, "--workers", 2, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert ledger() == [(number, "COMPLETE") for number in range(8)]
