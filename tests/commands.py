"""The real commands, as processes of their own that never outlive a test."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil

from hpo import storage

ROOT = Path(__file__).parents[1]

TINY = """
[study]
name = "tiny"
trials = 8
sampler = "random"
pruner = "none"

[data]
dataset = "digits"
split = { train = 400, validation = 100, test = 100 }
pca = 0.9

[train]
batch_size = 50
momentum = 0.9

[space]
learning_rate  = { low = 1e-3, high = 1e-1, log = true }
regularization = { low = 1e-7, high = 1e-2, log = true }
hidden_size    = { low = 16, high = 64 }
epochs         = { low = 5, high = 20 }
"""

# Trials that last until they are stopped: hours, at a few milliseconds an epoch.
ENDLESS = TINY.replace('"tiny"', '"endless"').replace("{ low = 5, high = 20 }", "{ low = 10000000, high = 10000000 }")


# Trials that last a second or two: long enough to be hit, short enough to wait for.
LONG = TINY.replace("{ low = 5, high = 20 }", "{ low = 1000, high = 2000 }")

# Many trials of some tenths of a second.
SHORT = TINY.replace("trials = 8", "trials = 60").replace("{ low = 5, high = 20 }", "{ low = 100, high = 400 }")


def write_study(text: str = TINY, name: str = "tiny.toml") -> Path:
    """A study file in the working directory."""
    path = Path(name)
    path.write_text(text)
    return path


def hpo(command: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its process group is gone afterwards."""
    with started(command, *arguments, **environment) as process:
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextlib.contextmanager
def started(command: str, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs; whatever is left of its process group is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"hpo.{command}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def read_until(process: subprocess.Popen[str], *wanted: str) -> str:
    """Read stderr up to a line that has all the words, and return the line."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if all(word in line for word in wanted):
            return line
    raise AssertionError(f"no line with {wanted}; there was: {''.join(seen)}")


def ledger(path: str = "hpo.db") -> list[tuple[int, str]]:
    """The numbers and states of all trials in a SQLite file, in the order of the numbers."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT number, state FROM trials ORDER BY number").fetchall()


def owners(path: str) -> set[str | None]:
    """Who holds the unfinished trials of a SQLite file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {owner for (owner,) in connection.execute("SELECT owner FROM hpo_leases WHERE NOT finished")}


def contents(url: str, study: str = "tiny") -> list[tuple[Any, ...]]:
    """All that the trials of a study are, but for the time when."""
    rdb = storage.open_storage(storage.parse_url(url))
    try:
        trials = optuna.load_study(study_name=study, storage=rdb).trials
    finally:
        storage.close(rdb)
    return [(t.number, t.state, t.params, t.intermediate_values, t.value, t.user_attrs) for t in trials]


def workers(launch_pid: int) -> list[int]:
    """The processes of a launch that hold the prepared data."""
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


def descendants(pid: int) -> list[int]:
    """The processes below a process, however deep."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def strict_json(text: str) -> Any:
    """Parse JSON that has no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)
