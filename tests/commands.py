"""The real commands, as processes of their own that never outlive a test."""

import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psutil
import sqlalchemy

from hpo.storage import database as storage

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

# Many trials of some tenths of a second; the first few are enough where nobody is hit more than once or twice.
SHORT = TINY.replace("trials = 8", "trials = 60").replace("{ low = 5, high = 20 }", "{ low = 100, high = 300 }")
FEW = 12


# The same trials with PyTorch.
TORCH = TINY.replace("[train]", '[train]\nbackend = "torch"')


def write_study(text: str = TINY, name: str = "tiny.toml") -> Path:
    """A study file in the working directory."""
    path = Path(name)
    path.write_text(text)
    return path


def patched(code: str) -> dict[str, str]:
    """The environment in which every Python process runs this code first."""
    Path("sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}


class Gates:
    """Let trials wait in their third epoch until their gate is opened: a lock on a file of their number."""

    _PATCH = """
import fcntl, json, os
import hpo.models.trainer, hpo.runner.worker_loop

train_epoch = hpo.models.trainer.Trainer._train_epoch
watch = hpo.runner.worker_loop._watch

def wait_and_train(training, after_step):
    gate = f"gates/{json.loads(training._made_from)['seed'][1]}"
    if training.epoch == 2 and os.path.exists(gate):
        open(gate + ".reached", "w").close()
        with open(gate) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    return train_epoch(training, after_step)

def watch_and_tell(stop):
    watch(stop)
    open(f"gates/{os.getpid()}.stopping", "w").close()

hpo.models.trainer.Trainer._train_epoch = wait_and_train
hpo.runner.worker_loop._watch = watch_and_tell
"""

    def __init__(self, numbers: Iterable[int]) -> None:
        Path("gates").mkdir()
        self._files = {number: os.open(f"gates/{number}", os.O_CREAT) for number in numbers}
        for file in self._files.values():
            fcntl.flock(file, fcntl.LOCK_EX)
        self.environment = patched(self._PATCH)

    def __enter__(self) -> "Gates":
        return self

    def __exit__(self, *_: object) -> None:
        self.open(*self._files)

    @property
    def reached(self) -> set[int]:
        """Those that have waited, or wait."""
        return {int(path.stem) for path in Path("gates").glob("*.reached")}

    @property
    def stopping(self) -> set[int]:
        """The processes of the workers that know that they should stop."""
        return {int(path.stem) for path in Path("gates").glob("*.stopping")}

    def open(self, *numbers: int) -> None:
        """Let these go on."""
        for number in numbers:
            os.close(self._files.pop(number))


# What most tests are about comes before the confirmation.
UNCONFIRMED = {"HPO_CONFIRM": "0"}


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
        env=os.environ | UNCONFIRMED | environment,
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


def until(process: subprocess.Popen[str], happened: Callable[[], object]) -> None:
    """Wait for something to happen before a launch ends."""
    while not happened():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
        assert process.poll() is None, f"it ended too soon: {process.stderr.read()}"


class LeaseRow(NamedTuple):
    """What the database knows of who trains a trial."""

    number: int
    attempt: int
    owner: str | None
    expired: bool
    finished: bool


def leases(path: str = "hpo.db") -> list[LeaseRow]:
    """Of all trials in a SQLite file, in the order of their numbers; none while there is no table yet."""
    expired = "expires < (julianday('now') - 2440587.5) * 86400"
    query = f"SELECT number, attempt, owner, {expired}, finished FROM hpo_leases ORDER BY number"
    if not Path(path).exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as connection:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'hpo_leases'").fetchone()
        return [LeaseRow(*row) for row in connection.execute(query)] if there else []


def count_finished(url: str) -> int:
    """How many trials have ended in any database that has leases."""
    return _count(url, "finished")


def count_paused(url: str) -> int:
    """How many trials wait at a rung in any database that has leases."""
    return _count(url, "paused")


def _count(url: str, condition: str) -> int:
    engine = sqlalchemy.create_engine(storage.parse_url(url))
    try:
        with engine.connect() as connection:
            return connection.exec_driver_sql(f"SELECT count(*) FROM hpo_leases WHERE {condition}").scalar_one()
    finally:
        engine.dispose()


def ledger(path: str = "hpo.db") -> list[tuple[int, str]]:
    """The numbers and states of all trials in a SQLite file, in the order of the numbers."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT number, state FROM trials ORDER BY number").fetchall()


def owners() -> set[str | None]:
    """Who holds the unfinished trials."""
    return {lease.owner for lease in leases() if not lease.finished}


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


def outliving(process: subprocess.Popen[str], pids: list[int]) -> list[int]:
    """Those that are there when a launch has just ended."""
    process.wait()  # before its output is read, which ends with the last of them
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


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


def listening(launch_pid: int, address: str) -> psutil.Process:
    """The process below a launch that answers at an address."""
    port, found = int(address.rpartition(":")[2]), []
    for pid in descendants(launch_pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            sockets = [socket for socket in process.net_connections("tcp") if socket.status == psutil.CONN_LISTEN]
            found += [process for socket in sockets if socket.laddr.port == port]
    (process,) = found
    return process


def strict_json(text: str) -> Any:
    """Parse JSON that has no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)
