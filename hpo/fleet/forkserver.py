"""Processes that are forked from a server with the program already imported."""

import contextlib
import ctypes
import functools
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import NoReturn

import tenacity

from hpo.errors import OutputError, WorkerStartupError
from hpo.fleet.shared_memory import Shared
from hpo.utils.signals import signals_blocked
from hpo.utils.streams import protect_worker_streams

START_TIMEOUT_S = 30.0

# The path of a socket may have 103 bytes on macOS and 107 on Linux. multiprocessing appends 32 bytes to the folder.
_MAX_SOCKET_FOLDER_BYTES = 103 - 32
# Folders in place of a temporary folder whose path is too long.
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # multiprocessing creates a private folder in it

# Threads of BLAS are capped before NumPy is imported because the parallel work of a launch is its trials.
_BLAS_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

context = multiprocessing.get_context("forkserver")


@contextmanager
def importing() -> Iterator[None]:
    """Exclude the objects of imported modules from garbage collection for good.

    The collector would spend time on these objects, and would copy the memory that forked processes share.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def server_running(preload: Sequence[str] = ()) -> Iterator[None]:
    """Run the fork server for the duration of the block.

    Args:
        preload: The modules that the server imports before it forks the first process.
    """
    context.set_forkserver_preload(list(preload))
    try:
        _choose_socket_folder()
        _ensure_server()
        yield
    finally:
        with signals_blocked():
            _kill_server()
            # multiprocessing prints a traceback at exit if a cleaner of temporary files has removed its folder.
            with contextlib.suppress(OSError):
                Path(get_temp_dir()).mkdir(mode=0o700, exist_ok=True)


def _raise_startup_error(_: tenacity.RetryCallState) -> NoReturn:
    raise WorkerStartupError(f"the server that forks the workers dies at its start; {sys.executable} may be unusable")


@tenacity.retry(
    # The server died during the request. The next attempt starts a new server.
    retry=tenacity.retry_if_exception_type((EOFError, ConnectionError)),
    stop=tenacity.stop_after_delay(START_TIMEOUT_S),
    wait=tenacity.wait_fixed(0.1),
    retry_error_callback=_raise_startup_error,
)
def process_for(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start a daemon process with stop signals blocked."""
    _ensure_server()
    process = context.Process(target=_run, args=(_server_pid(), target, arguments), daemon=True)
    with _no_tracker_warning():
        process.start()
    return process


def _run(server_pid: ctypes.c_int64, target: Callable[..., None], arguments: Sequence[object]) -> None:
    protect_worker_streams()
    server_pid.value = os.getppid()
    target(*arguments)


@functools.cache
def _server_pid() -> Shared[ctypes.c_int64]:
    """Return shared memory for the process id of the fork server, which the standard library does not publish."""
    return Shared(ctypes.c_int64)


def _choose_socket_folder() -> None:
    """Create multiprocessing's temporary folder where socket paths are short enough.

    Raises:
        OutputError: if no folder is writable.
    """
    before = tempfile.tempdir
    try:
        if len(os.fsencode(tempfile.gettempdir())) > _MAX_SOCKET_FOLDER_BYTES:
            tempfile.tempdir = next(filter(_is_usable, _SHORT_FOLDERS), tempfile.tempdir)
        # multiprocessing keeps the first folder that it creates.
        get_temp_dir()
    except FileNotFoundError:
        raise OutputError("no folder for temporary files can be written; set TMPDIR to such a folder") from None
    finally:
        tempfile.tempdir = before


def _is_usable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _ensure_server() -> None:
    with _no_tracker_warning():
        # The resource tracker unblocks both stop signals when it starts, so it starts before they are blocked.
        with signals_blocked({signal.SIGHUP}):
            resource_tracker.ensure_running()
        with signals_blocked(), _environment(_BLAS_ENVIRONMENT):
            forkserver.ensure_running()


def _kill_server() -> None:
    """Kill the fork server, if it has forked a process.

    A server that is frozen (SIGSTOP) never reports the end of its processes, and the interpreter waits for these
    reports at exit. A server that has not forked ends by itself because its pipe to this process closes.
    """
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        # A process id is not reused while it belongs to an unreaped child. For any other process the check raises.
        if (pid := _server_pid().value.value) and _is_child(pid):
            os.kill(pid, signal.SIGKILL)


def _is_child(pid: int) -> bool:
    """Return whether a child process runs.

    Raises:
        ChildProcessError: if the process is no child.
    """
    if hasattr(os, "waitid"):
        # multiprocessing expects that only its own calls reap the server.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    # macOS with Python before 3.13 has no waitid.
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


@contextmanager
def _no_tracker_warning() -> Iterator[None]:
    """Suppress the warning about a restarted resource tracker; hpo has no tracked resources."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "resource_tracker")
        yield


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
