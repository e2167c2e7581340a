"""Processes that are stopped, killed, or left alone."""

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest
from commands import ENDLESS, TINY, descendants, hpo, ledger, read_until, started, write_study

# Long enough to be hit, short enough to wait for.
LONG = TINY.replace("{ low = 5, high = 20 }", "{ low = 1000, high = 2000 }")


def workers(launch_pid: int) -> list[int]:
    """The processes that hold the prepared data."""
    found = []
    for pid in descendants(launch_pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "train.joblib" in Path(f"/proc/{pid}/maps").read_text():
                found.append(pid)
    return found


def gone(pids: list[int]) -> None:
    """Wait until the processes are gone."""
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(timeout=30)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_launch_and_the_same_command_goes_on(how):
    study = write_study(LONG)
    with started("launch", study, "--workers", 2, "--no-dashboard") as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        process.send_signal(how)
        stdout, stderr = process.communicate()
        gone(processes)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "the same command goes on" in stderr
    done = hpo("launch", study, "--workers", 2, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    assert ledger() == [(number, "COMPLETE") for number in range(8)]


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


def test_a_killed_worker_is_replaced_and_the_ledger_is_that_of_an_undisturbed_run():
    study = write_study(LONG)
    with started("launch", study, "--workers", 1, "--no-dashboard") as process:
        read_until(process, "running")
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        assert "killed by SIGKILL" in read_until(process, "died in trial")
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    undisturbed = hpo("launch", study, "--workers", 2, "--no-dashboard", "--storage", "sqlite:///other.db")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert values("hpo.db") == values("other.db")


def values(path: str) -> list[tuple[object, ...]]:
    """All that the trials of a database reported."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT number, step, intermediate_value, value FROM trials JOIN trial_values USING (trial_id) "
            "JOIN trial_intermediate_values USING (trial_id) ORDER BY number, step"
        ).fetchall()


def test_the_workers_of_a_killed_launch_stop_by_themselves():
    study = write_study(ENDLESS)
    with started("launch", study, "--workers", 2) as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        assert len(processes) >= 4  # two workers, the dashboard, and the server that they were forked from
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
