"""Processes that are stopped, killed, or left alone."""

import contextlib
import http.client
import os
import random
import signal
import subprocess
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from commands import (
    ENDLESS,
    FEW,
    SHORT,
    TINY,
    TORCH,
    Gates,
    contents,
    count_finished,
    count_paused,
    descendants,
    gone,
    hpo,
    leases,
    ledger,
    listening,
    outliving,
    owners,
    patched,
    read_until,
    started,
    until,
    workers,
    write_study,
)
from optuna.trial import TrialState
from workers import WorkerFactory

from benchmarks.postgres import free_port
from hpo.config.study import load_config


def test_a_signal_stops_the_launch_and_the_same_command_goes_on(undisturbed):
    study = write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates([3, 4]) as gates, started(*arguments, **gates.environment) as process:
        until(process, lambda: {3, 4} <= {lease.number for lease in leases()})
        processes, told = descendants(process.pid), set(workers(process.pid))
        process.terminate()
        read_until(process, "stopping")
        until(process, lambda: gates.stopping == told)
        gates.open(3, 4)
        assert outliving(process, processes) == []
        stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert f"3 of {FEW} trials are finished; the same command goes on" in stderr
    assert owners() == {None}
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_everything_is_imported_leaves_no_process_behind(how):
    with started("launch", write_study(ENDLESS)) as process:
        until(process, lambda: len(descendants(process.pid)) == 2)  # the servers of multiprocessing
        processes = descendants(process.pid)
        process.send_signal(how)
        assert outliving(process, processes) == []
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, "", "")


@pytest.mark.parametrize("moment", ["dashboard:", "running"])
def test_ctrl_c_of_a_terminal_reaches_every_process_and_leaves_no_trace_behind(moment):
    with started("launch", write_study(ENDLESS), "--workers", 2) as process:
        read_until(process, moment)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "Process" not in stderr
    assert "died" not in stderr


@pytest.mark.parametrize(
    ("storage_url", "size", "trials", "kills"),
    [("sqlite", 8, 60, 20), ("postgresql", 1, 60, 20), ("sqlite", 1, 2 * FEW, 8), ("postgresql", 8, 2 * FEW, 8)],
    indirect=["storage_url"],
)
def test_kills_change_nothing(storage_url, undisturbed, size, trials, kills):
    study, rng = write_study(SHORT), random.Random(size)
    arguments = ["--workers", size, "--trials", trials, "--no-dashboard", "--storage", storage_url]
    with started("launch", study, *arguments) as process:
        read_until(process, "running")
        for kill in range(kills):
            # Not too soon for some progress, at any moment of a trial, and before the study is at its end.
            until(process, lambda least=2 * kill: count_finished(storage_url) >= least)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0.0, 0.3))
            kill_a_worker(process, rng)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == kills
    assert contents(storage_url) == undisturbed[:trials]


def test_kills_while_trials_wait_at_their_rungs_lose_none(storage_url, undisturbed):
    study, rng = write_study(SHORT.replace('"none"', '"asha"')), random.Random(0)
    with started("launch", study, "--workers", 2, "--no-dashboard", "--storage", storage_url) as process:
        read_until(process, "running")
        for kill in range(10):
            until(process, lambda least=kill: count_paused(storage_url) >= least)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0.0, 0.05))
            kill_a_worker(process, rng)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == 10
    ended = contents(storage_url)
    assert {state for _, state, *_ in ended} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial, whole in zip(ended, undisturbed, strict=True):
        number, state, params, curve, value, _ = trial
        if state == TrialState.COMPLETE:
            assert trial == whole
            continue
        # It stands where it would have come by.
        last = max(curve)
        assert (number, params, value) == (whole[0], whole[2], whole[3][last])
        assert curve == {epoch: accuracy for epoch, accuracy in whole[3].items() if epoch <= last}


@pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[torch]'")
def test_with_pytorch_too_a_trial_goes_on_in_another_process_to_the_same_bits():
    study = write_study(TORCH.replace("trials = 8", "trials = 4"))
    train_here(study, "sqlite:///undisturbed.db")
    arguments = ["launch", study, "--no-dashboard", "--workers"]
    with Gates([1, 2]) as gates, started(*arguments, 2, **gates.environment) as process:
        until(process, lambda: {1, 2} <= gates.reached)
        kill_a_worker(process, random.Random(0))
        read_until(process, "killed by SIGKILL")
        process.send_signal(signal.SIGINT)
        read_until(process, "stopping")
        until(process, lambda: gates.stopping)
        gates.open(1, 2)
        process.communicate()
    assert process.returncode == 130
    done = hpo(*arguments, 1)
    assert done.returncode == 0, done.stderr
    assert max(lease.attempt for lease in leases()) > 1
    assert contents("sqlite:///hpo.db") == contents("sqlite:///undisturbed.db")


def train_here(study: Path, url: str) -> None:
    """Train all trials in this process, where nobody disturbs them."""
    spec = load_config(study)
    with contextlib.closing(WorkerFactory(url, Path.cwd())) as bench:
        bench.worker(bench.join(spec), spec).run()


def kill_a_worker(launch: subprocess.Popen[str], rng: random.Random) -> None:
    """Kill one that is there, as soon as there is one."""
    found: list[int] = []
    until(launch, lambda: found.extend(workers(launch.pid)) or found)
    victim = rng.choice(found)
    os.kill(victim, signal.SIGKILL)
    gone([victim])  # or it could be the next one, too


def test_all_workers_die_at_once(undisturbed):
    arguments = ["launch", write_study(SHORT), "--workers", 4, "--trials", FEW, "--no-dashboard"]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        until(process, lambda: len(owners()) == 4)
        killed = workers(process.pid)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == len(killed) == 4
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


def test_three_launches_share_a_study_and_one_is_killed(postgres, undisturbed):
    url, trials = postgres.new_database(), 2 * FEW
    arguments = ["launch", write_study(SHORT), "--workers", 4, "--trials", trials, "--no-dashboard", "--storage", url]
    with Gates([trials - 1]) as gates, contextlib.ExitStack() as launches:
        one, other, unlucky = (launches.enter_context(started(*arguments, **gates.environment)) for _ in range(3))
        until(unlucky, lambda: len(workers(unlucky.pid)) == 4)
        processes = descendants(unlucky.pid)
        unlucky.kill()
        gates.open(trials - 1)
        errors = [process.communicate()[1] for process in (one, other)]
        gone(processes)
    assert (one.returncode, other.returncode) == (0, 0), errors
    assert contents(url) == undisturbed[:trials]


def test_the_server_that_workers_are_forked_from_dies(undisturbed):
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        orphans = workers(process.pid)
        os.kill(psutil.Process(orphans[0]).ppid(), signal.SIGKILL)
        gates.open(FEW - 1)
        assert "the server that it was forked from died" in read_until(process, "died")
        gone(orphans)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


def test_a_dead_dashboard_is_replaced_at_the_same_address():
    with started("launch", write_study(ENDLESS), "--workers", 1, "--port", free_port()) as process:
        address = read_until(process, "dashboard: ").split()[-1]
        read_until(process, "running")
        for _ in range(2):
            wait_until_served(address)
            listening(process.pid, address).kill()
            read_until(process, "the dashboard died; another takes its place")
        wait_until_served(address)


def wait_until_served(address: str) -> None:
    # The launch holds the socket: a request waits until somebody takes it, or is cut with whoever took it.
    while True:
        with contextlib.suppress(ConnectionResetError, http.client.RemoteDisconnected):
            with urllib.request.urlopen(f"{address}/api/studies") as response:
                assert response.status == 200
            return


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_wait_for_the_workers(how):
    with started("launch", write_study(ENDLESS), "--workers", 2, "--no-dashboard") as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        for pid in workers(process.pid):
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(how)
        read_until(process, "stopping")
        process.send_signal(how)
        assert outliving(process, processes) == []
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert owners() == {None}


def test_the_workers_of_a_killed_launch_stop_by_themselves():
    study = write_study(ENDLESS)
    with started("launch", study, "--workers", 2, "--port", free_port()) as process:
        address = read_until(process, "dashboard: ").split()[-1]
        read_until(process, "running")
        wait_until_served(address)
        processes = descendants(process.pid)
        assert len(processes) == 5  # two workers, the dashboard, and the two servers of multiprocessing
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        gone(processes)
    assert {state for _, state in ledger()} == {"RUNNING"}


def test_a_trial_that_kills_its_worker_each_time_fails_alone():
    # A hidden size that no memory holds kills the worker with an error of NumPy's.
    text = TINY.replace("{ low = 16, high = 64 }", "{ choices = [16, 1000000000000] }")
    done = hpo("launch", write_study(text), "--workers", 2, "--no-dashboard")
    assert done.returncode == 1
    failed = [number for number, state in ledger() if state == "FAIL"]
    assert 0 < len(failed) < 8
    assert [number for number, _ in ledger()] == list(range(8))
    assert f"trial {failed[0]} failed: crashed 3 times:" in done.stderr
    assert "Traceback" not in done.stderr
    assert '"failed": ' in done.stdout


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_trial_whose_process_is_killed_at_the_same_step_each_time_fails_after_three_attempts(epoch):
    text = TINY.replace("{ low = 16, high = 64 }", "{ choices = [16, 24] }")
    environment = patched(KILLER.format(epoch=epoch))
    done = hpo("launch", write_study(text), "--workers", 2, "--no-dashboard", **environment)
    assert done.returncode == 1
    failed = [number for number, state in ledger() if state == "FAIL"]
    assert 0 < len(failed) < 8
    for number in failed:
        assert f"trial {number} failed: crashed 3 times: killed by SIGKILL" in done.stderr
    assert len(Path("deaths").read_text()) == 3 * len(failed)
    assert {state for number, state in ledger() if number not in failed} == {"COMPLETE"}


# A net of 24 hidden units kills its process at the start of an epoch.
KILLER = """
import os, signal
import hpo.models.trainer

train_epoch = hpo.models.trainer.Trainer._train_epoch

def kill(training, after_step):
    if training._network.sizes[1] == 24 and training.epoch == {epoch}:
        with open("deaths", "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return train_epoch(training, after_step)

hpo.models.trainer.Trainer._train_epoch = kill
"""
