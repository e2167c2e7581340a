"""Errors of a worker as text for its parent process, and as exit codes."""

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpo.errors import HpoError
from hpo.storage.database.retry import is_outage

EXIT_CRASHED = 1
# An expected error, which no trial has caused.
EXIT_REFUSED = 3
# The database stayed unavailable for longer than the storage timeout.
EXIT_OUTAGE = 4

# The parent reads a text after the worker's end, so it has to fit into the buffer of a pipe.
_MAX_TEXT_BYTES = 32_000


@contextmanager
def errors_sent(send: Callable[[bytes], object], stop: threading.Event, *, verbose: bool) -> Iterator[None]:
    """Send an error of the block to the parent process and exit with the code of its kind.

    An outage of the database after a stop is no error.

    Args:
        send: The ``send_bytes`` of the pipe to the parent.
        stop: Set when the worker has to stop.
        verbose: Whether the text has a traceback after the first line.

    Raises:
        SystemExit: after an error.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  # the border of the process: the parent gets the error
        if stop.is_set() and is_outage(error):
            return
        text = str(error) if isinstance(error, HpoError) else f"{type(error).__name__}: {error}"
        # The parent can have died.
        with contextlib.suppress(OSError):
            send(_shortened(f"{text}\n{traceback.format_exc()}" if verbose else text))
        raise SystemExit(_exit_code(error)) from None


def _shortened(text: str) -> bytes:
    """Encode a text without its middle part if it is too long."""
    content = text.encode(errors="backslashreplace")
    half = _MAX_TEXT_BYTES // 2
    return content if len(content) <= 2 * half else content[:half] + b" ... " + content[-half:]


def _exit_code(error: Exception) -> int:
    if is_outage(error):
        return EXIT_OUTAGE
    return EXIT_REFUSED if isinstance(error, HpoError) else EXIT_CRASHED
