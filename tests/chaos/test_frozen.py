"""Processes that stand still, as on a laptop that sleeps."""

import os
import signal

import psutil
from commands import (
    ENDLESS,
    FEW,
    SHORT,
    Gates,
    contents,
    descendants,
    hpo,
    leases,
    outliving,
    owners,
    read_until,
    started,
    until,
    workers,
    write_study,
)


def test_another_finishes_what_a_frozen_worker_held_and_the_thawed_one_goes_on_with_other_trials(undisturbed):
    study = write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates(range(FEW)) as gates, started(*arguments, **gates.environment) as process:
        until(process, lambda: gates.reached == {0, 1})
        before = leases()
        frozen, _ = workers(process.pid)
        os.kill(frozen, signal.SIGSTOP)
        until(process, lambda: any(lease.expired for lease in leases()))
        (left,) = [lease.number for lease in leases() if lease.expired]
        gates.open(0, 1)
        until(process, lambda: len(leases()) == 3 and all(lease.finished for lease in leases()[:2]))
        assert [lease.attempt for lease in leases()] == [1 + (left == 0), 1 + (left == 1), 1]
        finished = contents("sqlite:///hpo.db")[:2]
        os.kill(frozen, signal.SIGCONT)
        until(process, lambda: len(leases()) == 4)
        assert [lease.owner for lease in leases()[2:]] == [before[1 - left].owner, before[left].owner]
        assert contents("sqlite:///hpo.db")[:2] == finished
        gates.open(*range(2, FEW))
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "died" not in stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


def test_a_frozen_worker_is_ended_with_the_launch_and_its_trial_is_free(undisturbed):
    study = write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates([0, 1]) as gates, started(*arguments, **gates.environment) as process:
        until(process, lambda: gates.reached == {0, 1})
        os.kill(workers(process.pid)[0], signal.SIGSTOP)
        process.terminate()
        read_until(process, "stopping")
        gates.open(0, 1)
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert owners() == {None}
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


def test_a_frozen_server_of_workers_keeps_nobody_from_stopping():
    with started("launch", write_study(ENDLESS), "--workers", 2) as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        os.kill(psutil.Process(workers(process.pid)[0]).ppid(), signal.SIGSTOP)
        process.terminate()
        assert outliving(process, processes) == []
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert owners() == {None}
