"""Workers that are fresh interpreters: no fork, no multiprocessing, so that an objective may start processes.

The launch passes an ``InterpreterStarter`` to ``LocalWorkerPool``. The module that it names is run with
``python -m MODULE DESCRIPTOR``, and calls ``hpo.fleet.job.receive``::

    def main() -> None:
        received = receive(int(sys.argv[1]))
        with received.errors_sent(verbose=received.job["verbose"]):
            ...  # ends soon after received.stop is set
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from hpo.errors import WorkerStartupError
from hpo.fleet.gpus import Gpus
from hpo.fleet.job import job_file
from hpo.fleet.logs import WorkerLogs
from hpo.fleet.shared_memory import Shared
from hpo.runner.trial_runner import SharedProgress
from hpo.utils.signals import signals_blocked


@dataclass(frozen=True)
class InterpreterStarter:
    """Function that starts the workers of a launch as fresh interpreters.

    Attributes:
        module: The module to run. It calls ``hpo.fleet.job.receive``.
        job: The JSON object that each worker receives.
        logs: The log files of the workers.
        gpus: The GPUs of the workers.
        turns: The descriptor of the file of the workers' ``Turns``.
        defaults: Environment variables of the workers. A variable of the launch has precedence.
    """

    module: str
    job: Mapping[str, Any]
    logs: WorkerLogs
    gpus: Gpus
    turns: int
    defaults: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, slot: int, owner: str, error_pipe: Connection, progress: Shared[SharedProgress]
    ) -> "InterpreterProcess":
        """Start the worker of a slot.

        Raises:
            WorkerStartupError: if the system cannot start a process.
        """
        output = self.logs.open(slot, progress.value)
        try:
            with (
                job_file(self.job, slot, owner, error_pipe, progress, self.turns, output.inherited) as inherited,
                # The worker unblocks the signals when it can handle them.
                signals_blocked(),
            ):
                popen = subprocess.Popen(  # noqa: S603  # Python and a module of hpo
                    [sys.executable, "-m", self.module, str(inherited[0])],
                    stdin=subprocess.DEVNULL,
                    stdout=output.descriptor,
                    stderr=output.descriptor,
                    pass_fds=inherited,
                    env={**self.defaults, **os.environ, **self.gpus.environment(slot)},
                    # Ctrl-C does not reach the worker, because the launch stops it. A kill reaches its children, too.
                    start_new_session=True,
                )
        except OSError as error:
            raise WorkerStartupError(f"no process can be started for a worker: {error.strerror}") from None
        finally:
            output.close()
        return InterpreterProcess(popen, output.finish)


class InterpreterProcess:
    """Process of a worker and its process group; implements the protocol ``WorkerProcess``.

    The children that a worker leaves are killed at its end, however it ends.

    Args:
        popen: The process, which leads a process group.
        on_end: Called after its end, before ``is_alive`` is False.
    """

    def __init__(self, popen: subprocess.Popen[bytes], on_end: Callable[[], None]) -> None:
        self._popen, self._on_end = popen, on_end
        self._exitcode: int | None = None
        # No process is signalled after its id can belong to another process.
        self._lock = threading.Lock()
        self._is_reaped = False
        # The end of a pipe that the worker holds would be held by its children, too.
        self._receiver, self._sender = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._wait, name=f"end of process {popen.pid}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal; None while the process is alive."""
        return self._exitcode

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable after the end of the process."""
        return self._receiver.fileno()

    def is_alive(self) -> bool:
        """Return whether the process is alive."""
        return self._exitcode is None

    def terminate(self) -> None:
        """Let the worker stop; its children are not interrupted."""
        self._signal(os.kill, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the worker and its children."""
        self._signal(os.killpg, signal.SIGKILL)

    def join(self, timeout: float) -> None:
        """Wait for the end of the process."""
        self._thread.join(timeout)

    def _wait(self) -> None:
        if hasattr(os, "waitid"):
            # macOS with Python before 3.13 has no waitid.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._popen.wait()
        with self._lock:
            self._is_reaped = True
            # The id of the group is in use until its leader is reaped.
            _send(os.killpg, self.pid, signal.SIGKILL)
            exitcode = self._popen.wait()
        self._on_end()
        self._exitcode = exitcode
        # The end of the pipe is no sign, because a fork of the launch would keep the pipe open.
        self._sender.send_bytes(b"ended")
        self._sender.close()

    def _signal(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        with self._lock:
            if not self._is_reaped:
                _send(send, self.pid, number)


def _send(send: Callable[[int, int], None], pid: int, number: signal.Signals) -> None:
    # macOS refuses to signal a group of which only the ended leader is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, number)
