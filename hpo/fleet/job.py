"""Job of a worker that is a fresh interpreter, as JSON in a file that the worker inherits."""

import atexit
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from hpo.fleet.shared_memory import Shared, anonymous_file, attach
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_errors import errors_sent
from hpo.utils.signals import STOP_SIGNALS
from hpo.utils.streams import protect_worker_streams
from hpo.utils.turns import Turns

# The time that a worker has to end after the death of its launch.
ORPHAN_TIMEOUT_S = 7.0
POLL_INTERVAL_S = 0.5
# The start of a message through the pipe that is no error.
NOTE_PREFIX = b"note: "


@contextmanager
def job_file(
    job: Mapping[str, Any],
    slot: int,
    owner: str,
    error_pipe: Connection,
    progress: Shared[SharedProgress],
    turns: int,
    others: tuple[int, ...] = (),
) -> Iterator[tuple[int, ...]]:
    """Write a job for ``receive``; yield the descriptors that the worker has to inherit, the job's file first.

    Args:
        job: The JSON object of the job. It can have secrets: the file has no name, and is in memory on Linux.
        slot: The worker's slot.
        owner: The worker's name.
        error_pipe: The pipe for the text of an error.
        progress: The worker's position.
        turns: The descriptor of the file of the workers' ``Turns``.
        others: Descriptors that the worker only keeps open.
    """
    inherited = (error_pipe.fileno(), progress.descriptor, turns, *others)
    message = {"job": dict(job), "slot": slot, "owner": owner, "parent": os.getpid(), "descriptors": inherited}
    with os.fdopen(anonymous_file(0), "wb+") as file:
        file.write(json.dumps(message, allow_nan=False).encode())
        file.flush()
        yield file.fileno(), *inherited


@dataclass(frozen=True)
class Received:
    """Job of this process, which is a worker.

    Attributes:
        job: The JSON object of the launch.
        slot: The worker's slot, counted from 0.
        owner: The worker's name, which is unique on all machines.
        progress: The worker's position, which the launch reads.
        stop: Set when the worker has to stop, because of a stop signal or of the death of the launch.
        error_pipe: The pipe for the text of an error.
        turns: The turns of the workers of the launch.
        handle_signals: Lets stop signals set the stop event, also after a script has set handlers of its own.
    """

    job: dict[str, Any]
    slot: int
    owner: str
    progress: SharedProgress
    stop: threading.Event
    error_pipe: Connection
    turns: Turns
    handle_signals: Callable[[], None]

    def note(self, message: str) -> None:
        """Send a message for the user to the launch."""
        # The launch can have died.
        with suppress(OSError):
            self.error_pipe.send_bytes(NOTE_PREFIX + message.encode())

    def errors_sent(self, *, verbose: bool) -> AbstractContextManager[None]:
        """Return a block whose error is sent to the launch and ends this process with the exit code of its kind.

        Args:
            verbose: Whether the error has a traceback.
        """
        return errors_sent(self.error_pipe.send_bytes, self.stop, verbose=verbose)


def receive(descriptor: int, orphan_timeout_s: float = ORPHAN_TIMEOUT_S) -> Received:
    """Return the job of this process, and let stop signals and the death of the launch set its stop event.

    Call it once, in the main thread, at the start of the process. Afterwards, child processes inherit no descriptor of
    the worker except stdout and stderr, and they have the default actions of all signals. All output of this process
    goes to its log, and no failure to write it is an error.

    Args:
        descriptor: The file of the job, the argument of the process.
        orphan_timeout_s: The time to end after the death of the launch. Then this process and its children are killed.
    """
    protect_worker_streams()
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        message = json.load(file)
    for inherited in message["descriptors"]:
        os.set_inheritable(inherited, False)
    error_pipe, progress, turns, *_ = message["descriptors"]
    stop, handle_signals = _stop_event(message["parent"], orphan_timeout_s)
    return Received(
        job=message["job"],
        slot=message["slot"],
        owner=message["owner"],
        progress=attach(SharedProgress, progress),
        stop=stop,
        error_pipe=Connection(error_pipe, readable=False),
        turns=Turns(turns),
        handle_signals=handle_signals,
    )


def _stop_event(parent: int, orphan_timeout_s: float) -> tuple[threading.Event, Callable[[], None]]:
    """Return an event that a stop signal or the death of the parent process sets, and the setter of the handlers."""
    stop = threading.Event()
    # A handler may interrupt the main thread within a method of the event, so another thread sets it. The signals are
    # not blocked for this thread, because child processes of the objective would inherit that.
    received: queue.SimpleQueue[int] = queue.SimpleQueue()

    def handle_signals() -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, _: received.put(number))

    handle_signals()
    _keep_forks_stoppable()
    # The first registered function is called last, after other modules have ended their processes.
    atexit.register(_end_orphan, parent)
    watch = threading.Thread(
        target=_watch, args=(stop, received, parent, orphan_timeout_s), name="stop signals", daemon=True
    )
    watch.start()
    # The launch blocks the signals until they have their handler.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return stop, handle_signals


def _watch(stop: threading.Event, received: "queue.SimpleQueue[int]", parent: int, orphan_timeout_s: float) -> None:
    while os.getppid() == parent:
        with suppress(queue.Empty):
            received.get(timeout=POLL_INTERVAL_S)
            stop.set()
    stop.set()
    time.sleep(orphan_timeout_s)
    # The objective has not come to its next report or checkpoint.
    _kill_group()


def _end_orphan(parent: int) -> None:
    """End the children that this process leaves, which is the task of the launch while the launch is alive."""
    if os.getppid() != parent:
        _kill_group()


def _kill_group() -> None:
    os.killpg(os.getpid(), signal.SIGKILL)


def _keep_forks_stoppable() -> None:
    """Give the stop signals their default action in forks of this process, also at the first moment of a fork."""
    saved = threading.local()

    def block() -> None:
        saved.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, saved.mask)

    def reset() -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)
