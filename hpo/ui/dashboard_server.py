"""optuna-dashboard on the database of a study, and its process in a launch."""

import errno
import ipaddress
import logging
import math
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from typing import Any, Protocol, Self

from hpo.errors import DashboardError, HpoError
from hpo.fleet.forkserver import process_for
from hpo.storage.database.connection import Database
from hpo.storage.database.retry import retry_while_unavailable
from hpo.ui.request_guard import RequestGuard

PORTS_TRIED = 100


@dataclass(frozen=True)
class DashboardTimings:
    """Intervals of a launch's dashboard, and its clock.

    Attributes:
        restart_delay_s: The shortest time between two starts. It doubles with each restart.
        steady_after_s: The lifetime after which the delay is reset.
        kill_timeout_s: The time that a killed process has to disappear.
        clock: A monotonic clock, in seconds.
    """

    restart_delay_s: float = 2.0
    steady_after_s: float = 60.0
    kill_timeout_s: float = 1.0
    clock: Callable[[], float] = time.monotonic


def listen(host: str, port: int) -> socket.socket:
    """Open a socket on the port, or on the next free port.

    Raises:
        DashboardError: if the host is not an address of this machine, or no port is free.
    """
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        try:
            return socket.create_server((host, candidate), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise DashboardError(f"--host {host} --port {candidate}: {error.strerror or error}") from None
    raise DashboardError(f"--port {port}: this port and the next {PORTS_TRIED - 1} are taken; use another port")


def port_of(listener: socket.socket) -> int:
    """Return the port of a socket."""
    return int(listener.getsockname()[1])


def address(listener: socket.socket) -> str:
    """Return a URL of the dashboard on a socket that this machine can open."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def exposure(listener: socket.socket) -> str | None:
    """Return a warning if other machines can reach a socket, None if they cannot."""
    host = listener.getsockname()[0]
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return None
    return (
        f"--host {host}: the dashboard has no login, so everybody who reaches this machine can change and delete its "
        "studies; use --host 127.0.0.1 and a tunnel (ssh -L) unless you trust this network"
    )


def open_app(database: Database) -> Any:
    """Create the WSGI application for a database.

    Raises:
        StorageError: if the database cannot be used.
    """
    # The import is slow, and a launch without a dashboard does not need it.
    from optuna_dashboard import wsgi

    with database.translate_errors(), database.creation_lock(), database.opened() as rdb:
        return wsgi(rdb)


def serve(app: Any, listener: socket.socket, names: Iterable[str] = (), verbose: bool = False) -> None:
    """Serve an application until a stop signal interrupts the server.

    Args:
        app: The application.
        listener: The socket.
        names: Names under which the dashboard is opened, besides those of this machine.
        verbose: Whether the traceback of each failed request is logged. During an outage every request fails.
    """
    import waitress

    if not verbose:
        logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)
        # It warns of each request that waits for a thread, in the middle of a live view.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    waitress.serve(RequestGuard(app, listener.getsockname()[0], names), sockets=[listener], _quiet=True)


def serve_for_parent(database: Database, listener: socket.socket, names: Iterable[str] = ()) -> None:
    """Serve until this process is killed or its parent ends; wait for the end of an outage."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        app = retry_while_unavailable(open_app, math.inf)(database)
    except HpoError:
        # The parent reports the exit and starts another process.
        raise SystemExit(1) from None
    serve(app, listener, names)


class DashboardProcess:
    """Process of a launch's dashboard, started by the first request and restarted when it dies.

    Args:
        database: The database of the study.
        listener: The socket of the dashboard.
        names: Names under which the dashboard is opened, besides those of this machine.
        timings: The intervals between restarts.
        start_process: Function that starts a process for a function and its arguments.
    """

    def __init__(
        self,
        database: Database,
        listener: socket.socket,
        names: Iterable[str] = (),
        timings: DashboardTimings | None = None,
        start_process: Callable[..., ForkServerProcess] = process_for,
    ) -> None:
        self._database = database
        self._listener = listener
        self._names = tuple(names)
        self._timings = timings or DashboardTimings()
        self._start_process = start_process
        self._process: ForkServerProcess | None = None
        self._restart_delay_s = self._timings.restart_delay_s

    def ensure_running(self) -> bool:
        """Start or restart the process if it is needed; return whether it was restarted."""
        if self._process is None:
            if multiprocessing.connection.wait([self._listener], 0):
                self._start()
            return False
        age_s = self._timings.clock() - self._started_at
        if self._process.is_alive():
            if age_s > self._timings.steady_after_s:
                self._restart_delay_s = self._timings.restart_delay_s
            return False
        if age_s < self._restart_delay_s:
            return False
        self._restart_delay_s *= 2
        self._start()
        return True

    def stop(self) -> None:
        """Kill the process if it was started."""
        if self._process is not None:
            self._process.kill()
            self._process.join(self._timings.kill_timeout_s)

    def _start(self) -> None:
        self._started_at = self._timings.clock()
        self._process = self._start_process(serve_for_parent, self._database, self._listener, self._names)


class Dashboard(Protocol):
    """Dashboard of a launch."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def start(self) -> None:
        """Announce the dashboard."""

    def poll(self) -> None:
        """Keep the dashboard running."""


class NoDashboard:
    """Dashboard of a launch without a dashboard."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        """Do nothing."""

    def poll(self) -> None:
        """Do nothing."""


class LaunchDashboard:
    """Dashboard of a launch, with messages about its address and its restarts.

    Args:
        database: The database of the study.
        host: The address to listen on.
        port: The preferred port.
        note: The receiver of the messages.
        names: Names under which the dashboard is opened, besides those of this machine.

    Raises:
        DashboardError: if the host is not an address of this machine, or no port is free.
    """

    def __init__(
        self, database: Database, host: str, port: int, note: Callable[[str], None], names: Iterable[str] = ()
    ) -> None:
        self._database = database
        self._port = port
        self._note = note
        self._listener = listen(host, port)
        self._process = DashboardProcess(database, self._listener, names)
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        self._exit.enter_context(self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def start(self) -> None:
        """Announce the address."""
        if port_of(self._listener) != self._port:
            self._note(f"port {self._port} is taken")
        self._note(f"dashboard: {address(self._listener)}")
        if warning := exposure(self._listener):
            self._note(warning)
        self._exit.callback(self._stop)

    def poll(self) -> None:
        """Start the dashboard at its first request, and restart it if it died."""
        if self._process.ensure_running():
            self._note("the dashboard died; another takes its place")

    def _stop(self) -> None:
        self._process.stop()
        self._note(f"open the dashboard again with: python -m hpo.dashboard {self._database.argument}")


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
