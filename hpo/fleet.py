"""N workers on one machine, each replaced when it dies."""

import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running

from hpo import worker
from hpo.errors import HpoError
from hpo.leases import Leases, new_owner
from hpo.signals import signals_blocked
from hpo.worker import WorkerConfig

MAX_BARREN_DEATHS = 3  # in a row, of workers that failed before they held a trial

# What the workers import, and what the main module does: every process that is forked runs that once more.
_PRELOADED = ["hpo.worker", "hpo.supervisor", "hpo.export", "hpo.dashboard", "scipy.stats"]

_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Death:
    """A worker that died, and the trials that it held.

    ``details`` is its traceback, where that was asked for; ``killed`` says that somebody else ended it.
    """

    pid: int
    reason: str
    details: str
    trials: list[int]
    killed: bool


class WorkersDieError(HpoError):
    """Workers die before they get to a trial."""


@dataclass
class _Member:
    process: ForkServerProcess
    owner: str
    last_words: multiprocessing.connection.Connection


class Fleet:
    """The workers of one launch."""

    def __init__(self, config: WorkerConfig, size: int, leases: Leases) -> None:
        self._config = config
        self._size = size
        self._leases = leases
        self._members: list[_Member] = []
        self._barren_deaths = 0

    def start(self) -> None:
        """Start all workers."""
        self._members = [self._hire() for _ in range(self._size)]

    def tend(self) -> list[Death]:
        """Bury the dead and hire others in their place; a worker that found nothing left to do just goes.

        Raises:
            WorkersDieError: workers die before they get to a trial.
        """
        deaths = []
        for member in [member for member in self._members if not member.process.is_alive()]:
            if member.process.exitcode != 0:
                deaths.append(self._bury(member))
            self._members.remove(member)
        for death in deaths:
            if not death.killed:
                self._barren_deaths = 0 if death.trials else self._barren_deaths + 1
            if self._barren_deaths >= MAX_BARREN_DEATHS:
                raise WorkersDieError(f"the workers die before they get to a trial: {death.reason}")
            self._members.append(self._hire())
        return deaths

    @property
    def working(self) -> bool:
        """Whether there is anything left to do: a worker goes only when there is not."""
        return bool(self._members)

    @property
    def alive(self) -> bool:
        """Whether any worker's process is."""
        return any(member.process.is_alive() for member in self._members)

    def stop(self) -> None:
        """Tell the workers to stop after the epoch that they are in."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every worker that is still there for good, and free its trials."""
        self._signal(signal.SIGKILL)
        for member in self._members:
            member.process.join()
        while self._members:
            self._leases.retire(self._members.pop().owner)

    def _hire(self) -> _Member:
        owner = new_owner()
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = process_for(worker.main, self._config, owner, sender)
        sender.close()
        return _Member(process, owner, receiver)

    def _bury(self, member: _Member) -> Death:
        reason, _, details = _last_words(member).partition("\n")
        return Death(
            pid=member.process.pid or 0,
            reason=reason,
            details=details,
            trials=self._leases.bury(member.owner, reason),
            killed=member.process.exitcode in (-signal.SIGKILL, -signal.SIGTERM),
        )

    def _signal(self, number: signal.Signals) -> None:
        for member in self._members:
            if member.process.is_alive() and member.process.pid:
                os.kill(member.process.pid, number)


def process_for(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start a process, forked from a server that has imported what it needs; it ends with this one.

    BLAS threads are capped before NumPy is loaded there: trials are what runs in parallel.
    """
    capped = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with signals_blocked(), _environment(capped):
        _context.set_forkserver_preload(_PRELOADED)
        ensure_running()
    process = _context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _last_words(member: _Member) -> str:
    try:
        if member.last_words.poll():
            return str(member.last_words.recv())
    except EOFError:
        pass
    code = member.process.exitcode or 0
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
