"""Worker pool of processes on this machine."""

import contextlib
import multiprocessing.connection
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

from hpo.errors import LimitError, WorkerRefusalError, WorkerStartupError
from hpo.fleet.forkserver import context, process_for
from hpo.fleet.job import NOTE_PREFIX
from hpo.fleet.pool import NOTHING_LOST, Waitable, WorkerExit
from hpo.fleet.shared_memory import Shared
from hpo.runner import worker_loop
from hpo.runner.limits import limit_memory
from hpo.runner.trial_runner import NO_TRIAL, SharedProgress
from hpo.runner.worker_errors import EXIT_CRASHED, EXIT_OUTAGE, EXIT_REFUSED
from hpo.runner.worker_loop import WorkerConfig
from hpo.storage.tables.leases import new_owner
from hpo.storage.trial_store import TrialStore

# Consecutive crashes of workers that held no trial.
MAX_STARTUP_CRASHES = 3
# Deaths of workers by the same error that no trial has caused, while no worker finishes a trial.
MAX_SAME_REFUSALS = 3
KILL_TIMEOUT_S = 1.0

# The parts of a message that differ between trials.
_DETAIL = re.compile(r"""\d+|'[^']*'|"[^"]*"|\([^)]*\)""")

# Exit code of a process whose fork server died.
EXIT_SERVER_DIED = 255


class WorkerProcess(Protocol):
    """Process of a worker, with the names of ``multiprocessing.Process``."""

    @property
    def pid(self) -> int | None:
        """The process id."""

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal; None while the process is alive."""

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process has ended, even if its children live on."""

    def is_alive(self) -> bool:
        """Return whether the process is alive."""

    def terminate(self) -> None:
        """Let the process stop."""

    def kill(self) -> None:
        """Kill the process."""

    def join(self, timeout: float) -> None:
        """Wait for the end of the process."""


class StartWorker(Protocol):
    """Function that starts a worker."""

    def __call__(
        self, slot: int, owner: str, error_pipe: Connection, progress: Shared[SharedProgress]
    ) -> WorkerProcess:
        """Start the worker of a slot.

        Args:
            slot: A number below the size of the pool, which belongs to one worker at a time.
            owner: The worker's name, which is unique on all machines.
            error_pipe: The pipe through which the worker sends the text of an error; the caller closes its copy.
            progress: The worker's position; the caller closes its file.

        Raises:
            WorkerStartupError: if no process can be started.
        """


def fork_workers(config: WorkerConfig) -> StartWorker:
    """Return a function that forks workers of a study file from the fork server."""

    def start(slot: int, owner: str, error_pipe: Connection, progress: Shared[SharedProgress]) -> WorkerProcess:
        return process_for(worker_loop.main, config, owner, error_pipe, progress)

    return start


def forked_pool(config: WorkerConfig, size: int, store: TrialStore) -> "LocalWorkerPool":
    """Return a pool of workers that are forked from the fork server."""
    return LocalWorkerPool(fork_workers(config), size, store, unknown_exit_code=EXIT_SERVER_DIED)


@dataclass
class _WorkerHandle:
    process: WorkerProcess
    slot: int
    owner: str
    error_pipe: Connection
    progress: SharedProgress
    unknown_exit_code: int | None
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    def read_pipe(self) -> None:
        """Read the messages that the worker has sent."""
        try:
            while self.error_pipe.poll():
                message = self.error_pipe.recv_bytes()
                if message.startswith(NOTE_PREFIX):
                    self.notes.append(_decoded(message.removeprefix(NOTE_PREFIX)))
                else:
                    self.error = _decoded(message)
        except (EOFError, OSError):
            # The worker has died, perhaps before it had sent all bytes.
            pass

    @property
    def exit_code(self) -> int | None:
        """The exit code. A user's function can end its process with a code of hpo, but it sends no error."""
        code = self.process.exitcode
        return EXIT_CRASHED if code in (EXIT_REFUSED, EXIT_OUTAGE) and self.error is None else code

    @property
    def exit_reason(self) -> str:
        """Error of the worker, else its signal or exit code."""
        self.read_pipe()
        if self.error is not None:
            return self.error
        code = self.process.exitcode or 0
        if code == self.unknown_exit_code:
            return "the server that it was forked from died"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _decoded(message: bytes) -> str:
    return message.decode(errors="backslashreplace")


class LocalWorkerPool:
    """Workers of one launch, each a process on this machine.

    Args:
        start_worker: Function that starts the worker of a slot; the replacement of a worker gets its slot.
        size: The number of workers.
        store: The trials of the study.
        unknown_exit_code: The exit code of a process that was killed in an unknown way; None if there is none.
        kill_timeout_s: The time that killed workers have to disappear.
    """

    def __init__(
        self,
        start_worker: StartWorker,
        size: int,
        store: TrialStore,
        *,
        unknown_exit_code: int | None = None,
        kill_timeout_s: float = KILL_TIMEOUT_S,
    ) -> None:
        self._start_worker = start_worker
        self._size = size
        self._store = store
        self._unknown_exit_code = unknown_exit_code
        self._kill_timeout_s = kill_timeout_s
        self._workers: list[_WorkerHandle] = []
        self._exits: list[WorkerExit] = []
        self._startup_crashes = 0
        self._refusals: Counter[str] = Counter()
        # The trials that were done at the last refusal, and those of workers that are gone.
        self._done_at_refusal = 0
        self._done_by_gone = 0
        self._spawn_lock = threading.Lock()
        self._stopped = False
        # The messages of workers in the order of their arrival, and those that were taken.
        self._notes: dict[str, None] = {}
        self._taken_notes: set[str] = set()

    @property
    def has_workers(self) -> bool:
        """Whether a worker is left that has not ended by itself."""
        return bool(self._workers)

    @property
    def is_alive(self) -> bool:
        """Whether the process of a worker is alive."""
        return any(worker.process.is_alive() for worker in list(self._workers))

    @property
    def has_begun(self) -> bool:
        """Whether a worker runs a trial, or has ended one."""
        workers = list(self._workers)
        return any(worker.progress.done or worker.progress.number != NO_TRIAL for worker in workers)

    @property
    def unconnected(self) -> int:
        """Number of workers that wait because the database accepts no more connections."""
        return sum(bool(worker.progress.lacks_connection) for worker in list(self._workers))

    def start(self) -> None:
        """Start all workers."""
        self._workers = [self._spawn(slot) for slot in range(self._size)]

    def poll(self) -> list[WorkerExit]:
        """Replace the workers that have exited and return their exits.

        A worker that runs no trial and has exit code 0 found no work left and is not replaced.

        Raises:
            WorkerStartupError: if workers crash before they train a trial.
            WorkerRefusalError: if workers die of the same expected error, whether they hold trials or not.
        """
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            worker.read_pipe()
            self._notes.update(dict.fromkeys(worker.notes))
            if self._has_ended_by_itself(worker):
                self._workers.remove(worker)
                self._done_by_gone += worker.progress.done
                continue
            # Kept in a list until all are recorded because the database can fail in between.
            self._exits.append(self._record_exit(worker))
            self._check_exit(self._exits[-1], worker.exit_code)
            self._replace(worker)
        exits, self._exits = self._exits, []
        return exits

    def _has_ended_by_itself(self, worker: _WorkerHandle) -> bool:
        if self._stopped:
            # Python removes the handler of the signal while it exits.
            return worker.process.exitcode in (0, -signal.SIGTERM)
        # A user's function can end the process with any exit code.
        return worker.process.exitcode == 0 and worker.progress.number == NO_TRIAL

    def take_notes(self) -> list[str]:
        """Return the messages for the user that workers have sent, each text once in a launch."""
        for worker in list(self._workers):
            worker.read_pipe()
            self._notes.update(dict.fromkeys(worker.notes))
        new = [note for note in self._notes if note not in self._taken_notes]
        self._taken_notes.update(new)
        return new

    def wait(self, timeout_s: float, handles: Sequence[Waitable] = ()) -> None:
        """Wait until a worker exits or a handle is readable, or until the timeout."""
        sentinels = [worker.process.sentinel for worker in self._workers]
        multiprocessing.connection.wait([*sentinels, *(handle.fileno() for handle in handles)], timeout_s)

    def stop(self) -> None:
        """Let the workers finish the current epoch, keep their checkpoints and end."""
        self._end(lambda process: process.terminate())

    def kill(self) -> None:
        """Kill the workers and wait until they are gone."""
        self._end(lambda process: process.kill())
        deadline = time.monotonic() + self._kill_timeout_s
        for worker in list(self._workers):
            worker.process.join(max(0.0, deadline - time.monotonic()))

    def release_leases(self) -> None:
        """Release the trials that killed workers still hold."""
        while self._workers:
            self._store.release_all(self._workers[-1].owner)
            self._workers.pop()

    def _spawn(self, slot: int) -> _WorkerHandle:
        owner, progress = new_owner(), Shared(SharedProgress)
        progress.value.reset()
        receiver, sender = context.Pipe(duplex=False)
        try:
            process = self._start_worker(slot, owner, sender, progress)
        finally:
            sender.close()
            progress.close_file()
        return _WorkerHandle(process, slot, owner, receiver, progress.value, self._unknown_exit_code)

    def _replace(self, worker: _WorkerHandle) -> None:
        with self._spawn_lock:
            position = self._workers.index(worker)
            self._workers[position : position + 1] = [] if self._stopped else [self._spawn(worker.slot)]
        self._done_by_gone += worker.progress.done

    def _record_exit(self, worker: _WorkerHandle) -> WorkerExit:
        reason, _, details = worker.exit_reason.partition("\n")
        code = worker.exit_code
        killed = code in (-signal.SIGKILL, -signal.SIGTERM, self._unknown_exit_code)
        if code in (EXIT_REFUSED, EXIT_OUTAGE):
            trials = self._store.release_all(worker.owner)
        else:
            # A kill outside the trial's own code does not count against the trial.
            step = None if killed and not worker.progress.in_trial_code else worker.progress.step
            trials = self._store.record_death(worker.owner, reason, worker.progress.epoch, step)
        return WorkerExit(worker.process.pid or 0, reason, details, trials, killed)

    def _check_exit(self, worker_exit: WorkerExit, code: int | None) -> None:
        if code == EXIT_REFUSED:
            self._check_refusal(worker_exit.reason)
        elif code != EXIT_OUTAGE:
            self._check_startup(worker_exit)

    def _check_refusal(self, reason: str) -> None:
        done = self._done_by_gone + sum(worker.progress.done for worker in self._workers)
        if done > self._done_at_refusal:
            # The cause was temporary or concerns few trials.
            self._refusals.clear()
        self._done_at_refusal = done
        kind = _DETAIL.sub("", reason)
        self._refusals[kind] += 1
        if self._refusals[kind] >= MAX_SAME_REFUSALS:
            raise WorkerRefusalError(f"{MAX_SAME_REFUSALS} workers died of the same error: {reason}; {NOTHING_LOST}")

    def _check_startup(self, worker_exit: WorkerExit) -> None:
        if not worker_exit.killed:
            self._startup_crashes = 0 if worker_exit.trials else self._startup_crashes + 1
        if self._startup_crashes >= MAX_STARTUP_CRASHES:
            raise WorkerStartupError(f"the workers crash before they train a trial: {worker_exit.reason}")

    def _end(self, send_signal: Callable[[WorkerProcess], None]) -> None:
        with self._spawn_lock:
            self._stopped = True
        for worker in list(self._workers):
            if worker.process.is_alive():
                send_signal(worker.process)


def check_memory_limit(limit: int) -> None:
    """Check in a process like a worker that a memory limit is large enough.

    Raises:
        LimitError: if the process needs more.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = process_for(_try_memory_limit, limit, sender)
    sender.close()
    # If the process is killed, its pipe ends without a message. Then the workers report the error.
    with receiver, contextlib.suppress(EOFError):
        if error := receiver.recv():
            raise LimitError(error)
    process.join()


def _try_memory_limit(limit: int, pipe: multiprocessing.connection.Connection) -> None:
    try:
        limit_memory(limit)
    except LimitError as error:
        pipe.send(str(error))
    else:
        pipe.send("")
