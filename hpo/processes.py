"""How a launch starts its processes: forked from a server that has imported what they need."""

import contextlib
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

from hpo.signals import signals_blocked

START_TIMEOUT = 30  # seconds
KILLED_SECONDS = 1.0  # in which the server tells of a death, unless it is frozen

# What the workers import, and what the main module does: every process that is forked runs that once more.
_PRELOADED = ["hpo.worker", "hpo.supervisor", "hpo.export", "hpo.dashboard", "scipy.stats"]

context = multiprocessing.get_context("forkserver")


@tenacity.retry(
    # The server died while it was asked: a new one is started.
    retry=tenacity.retry_if_exception_type((EOFError, ConnectionError)),
    stop=tenacity.stop_after_delay(START_TIMEOUT),
    wait=tenacity.wait_fixed(0.1),
    reraise=True,
)
def process_for(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start a process, born with stop signals blocked; it ends with this one.

    BLAS threads are capped before NumPy is loaded there: trials are what runs in parallel.
    """
    capped = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with warnings.catch_warnings():
        # That multiprocessing's tracker was killed and is started again; nothing of ours is tracked.
        warnings.filterwarnings("ignore", "resource_tracker")
        with signals_blocked(), _environment(capped):
            context.set_forkserver_preload(_PRELOADED)
            forkserver.ensure_running()
        process = context.Process(target=target, args=arguments, daemon=True)
        process.start()
    return process


@contextmanager
def servers_ended() -> Iterator[None]:
    """Within: processes are started. Then the servers that multiprocessing has for it are gone, too.

    By themselves they end when they notice that this process has. Killed, so that one that is frozen ends as well.
    """
    try:
        yield
    finally:
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
