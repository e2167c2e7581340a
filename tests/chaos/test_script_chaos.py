"""Optuna scripts whose workers are killed."""

import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import (
    contents,
    count_finished,
    count_resumable,
    descendants,
    hpo,
    leases,
    owners,
    read_until,
    started,
    wait_for_end,
    wait_until,
    wait_until_gone,
)
from optuna.trial import TrialState

from benchmarks.postgres import running_postgres
from hpo.storage.database.connection import StorageTimings

pytestmark = pytest.mark.slow

LONGER_THAN_A_LEASE_S = StorageTimings().lease_s + 2

SCRIPT = """
import json
import time
from pathlib import Path

import optuna

import hpo


def objective(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    kind = trial.suggest_categorical("kind", ["line", "curve"])
    power = trial.suggest_int("power", 2, 4) if kind == "curve" else 1
    state = hpo.load_checkpoint(trial) if {has_checkpoints} else None
    step, value = json.loads(state) if state else (0, 0.0)
    if state:
        with open("resumed", "a") as file:
            file.write(f"{{trial.number}} {{step}}\\n")
    while step < 20:
        step += 1
        value = 0.9 * value + x**power * step
        trial.report(value, step)
        if {has_checkpoints}:
            hpo.save_checkpoint(trial, json.dumps([step, value]).encode(), step)
        time.sleep(0.01)
        while step == 15 and Path(f"gates/{{trial.number}}").exists():
            time.sleep(0.01)
            if {has_checkpoints}:
                hpo.save_checkpoint(trial, json.dumps([step, value]).encode(), step)
    trial.set_user_attr("steps", step)
    return value


def main():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    study.optimize(objective, n_trials={trials})
    print(len(study.trials))


if __name__ == "__main__":
    main()
"""


class Gates:
    """Gates of the script: a trial waits after some of its steps until its gate is opened."""

    def __init__(self, n_trials: int) -> None:
        Path("gates").mkdir()
        self._closed = list(range(n_trials))
        for number in self._closed:
            Path(f"gates/{number}").touch()

    def open(self, end: int) -> None:
        """Open the gates of all trials before ``end``."""
        while self._closed and self._closed[0] < end:
            Path(f"gates/{self._closed.pop(0)}").unlink()


def write_script(trials: int, *, has_checkpoints: bool) -> Path:
    path = Path("train.py")
    path.write_text(SCRIPT.format(has_checkpoints=has_checkpoints, trials=trials))
    return path


def script_workers(launch_pid: int) -> list[int]:
    """Return the workers of a launch, which lead sessions of their own."""
    return [pid for pid in descendants(launch_pid) if leads_session(pid)]


def leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def kill_a_worker(launch: subprocess.Popen[str], rng: random.Random) -> None:
    """Kill a worker as soon as there is one, and wait until it is gone."""
    found: list[int] = []
    wait_until(launch, lambda: found.extend(script_workers(launch.pid)) or found)
    victim = rng.choice(found)
    os.kill(victim, signal.SIGKILL)
    # Otherwise the next kill could choose the same process.
    wait_until_gone([victim])


def pause(process: subprocess.Popen[str], seconds: float) -> None:
    """Let a launch continue for a random time, so that a kill hits any moment of a trial."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


def undisturbed(size: int) -> list[tuple[Any, ...]]:
    """Run the script without a disturbance and return its trials."""
    done = hpo("launch", "train.py", "--workers", size, "--no-dashboard", "--storage", "sqlite:///undisturbed.db")
    assert done.returncode == 0, done.stderr
    assert not Path("resumed").exists()
    return contents("sqlite:///undisturbed.db", "train")


@pytest.mark.parametrize(
    ("storage_url", "size", "has_checkpoints", "trials", "kills"),
    [
        *(
            pytest.param(database, size, has_checkpoints, 40, 20, marks=pytest.mark.slow)
            for database in ("sqlite", "postgresql")
            for size in (1, 8)
            for has_checkpoints in (True, False)
        ),
        ("sqlite", 2, True, 8, 3),
    ],
    indirect=["storage_url"],
)
def test_killed_workers_change_no_trial_of_script(storage_url, size, has_checkpoints, trials, kills):
    script, rng = write_script(trials, has_checkpoints=has_checkpoints), random.Random(size)
    expected = undisturbed(size)
    gates = Gates(trials)
    arguments = ["launch", script, "--workers", size, "--no-dashboard", "--storage", storage_url]
    with started(*arguments) as process:
        wait_until(process, lambda: script_workers(process.pid))
        if has_checkpoints:
            # The first kill interrupts a trial that has a checkpoint.
            wait_until(process, lambda: count_resumable(storage_url) == size)
        for kill in range(kills):
            # The study cannot end before the last kill, however slow the test is.
            gates.open(kill)
            wait_until(process, lambda least=kill: count_finished(storage_url) >= least)
            pause(process, rng.uniform(0.0, 0.5))
            kill_a_worker(process, rng)
        gates.open(trials)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.count("killed by SIGKILL") == kills
    ended = contents(storage_url, "train")
    assert [number for number, *_ in ended] == list(range(trials))
    assert {state for _, state, *_ in ended} == {TrialState.COMPLETE}
    assert ended == expected
    assert Path("resumed").exists() == has_checkpoints


@pytest.mark.parametrize("ending", ["ctrl_c", pytest.param("kill", marks=pytest.mark.slow)])
def test_same_command_resumes_script(ending):
    trials = 4
    script = write_script(trials, has_checkpoints=True)
    expected = undisturbed(2)
    gates = Gates(trials)
    arguments = ["launch", script, "--workers", 2, "--no-dashboard"]
    with started(*arguments) as process:
        # The tables exist before the workers.
        wait_until(process, lambda: script_workers(process.pid))
        wait_until(process, lambda: count_resumable("sqlite:///hpo.db") == 2)
        processes = descendants(process.pid)
        if ending == "kill":
            process.kill()
        else:
            # As in a terminal.
            os.killpg(process.pid, signal.SIGINT)
        wait_for_end(process, processes)
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (-signal.SIGKILL if ending == "kill" else 130, "")
    assert "Traceback" not in stderr
    assert owners() == {None}, "the trials are released"
    gates.open(trials)
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents("sqlite:///hpo.db", "train") == expected
    assert Path("resumed").exists()


@pytest.mark.slow
def test_launches_of_one_script_share_its_budget(storage_url):
    trials = 12
    script = write_script(trials, has_checkpoints=True)
    expected = undisturbed(2)
    gates = Gates(trials)
    arguments = ["launch", script, "--workers", 2, "--no-dashboard", "--storage", storage_url]
    with started(*arguments) as first, started(*arguments) as second, started(*arguments) as killed:
        for process in (first, second, killed):
            wait_until(process, lambda launch=process: len(script_workers(launch.pid)) == 2)
        wait_until(killed, lambda: count_resumable(storage_url) == 6)
        processes = descendants(killed.pid)
        killed.kill()
        gates.open(trials)
        errors = [process.communicate()[1] for process in (first, second)]
        wait_until_gone(processes)
    assert (first.returncode, second.returncode) == (0, 0), errors
    assert contents(storage_url, "train") == expected


@pytest.mark.slow
def test_trial_of_frozen_script_worker_is_claimed_by_another():
    trials = 4
    script = write_script(trials, has_checkpoints=True)
    expected = undisturbed(2)
    gates = Gates(trials)
    with started("launch", script, "--workers", 2, "--no-dashboard") as process:
        wait_until(process, lambda: len(script_workers(process.pid)) == 2)
        wait_until(process, lambda: count_resumable("sqlite:///hpo.db") == 2)
        frozen, _ = script_workers(process.pid)
        os.kill(frozen, signal.SIGSTOP)
        wait_until(process, lambda: any(lease.expired for lease in leases()))
        gates.open(2)
        wait_until(process, lambda: count_finished("sqlite:///hpo.db") == 2)
        before = contents("sqlite:///hpo.db", "train")[:2]
        os.kill(frozen, signal.SIGCONT)
        # The worker continues with another trial.
        wait_until(process, lambda: count_resumable("sqlite:///hpo.db") == 2)
        assert contents("sqlite:///hpo.db", "train")[:2] == before
        gates.open(trials)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "died" not in stderr
    assert contents("sqlite:///hpo.db", "train") == expected


@pytest.mark.slow
def test_server_crash_for_longer_than_lease_changes_no_trial_of_script():
    trials = 6
    script = write_script(trials, has_checkpoints=True)
    expected = undisturbed(2)
    gates = Gates(trials)
    with running_postgres() as server:
        url = server.new_database()
        with started("launch", script, "--workers", 2, "--no-dashboard", "--storage", url) as process:
            wait_until(process, lambda: len(script_workers(process.pid)) == 2)
            wait_until(process, lambda: count_resumable(url) == 2)
            server.crash()
            read_until(process, "the database cannot be used")
            gates.open(2)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=LONGER_THAN_A_LEASE_S)
            server.start()
            gates.open(trials)
            _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert "the database is back" in stderr
        assert "died" not in stderr
        assert contents(url, "train") == expected
