"""Real commands in processes of their own that end with the test."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psutil
import sqlalchemy
from command_hooks import GATES

from benchmarks.measuring import has_mapped_data
from hpo.storage.database.connection import close

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

# An epoch takes milliseconds, so that these trials take hours.
ENDLESS = TINY.replace('"tiny"', '"endless"').replace("{ low = 5, high = 20 }", "{ low = 10000000, high = 10000000 }")

# Each of many trials takes some tenths of a second.
SHORT = TINY.replace("trials = 8", "trials = 60").replace("{ low = 5, high = 20 }", "{ low = 100, high = 300 }")

# The trials of SHORT that a test with one or two interruptions needs.
FEW = 12

TORCH = TINY.replace("[train]", '[train]\nbackend = "torch"')

# Most tests are about the search, which comes before the confirmation.
UNCONFIRMED = {"HPO_CONFIRM": "0"}

POLL_INTERVAL_S = 0.05


def write_study(text: str = TINY, name: str = "tiny.toml") -> Path:
    """Write a study file into the working directory."""
    path = Path(name)
    path.write_text(text)
    return path


def hooked(*calls: str) -> dict[str, str]:
    """Return an environment in which each Python process calls functions of ``command_hooks`` first.

    Args:
        calls: Calls as Python source, for example ``"gate_trials()"``.
    """
    lines = ["import command_hooks", *(f"command_hooks.{call}" for call in calls)]
    Path("sitecustomize.py").write_text("\n".join(lines) + "\n")
    return {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}


class Gates:
    """Gates of trials: a trial with a gate waits after its second step until the gate is opened."""

    def __init__(self, numbers: Iterable[int]) -> None:
        GATES.mkdir(exist_ok=True)
        self._closed = set(numbers)
        for number in self._closed:
            self._path(number).touch()
        self.environment = hooked("gate_trials()")

    def __enter__(self) -> "Gates":
        return self

    def __exit__(self, *_: object) -> None:
        self.open(*self._closed)

    @property
    def reached(self) -> set[int]:
        """The trials that have come to their gate."""
        return {int(path.stem) for path in GATES.glob("*.reached")}

    def open(self, *numbers: int) -> None:
        """Open the gates of these trials."""
        for number in self._closed & set(numbers):
            self._path(number).unlink()
        self._closed -= set(numbers)

    @staticmethod
    def _path(number: int) -> Path:
        return GATES / str(number)


def hpo(command: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with started(command, *arguments, **environment) as process:
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextlib.contextmanager
def started(command: str, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command. Its process group is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"hpo.{command}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | UNCONFIRMED | environment,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def read_until(process: subprocess.Popen[str], *words: str) -> str:
    """Read stderr up to a line that contains all the words, and return the line."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if all(word in line for word in words):
            return line
    raise AssertionError(f"no line contains {words}; stderr was: {''.join(lines)}")


def wait_until(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    """Poll a condition until it holds. The command may not end before."""
    while not condition():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL_INTERVAL_S)
        assert process.poll() is None, f"the command ended too early: {process.stderr.read()}"


class LeaseRow(NamedTuple):
    """The lease of a trial."""

    number: int
    attempt: int
    owner: str | None
    expired: bool
    finished: bool


def leases(path: str = "hpo.db") -> list[LeaseRow]:
    """Return the leases in a SQLite file by trial number; none while their table does not exist."""
    expired = "expires < (julianday('now') - 2440587.5) * 86400"
    query = f"SELECT number, attempt, owner, {expired}, finished FROM hpo_leases ORDER BY number"
    if not Path(path).exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as connection:
        table = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'hpo_leases'").fetchone()
        return [LeaseRow(*row) for row in connection.execute(query)] if table else []


def owners() -> set[str | None]:
    """Return the owners of the unfinished trials; None is the owner of a released trial."""
    return {lease.owner for lease in leases() if not lease.finished}


def count_finished(url: str) -> int:
    """Count the finished trials in any database that has leases."""
    return _count(url, "finished")


def count_paused(url: str) -> int:
    """Count the paused trials in any database that has leases."""
    return _count(url, "paused")


def count_resumable(url: str) -> int:
    """Count the running trials with a checkpoint in any database that has leases."""
    return _count(url, "owner IS NOT NULL AND epoch > 0 AND NOT finished")


def _count(url: str, condition: str) -> int:
    engine = sqlalchemy.create_engine(_with_driver(url))
    try:
        with engine.connect() as connection:
            return connection.exec_driver_sql(f"SELECT count(*) FROM hpo_leases WHERE {condition}").scalar_one()
    finally:
        engine.dispose()


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def ledger(path: str = "hpo.db") -> list[tuple[int, str]]:
    """Return number and state of each trial in a SQLite file by number."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT number, state FROM trials ORDER BY number").fetchall()


@contextlib.contextmanager
def storage(url: str = "sqlite:///hpo.db") -> Iterator[optuna.storages.RDBStorage]:
    """Open a database as another client of Optuna does."""
    rdb = optuna.storages.RDBStorage(_with_driver(url))
    try:
        yield rdb
    finally:
        close(rdb)


def contents(url: str, study: str = "tiny") -> list[tuple[Any, ...]]:
    """Return everything that Optuna reads of a study's trials, except their times."""
    with storage(url) as rdb:
        trials = optuna.load_study(study_name=study, storage=rdb).trials
    return [(t.number, t.state, t.params, t.intermediate_values, t.value, t.user_attrs) for t in trials]


def workers(launch_pid: int) -> list[int]:
    """Return the processes of a launch that have mapped the prepared data."""
    return [pid for pid in descendants(launch_pid) if has_mapped_data(pid)]


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a command and wait until its other processes have ended."""
    processes = descendants(process.pid)
    process.kill()
    process.wait()
    wait_until_gone(processes)


def wait_for_end(process: subprocess.Popen[str], processes: list[int], workers: list[int] = ()) -> None:
    """Wait for the end of a command and of its other processes; its workers have ended before the command."""
    # The output of a command ends with its last process, so it is read later.
    process.wait()
    assert [pid for pid in workers if _is_running(pid)] == []
    wait_until_gone(processes)


def wait_until_gone(pids: list[int]) -> None:
    """Wait until processes have ended."""
    while any(map(_is_running, pids)):
        time.sleep(POLL_INTERVAL_S)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children, and so on."""
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


def find_listener(launch_pid: int, address: str) -> psutil.Process:
    """Return the process of a launch that listens at an address."""
    port, found = int(address.rpartition(":")[2]), []
    for pid in descendants(launch_pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            sockets = [socket for socket in process.net_connections("tcp") if socket.status == psutil.CONN_LISTEN]
            found += [process for socket in sockets if socket.laddr.port == port]
    (listener,) = found
    return listener


def strict_json(text: str) -> Any:
    """Parse JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not valid JSON")

    return json.loads(text, parse_constant=refuse)
