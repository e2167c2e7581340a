"""The command ``python -m hpo.worker``, which any job system can start."""

import contextlib
import signal

import pytest
from commands import ENDLESS, Gates, contents, hpo, leases, ledger, owners, started, wait_until, write_study


def test_one_worker_finishes_study():
    done = hpo("worker", write_study(), "--storage", "sqlite:///hpo.db")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert ledger() == [(number, "COMPLETE") for number in range(8)]
    again = hpo("worker", write_study(), "--storage", "sqlite:///hpo.db")
    assert again.returncode == 0, again.stderr
    assert len(ledger()) == 8


def test_worker_trials_equal_those_of_launch():
    study = write_study()
    assert hpo("worker", study, "--storage", "sqlite:///worker.db").returncode == 0
    assert hpo("launch", study, "--storage", "sqlite:///launch.db", "--no-dashboard").returncode == 0
    assert contents("sqlite:///worker.db") == contents("sqlite:///launch.db")


@pytest.mark.slow
def test_killed_worker_leaves_exact_budget(storage_url, undisturbed_tiny):
    study = write_study()
    arguments = ["worker", study, "--storage", storage_url]
    with Gates([0, 1]) as gates, contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(started(*arguments, **gates.environment)) for _ in range(2))
        wait_until(first, lambda: gates.reached == {0, 1})
        second.kill()
        second.wait()
        gates.open(0, 1)
        _, stderr = first.communicate()
    assert first.returncode == 0, stderr
    assert contents(storage_url) == undisturbed_tiny


def test_sigterm_exits_with_130_and_study_resumes(undisturbed_tiny):
    study = write_study()
    with Gates([3]) as gates, started("worker", study, "--storage", "sqlite:///hpo.db", **gates.environment) as worker:
        wait_until(worker, lambda: gates.reached == {3})
        worker.terminate()
        stdout, stderr = worker.communicate()
    assert (worker.returncode, stdout) == (130, ""), stderr
    assert "Traceback" not in stderr
    assert owners() == {None}
    assert len(ledger()) == 4
    done = hpo("worker", study, "--storage", "sqlite:///hpo.db")
    assert done.returncode == 0, done.stderr
    assert contents("sqlite:///hpo.db") == undisturbed_tiny


def test_ctrl_c_during_endless_trial_exits_with_130():
    with started("worker", write_study(ENDLESS), "--storage", "sqlite:///hpo.db") as worker:
        wait_until(worker, leases)
        worker.send_signal(signal.SIGINT)
        _, stderr = worker.communicate()
    assert worker.returncode == 130, stderr
    assert "Traceback" not in stderr


def test_worker_and_launch_share_study(undisturbed_tiny):
    study = write_study()
    with (
        started("worker", study, "--storage", "sqlite:///hpo.db") as worker,
        started("launch", study, "--workers", 1, "--no-dashboard") as launch,
    ):
        outputs = [process.communicate() for process in (worker, launch)]
    assert (worker.returncode, launch.returncode) == (0, 0), outputs
    assert contents("sqlite:///hpo.db") == undisturbed_tiny


def test_worker_refuses_unknown_study():
    done = hpo("worker", "digitz", "--storage", "sqlite:///hpo.db")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "no study named 'digitz'" in done.stderr


def test_worker_without_database_exits_with_1():
    done = hpo("worker", write_study(), "--storage", "sqlite:///missing/hpo.db")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
