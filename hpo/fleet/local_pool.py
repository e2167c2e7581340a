"""N workers on one machine, each replaced when it dies."""

import contextlib
import functools
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from multiprocessing.sharedctypes import RawValue

from hpo.errors import HpoError
from hpo.fleet.forkserver import KILLED_SECONDS, context, process_for
from hpo.runner import worker_loop as worker
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import EXIT_REFUSED, WorkerConfig
from hpo.storage.leases import Leases, new_owner

MAX_STARTUP_CRASHES = 3  # in a row, of workers that failed before they held a trial

_EXIT_UNKNOWN = 255  # what is left to tell when the server that the worker was forked from died


@dataclass(frozen=True)
class WorkerExit:
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
class _WorkerHandle:
    process: ForkServerProcess
    owner: str
    error_pipe: multiprocessing.connection.Connection
    place: SharedProgress

    @functools.cached_property
    def cause_of_death(self) -> str:
        """Its last words, which can be received once."""
        try:
            if self.error_pipe.poll():
                return str(self.error_pipe.recv())
        except EOFError:
            pass
        code = self.process.exitcode or 0
        if code == _EXIT_UNKNOWN:
            return "the server that it was forked from died"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


class Fleet:
    """The workers of one launch."""

    def __init__(self, config: WorkerConfig, size: int, leases: Leases) -> None:
        self._config = config
        self._size = size
        self._leases = leases
        self._members: list[_WorkerHandle] = []
        self._barren_deaths = 0
        self._spawn_lock = threading.Lock()
        self._stopped = False

    def start(self) -> None:
        """Start all workers."""
        self._members = [self._spawn() for _ in range(self._size)]

    def tend(self) -> Iterator[WorkerExit]:
        """Bury the dead, hire another in the place of each, and tell of it.

        A worker that found nothing left to do just goes.

        Raises:
            WorkersDieError: workers die before they get to a trial.
        """
        for member in [member for member in self._members if not member.process.is_alive()]:
            if member.process.exitcode == 0:
                self._members.remove(member)
                continue
            death = self._record_exit(member)
            if not death.killed:
                self._barren_deaths = 0 if death.trials else self._barren_deaths + 1
            if self._barren_deaths >= MAX_STARTUP_CRASHES:
                raise WorkersDieError(f"the workers die before they get to a trial: {death.reason}")
            self._replace(member)
            yield death

    @property
    def working(self) -> bool:
        """Whether there is anything left to do: a worker goes only when there is not."""
        return bool(self._members)

    @property
    def alive(self) -> bool:
        """Whether any worker's process is."""
        return any(member.process.is_alive() for member in list(self._members))

    @property
    def sentinels(self) -> list[int]:
        """What gets ready when a worker's process ends, to be waited for."""
        return [member.process.sentinel for member in self._members]

    def stop(self) -> None:
        """Tell the workers to stop after the epoch that they are in."""
        with self._spawn_lock:
            self._stopped = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every worker that is still there for good."""
        with self._spawn_lock:
            self._stopped = True
        self._signal(signal.SIGKILL)
        deadline = time.monotonic() + KILLED_SECONDS
        for member in list(self._members):
            member.process.join(max(0.0, deadline - time.monotonic()))

    def retire(self) -> None:
        """Free what the workers held when they were ended."""
        while self._members:
            self._leases.retire(self._members[-1].owner)
            self._members.pop()

    def _spawn(self) -> _WorkerHandle:
        owner, place = new_owner(), RawValue(SharedProgress)
        receiver, sender = context.Pipe(duplex=False)
        process = process_for(worker.main, self._config, owner, sender, place)
        sender.close()
        return _WorkerHandle(process, owner, receiver, place)

    def _replace(self, member: _WorkerHandle) -> None:
        with self._spawn_lock:
            place = self._members.index(member)
            self._members[place : place + 1] = [] if self._stopped else [self._spawn()]

    def _record_exit(self, member: _WorkerHandle) -> WorkerExit:
        reason, _, details = member.cause_of_death.partition("\n")
        code = member.process.exitcode
        killed = code in (-signal.SIGKILL, -signal.SIGTERM, _EXIT_UNKNOWN)
        if code == EXIT_REFUSED:
            held = self._leases.retire(member.owner)
        else:
            step = None if killed and not member.place.in_trial_code else member.place.step
            held = self._leases.record_death(member.owner, reason, member.place.epoch, step)
        return WorkerExit(member.process.pid or 0, reason, details, held, killed)

    def _signal(self, number: signal.Signals) -> None:
        for member in list(self._members):
            if member.process.is_alive() and member.process.pid:
                with contextlib.suppress(ProcessLookupError):  # it was, a moment ago
                    os.kill(member.process.pid, number)
