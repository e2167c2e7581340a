"""Processes that are stopped, killed, or crash."""

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_hooks import GATES
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
    find_listener,
    hooked,
    hpo,
    leases,
    ledger,
    owners,
    read_until,
    started,
    wait_for_end,
    wait_until,
    wait_until_gone,
    workers,
    write_study,
)
from optuna.trial import TrialState

from benchmarks.postgres import free_port

# Trials that may start before the next kill: the study cannot end before the last kill, however slow the test is.
HEAD_START = 8


def test_signal_stops_launch_and_same_command_resumes(undisturbed):
    study = write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates([3, 4]) as gates, started(*arguments, **gates.environment) as process:
        wait_until(process, lambda: gates.reached == {3, 4})
        processes, training = descendants(process.pid), workers(process.pid)
        process.terminate()
        read_until(process, "stopping")
        wait_for_end(process, processes, training)
        stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert f"3 of {FEW} trials are finished" in stderr
    assert owners() == {None}
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_imports_leaves_no_process(stop_signal):
    GATES.mkdir()
    (GATES / "import").touch()
    environment = hooked("gate_import('hpo.launch', 'hpo.tuning.tuner')")
    with started("launch", write_study(ENDLESS), **environment) as process:
        wait_until(process, (GATES / "import.reached").exists)
        processes = descendants(process.pid)
        assert len(processes) == 2, "the fork server and the resource tracker of multiprocessing"
        process.send_signal(stop_signal)
        (GATES / "import").unlink()
        wait_for_end(process, processes)
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, "", "")


@pytest.mark.parametrize("line", ["dashboard:", "running"])
def test_ctrl_c_of_process_group_prints_no_traceback(line):
    with started("launch", write_study(ENDLESS), "--workers", 2) as process:
        read_until(process, line)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "Process" not in stderr
    assert "died" not in stderr


@pytest.mark.parametrize(
    ("storage_url", "size", "trials", "kills"),
    [
        pytest.param("sqlite", 8, 60, 20, marks=pytest.mark.slow),
        pytest.param("postgresql", 1, 60, 20, marks=pytest.mark.slow),
        ("sqlite", 1, 2 * FEW, 8),
        pytest.param("postgresql", 8, 2 * FEW, 8, marks=pytest.mark.slow),
    ],
    indirect=["storage_url"],
)
def test_killed_workers_change_no_trial(storage_url, undisturbed, size, trials, kills):
    study, rng = write_study(SHORT), random.Random(size)
    arguments = ["--workers", size, "--trials", trials, "--no-dashboard", "--storage", storage_url]
    with Gates(range(trials)) as gates, started("launch", study, *arguments, **gates.environment) as process:
        gates.open(*range(HEAD_START))
        read_until(process, "running")
        for kill in range(kills):
            wait_until(process, lambda least=2 * kill: count_finished(storage_url) >= least)
            pause(process, rng.uniform(0.0, 0.3))
            kill_a_worker(process, rng)
            gates.open(*range(2 * kill + 2 + HEAD_START))
        gates.open(*range(trials))
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == kills
    assert contents(storage_url) == undisturbed[:trials]


def kill_ten_workers(process, storage_url: str, rng: random.Random, longest_pause_s: float) -> None:
    """Kill a worker ten times, each time after another trial is paused."""
    for kill in range(10):
        wait_until(process, lambda least=kill: count_paused(storage_url) >= least)
        pause(process, rng.uniform(0.0, longest_pause_s))
        kill_a_worker(process, rng)


@pytest.mark.slow
def test_killed_workers_lose_no_paused_trial(storage_url, undisturbed):
    study, rng, last = write_study(SHORT.replace('"none"', '"asha"')), random.Random(0), 59
    arguments = ["launch", study, "--workers", 2, "--no-dashboard", "--storage", storage_url]
    with Gates([last]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        kill_ten_workers(process, storage_url, rng, longest_pause_s=0.05)
        gates.open(last)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == 10
    check_curves(contents(storage_url), undisturbed)


@pytest.mark.slow
def test_killed_workers_change_no_trial_with_folds():
    folds = SHORT.replace("split = { train = 400, validation = 100, test = 100 }", "folds = 5")
    assert "folds" in folds
    arguments, last = ["--workers", 2, "--trials", 2 * FEW, "--no-dashboard"], 2 * FEW - 1
    whole = hpo("launch", write_study(folds), *arguments, "--storage", "sqlite:///whole.db")
    assert whole.returncode == 0, whole.stderr
    study, rng = write_study(folds.replace('"none"', '"asha"')), random.Random(0)
    with Gates([last]) as gates, started("launch", study, *arguments, **gates.environment) as process:
        read_until(process, "running")
        kill_ten_workers(process, "sqlite:///hpo.db", rng, longest_pause_s=0.3)
        gates.open(last)
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == 10
    check_curves(contents("sqlite:///hpo.db"), contents("sqlite:///whole.db"))
    validation = json.loads(stdout)["validation"]
    assert len(validation["folds"]["values"]) == 5


def check_curves(ended: list[tuple[Any, ...]], undisturbed: list[tuple[Any, ...]]) -> None:
    """Check that each trial is that of an undisturbed study without a pruner, up to the step where it was pruned."""
    assert {state for _, state, *_ in ended} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial, whole in zip(ended, undisturbed, strict=True):
        number, state, params, curve, value, _ = trial
        if state == TrialState.COMPLETE:
            assert trial == whole
            continue
        last_step = max(curve)
        assert (number, params, value) == (whole[0], whole[2], whole[3][last_step])
        assert curve == {step: accuracy for step, accuracy in whole[3].items() if step <= last_step}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[torch]'")
def test_torch_trial_resumes_to_same_bits():
    study = write_study(TORCH.replace("trials = 8", "trials = 4"))
    arguments = ["launch", study, "--no-dashboard", "--workers"]
    undisturbed = hpo(*arguments, 1, "--storage", "sqlite:///undisturbed.db")
    assert undisturbed.returncode == 0, undisturbed.stderr
    with Gates([1, 2]) as gates, started(*arguments, 2, **gates.environment) as process:
        wait_until(process, lambda: gates.reached == {1, 2})
        kill_a_worker(process, random.Random(0))
        read_until(process, "killed by SIGKILL")
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    done = hpo(*arguments, 1)
    assert done.returncode == 0, done.stderr
    assert max(lease.attempt for lease in leases()) > 1
    assert contents("sqlite:///hpo.db") == contents("sqlite:///undisturbed.db")


def pause(process: subprocess.Popen[str], seconds: float) -> None:
    """Let a launch continue for a random time, so that a kill hits any moment of a trial."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


def kill_a_worker(launch: subprocess.Popen[str], rng: random.Random) -> None:
    """Kill a worker as soon as there is one, and wait until it is gone."""
    found: list[int] = []
    wait_until(launch, lambda: found.extend(workers(launch.pid)) or found)
    victim = rng.choice(found)
    os.kill(victim, signal.SIGKILL)
    # Otherwise the next kill could choose the same process.
    wait_until_gone([victim])


def test_all_workers_killed_at_once_change_no_trial(undisturbed):
    arguments = ["launch", write_study(SHORT), "--workers", 4, "--trials", FEW, "--no-dashboard"]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        wait_until(process, lambda: len(owners() - {None}) == 4)
        killed = workers(process.pid)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == len(killed) == 4
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


@pytest.mark.slow
def test_three_launches_survive_kill_of_one(postgres, undisturbed):
    url, trials = postgres.new_database(), 2 * FEW
    arguments = ["launch", write_study(SHORT), "--workers", 4, "--trials", trials, "--no-dashboard", "--storage", url]
    with Gates([trials - 1]) as gates, contextlib.ExitStack() as launches:
        first, second, killed = (launches.enter_context(started(*arguments, **gates.environment)) for _ in range(3))
        wait_until(killed, lambda: len(workers(killed.pid)) == 4)
        processes = descendants(killed.pid)
        killed.kill()
        gates.open(trials - 1)
        errors = [process.communicate()[1] for process in (first, second)]
        wait_until_gone(processes)
    assert (first.returncode, second.returncode) == (0, 0), errors
    assert contents(url) == undisturbed[:trials]


@pytest.mark.slow
def test_killed_fork_server_is_replaced(undisturbed):
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        orphans = workers(process.pid)
        os.kill(psutil.Process(orphans[0]).ppid(), signal.SIGKILL)
        gates.open(FEW - 1)
        assert "the server that it was forked from died" in read_until(process, "died")
        wait_until_gone(orphans)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


@pytest.mark.slow
def test_killed_dashboard_is_replaced_at_same_address():
    arguments = ["launch", write_study(ENDLESS), "--workers", 1, "--port", free_port()]
    with Gates([0]) as gates, started(*arguments, **gates.environment) as process:
        address = read_until(process, "dashboard: ").split()[-1]
        read_until(process, "running")
        for _ in range(2):
            wait_until_served(address)
            find_listener(process.pid, address).kill()
            read_until(process, "the dashboard died; another takes its place")
        wait_until_served(address)


def wait_until_served(address: str) -> None:
    """Wait for an answer of the dashboard.

    The launch holds the socket: a request waits for a dashboard process, and is cut if that process is killed.
    """
    while True:
        with contextlib.suppress(ConnectionResetError, http.client.RemoteDisconnected):
            with urllib.request.urlopen(f"{address}/api/studies") as response:
                assert response.status == 200
            return


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_launch_at_once(stop_signal):
    with started("launch", write_study(ENDLESS), "--workers", 2, "--no-dashboard") as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        # A frozen worker does not react to the first signal.
        for pid in workers(process.pid):
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(stop_signal)
        read_until(process, "stopping")
        process.send_signal(stop_signal)
        wait_for_end(process, processes)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert owners() == {None}


@pytest.mark.slow
def test_workers_of_killed_launch_exit():
    study = write_study(ENDLESS)
    arguments = ["launch", study, "--workers", 2, "--port", free_port()]
    with Gates([0, 1]) as gates, started(*arguments, **gates.environment) as process:
        address = read_until(process, "dashboard: ").split()[-1]
        read_until(process, "running")
        wait_until_served(address)
        processes = descendants(process.pid)
        assert len(processes) == 5, "two workers, the dashboard, the fork server and the resource tracker"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_until_gone(processes)
    assert {state for _, state in ledger()} == {"RUNNING"}


def names(numbers: list[int]) -> str:
    return f"trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


@pytest.mark.slow
def test_trial_that_crashes_its_worker_fails_alone():
    # An allocation of this size crashes the worker with an error of NumPy.
    text = TINY.replace("{ low = 16, high = 64 }", "{ choices = [16, 1000000000000] }")
    done = hpo("launch", write_study(text), "--workers", 2, "--no-dashboard")
    assert done.returncode == 1
    failed = [number for number, state in ledger() if state == "FAIL"]
    assert 0 < len(failed) < 8
    assert [number for number, _ in ledger()] == list(range(8))
    assert f"{names(failed)} failed: crashed 3 times:" in done.stderr
    assert "Traceback" not in done.stderr
    assert '"failed": ' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2])
def test_trial_killed_three_times_at_same_step_fails(step):
    text = TINY.replace("{ low = 16, high = 64 }", "{ choices = [16, 24] }")
    environment = hooked(f"kill_trials({{'hidden_size': 24}}, step={step}, log='kills')")
    done = hpo("launch", write_study(text), "--workers", 2, "--no-dashboard", **environment)
    assert done.returncode == 1
    failed = [number for number, state in ledger() if state == "FAIL"]
    assert 0 < len(failed) < 8
    assert f"{names(failed)} failed: crashed 3 times: killed by SIGKILL" in done.stderr
    assert len(Path("kills").read_text()) == 3 * len(failed)
    assert {state for number, state in ledger() if number not in failed} == {"COMPLETE"}
