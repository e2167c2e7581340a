"""Worker pool of processes on this machine."""

import contextlib
import functools
import multiprocessing.connection
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess

from hpo.errors import LimitError, WorkerRefusalError, WorkerStartupError
from hpo.fleet.forkserver import context, process_for
from hpo.fleet.pool import NOTHING_LOST, Waitable, WorkerExit
from hpo.fleet.shared_memory import Shared
from hpo.runner import worker_loop
from hpo.runner.limits import limit_memory
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import EXIT_OUTAGE, EXIT_REFUSED, WorkerConfig
from hpo.storage.leases import new_owner
from hpo.storage.trial_store import TrialStore

# Consecutive crashes of workers that held no trial.
MAX_STARTUP_CRASHES = 3
# Deaths of workers by the same error that no trial has caused, while no worker finishes a trial.
MAX_SAME_REFUSALS = 3
KILL_TIMEOUT_S = 1.0

# The parts of a message that differ between trials.
_DETAIL = re.compile(r"""\d+|'[^']*'|"[^"]*"|\([^)]*\)""")

# Exit code of a process whose fork server died.
_EXIT_UNKNOWN = 255


@dataclass
class _WorkerHandle:
    process: ForkServerProcess
    owner: str
    error_pipe: multiprocessing.connection.Connection
    progress: SharedProgress

    @functools.cached_property
    def exit_reason(self) -> str:
        """Error of the worker, else its signal or exit code; cached because the pipe is read once."""
        try:
            if self.error_pipe.poll():
                return str(self.error_pipe.recv())
        except EOFError:
            pass
        code = self.process.exitcode or 0
        if code == _EXIT_UNKNOWN:
            return "the server that it was forked from died"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


class LocalWorkerPool:
    """Workers of one launch, each a process forked from the fork server.

    Args:
        config: The work of each worker.
        size: The number of workers.
        store: The trials of the study.
        start_process: Function that starts a process for a function and its arguments.
        kill_timeout_s: The time that killed workers have to disappear.
    """

    def __init__(
        self,
        config: WorkerConfig,
        size: int,
        store: TrialStore,
        *,
        start_process: Callable[..., ForkServerProcess] = process_for,
        kill_timeout_s: float = KILL_TIMEOUT_S,
    ) -> None:
        self._config = config
        self._size = size
        self._store = store
        self._start_process = start_process
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

    @property
    def has_workers(self) -> bool:
        """Whether a worker is left that has not ended by itself."""
        return bool(self._workers)

    @property
    def is_alive(self) -> bool:
        """Whether the process of a worker is alive."""
        return any(worker.process.is_alive() for worker in list(self._workers))

    @property
    def unconnected(self) -> int:
        """Number of workers that wait because the database accepts no more connections."""
        return sum(bool(worker.progress.lacks_connection) for worker in list(self._workers))

    def start(self) -> None:
        """Start all workers."""
        self._workers = [self._spawn() for _ in range(self._size)]

    def poll(self) -> list[WorkerExit]:
        """Replace the workers that have exited and return their exits.

        A worker with exit code 0 found no work left and is not replaced.

        Raises:
            WorkerStartupError: if workers crash before they train a trial.
            WorkerRefusalError: if workers die of the same expected error, whether they hold trials or not.
        """
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            if worker.process.exitcode == 0:
                self._workers.remove(worker)
                self._done_by_gone += worker.progress.done
                continue
            # Kept in a list until all are recorded because the database can fail in between.
            self._exits.append(self._record_exit(worker))
            self._check_exit(self._exits[-1], worker.process.exitcode)
            self._replace(worker)
        exits, self._exits = self._exits, []
        return exits

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

    def _spawn(self) -> _WorkerHandle:
        owner, progress = new_owner(), Shared(SharedProgress)
        receiver, sender = context.Pipe(duplex=False)
        process = self._start_process(worker_loop.main, self._config, owner, sender, progress)
        sender.close()
        progress.close_file()
        return _WorkerHandle(process, owner, receiver, progress.value)

    def _replace(self, worker: _WorkerHandle) -> None:
        with self._spawn_lock:
            position = self._workers.index(worker)
            self._workers[position : position + 1] = [] if self._stopped else [self._spawn()]
        self._done_by_gone += worker.progress.done

    def _record_exit(self, worker: _WorkerHandle) -> WorkerExit:
        reason, _, details = worker.exit_reason.partition("\n")
        code = worker.process.exitcode
        killed = code in (-signal.SIGKILL, -signal.SIGTERM, _EXIT_UNKNOWN)
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

    def _end(self, send_signal: Callable[[ForkServerProcess], None]) -> None:
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
