"""How a launch starts its processes: forked from a server that has imported what they need."""

import contextlib
import gc
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from typing import Any

import tenacity

from hpo.utils.signals import signals_blocked

START_TIMEOUT = 30  # seconds
KILLED_SECONDS = 1.0  # in which the server tells of a death, unless it is frozen

_PRELOADED = "hpo.tuning._preload"

context = multiprocessing.get_context("forkserver")


@contextmanager
def importing() -> Iterator[None]:
    """Within: what is imported is there to stay, and not looked through for garbage, now or ever.

    It would take time, also when a process ends, and copy the memory that forked processes share.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def server_running() -> Iterator[None]:
    """Within: the server from which processes are forked imports what they need. Then it is gone."""
    try:
        _ensure_server()
        yield
    finally:
        with signals_blocked():
            _end_servers()


@tenacity.retry(
    # The server died while it was asked: a new one is started.
    retry=tenacity.retry_if_exception_type((EOFError, ConnectionError)),
    stop=tenacity.stop_after_delay(START_TIMEOUT),
    wait=tenacity.wait_fixed(0.1),
    reraise=True,
)
def process_for(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start a process, born with stop signals blocked; it ends with this one."""
    _ensure_server()
    process = context.Process(target=target, args=arguments, daemon=True)
    with _no_word_of_the_tracker():
        process.start()
    return process


def _ensure_server() -> None:
    # BLAS threads are capped before NumPy is loaded there: trials are what runs in parallel.
    capped = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with _no_word_of_the_tracker():
        resource_tracker.ensure_running()  # it unblocks both signals when it starts
        with signals_blocked(), _environment(capped):
            context.set_forkserver_preload([_PRELOADED])
            forkserver.ensure_running()


@contextmanager
def _no_word_of_the_tracker() -> Iterator[None]:
    """Within: nothing is said if it was killed and is started again; nothing of ours is tracked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "resource_tracker")
        yield


def _end_servers() -> None:
    """End what multiprocessing has started for itself; killed, so that one that is frozen ends as well.

    By themselves they end when they notice that this process has.
    """
    servers: dict[str, Any] = {
        "_forkserver_pid": forkserver._forkserver,
        "_pid": resource_tracker._resource_tracker,
    }
    for name, server in servers.items():
        if (pid := getattr(server, name)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            server._stop()


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
