"""Frozen processes, as on a suspended laptop."""

import os
import signal

import psutil
import pytest
from commands import (
    ENDLESS,
    FEW,
    SHORT,
    Gates,
    contents,
    descendants,
    hpo,
    leases,
    owners,
    read_until,
    started,
    wait_for_end,
    wait_until,
    workers,
    write_study,
)


@pytest.mark.slow
def test_trial_of_frozen_worker_is_claimed_by_another(undisturbed):
    study = write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates(range(FEW)) as gates, started(*arguments, **gates.environment) as process:
        wait_until(process, lambda: gates.reached == {0, 1})
        before = leases()
        frozen, _ = workers(process.pid)
        os.kill(frozen, signal.SIGSTOP)
        wait_until(process, lambda: any(lease.expired for lease in leases()))
        (claimed,) = [lease.number for lease in leases() if lease.expired]
        gates.open(0, 1)
        wait_until(process, lambda: len(leases()) == 3 and all(lease.finished for lease in leases()[:2]))
        assert [lease.attempt for lease in leases()] == [1 + (claimed == 0), 1 + (claimed == 1), 1]
        finished = contents("sqlite:///hpo.db")[:2]
        os.kill(frozen, signal.SIGCONT)
        # The resumed worker continues with another trial and does not touch the finished ones.
        wait_until(process, lambda: len(leases()) == 4)
        assert [lease.owner for lease in leases()[2:]] == [before[1 - claimed].owner, before[claimed].owner]
        assert contents("sqlite:///hpo.db")[:2] == finished
        gates.open(*range(2, FEW))
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "died" not in stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


@pytest.mark.slow
def test_stopped_launch_kills_frozen_worker_and_releases_trial(undisturbed):
    study = write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates([0, 1]) as gates, started(*arguments, **gates.environment) as process:
        wait_until(process, lambda: gates.reached == {0, 1})
        os.kill(workers(process.pid)[0], signal.SIGSTOP)
        process.terminate()
        read_until(process, "stopping")
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert owners() == {None}
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


@pytest.mark.slow
def test_frozen_fork_server_does_not_delay_stop():
    arguments = ["launch", write_study(ENDLESS), "--workers", 2]
    with Gates([0, 1]) as gates, started(*arguments, **gates.environment) as process:
        wait_until(process, lambda: gates.reached == {0, 1})
        processes = descendants(process.pid)
        fork_server = psutil.Process(workers(process.pid)[0]).ppid()
        os.kill(fork_server, signal.SIGSTOP)
        process.terminate()
        wait_for_end(process, processes)
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert owners() == {None}
