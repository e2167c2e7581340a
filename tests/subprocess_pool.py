"""Worker pool of plain subprocesses, as the smallest example of another backend."""

import multiprocessing.connection
import signal
import subprocess
from collections.abc import Sequence

from hpo.fleet.pool import Waitable, WorkerExit


class SubprocessPool:
    """Workers of a command such as ``python -m hpo.worker STUDY``. The leases of killed workers expire."""

    def __init__(self, command: Sequence[str], size: int) -> None:
        self._command, self._size, self._stopped = command, size, False
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def has_workers(self) -> bool:
        return bool(self.processes)

    @property
    def unconnected(self) -> int:
        return 0

    @property
    def is_alive(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def start(self) -> None:
        self.processes = [self._spawn() for _ in range(self._size)]

    def take_notes(self) -> list[str]:
        return []

    def poll(self) -> list[WorkerExit]:
        exited = [process for process in self.processes if process.poll() is not None]
        for process in exited:
            process.communicate()
            self.processes.remove(process)
        failed = [process for process in exited if process.returncode != 0 and not self._stopped]
        self.processes += [self._spawn() for _ in failed]
        return [
            WorkerExit(process.pid, f"exited with {process.returncode}", "", [], process.returncode == -signal.SIGKILL)
            for process in failed
        ]

    def wait(self, timeout_s: float, handles: Sequence[Waitable] = ()) -> None:
        # The output of a worker, which prints nothing, ends with its process.
        multiprocessing.connection.wait([*(process.stdout for process in self.processes), *handles], timeout_s)

    def stop(self) -> None:
        self._stopped = True
        for process in self.processes:
            process.terminate()

    def kill(self) -> None:
        self._stopped = True
        for process in self.processes:
            process.kill()
            process.communicate()

    def release_leases(self) -> None:
        self.processes = []

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
