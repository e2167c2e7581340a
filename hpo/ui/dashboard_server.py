"""optuna-dashboard on the database of a study, and its process in a launch."""

import errno
import logging
import math
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from multiprocessing.context import ForkServerProcess
from typing import Any

from hpo.errors import HpoError
from hpo.fleet.forkserver import KILLED_SECONDS, process_for
from hpo.storage import database as storage

PORTS_TRIED = 100
RESTART_SECONDS = 2.0  # between two starts of a launch's own
STEADY_SECONDS = 60.0  # after which it does not die all the time


class DashboardError(HpoError):
    """The dashboard cannot listen where it was told to."""


def listen(host: str, port: int) -> socket.socket:
    """A socket on the port, or on the next free one.

    Raises:
        DashboardError: the host is not one of this machine's addresses, or there is no free port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        try:
            return socket.create_server((host, candidate), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise DashboardError(f"--host {host} --port {candidate}: {error.strerror or error}") from None
    raise DashboardError(f"--port {port}: this port and the next {PORTS_TRIED - 1} are taken; give another")


def port_of(listener: socket.socket) -> int:
    """The port that it got."""
    return int(listener.getsockname()[1])


def address(listener: socket.socket) -> str:
    """The URL to open."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def open_app(storage_url: str) -> Any:
    """The WSGI application on this database.

    Raises:
        StorageError: the database cannot be used.
    """
    from optuna_dashboard import wsgi  # slow to import, and a launch without a dashboard does not need it

    url = storage.parse_url(storage_url)
    with storage.translate_errors(url), storage.creation_lock(url), storage.opened(url) as rdb:
        return wsgi(rdb)


def serve(app: Any, listener: socket.socket, verbose: bool = False) -> None:
    """Serve an application on a socket until the process ends.

    With ``verbose`` the traceback of every request is shown that fails, as all do while the database is away.
    """
    import waitress

    if not verbose:
        logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)
    waitress.serve(app, sockets=[listener], _quiet=True)


def serve_for_parent(storage_url: str, listener: socket.socket) -> None:
    """Serve until the parent process ends, or ends this one; wait for a database that is away."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        app = storage.retry_while_unavailable(open_app, timeout=math.inf, stop=threading.Event())(storage_url)
    except HpoError:  # the parent, which alone talks to people, starts another
        raise SystemExit(1) from None
    serve(app, listener)


class DashboardProcess:
    """The dashboard of a launch: a process of its own, from the first request on, and started again when it dies."""

    def __init__(self, storage_url: str, listener: socket.socket) -> None:
        self._storage_url = storage_url
        self._listener = listener
        self._process: ForkServerProcess | None = None
        self._pause = RESTART_SECONDS

    def tend(self) -> bool:
        """Start it if it is asked for, or died; tells whether it did. One that dies again and again has to wait."""
        if self._process is None:
            if multiprocessing.connection.wait([self._listener], 0):
                self._start()
            return False
        age = time.monotonic() - self._started
        if self._process.is_alive():
            if age > STEADY_SECONDS:
                self._pause = RESTART_SECONDS
            return False
        if age < self._pause:
            return False
        self._pause *= 2
        self._start()
        return True

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.join(KILLED_SECONDS)

    def _start(self) -> None:
        self._started = time.monotonic()
        self._process = process_for(serve_for_parent, self._storage_url, self._listener)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
