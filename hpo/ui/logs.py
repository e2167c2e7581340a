"""Log lines on stderr: the plain message on a terminal, time and context elsewhere."""

import logging
import sys

from rich.console import Console

from hpo.ui.secrets import hide_passwords
from hpo.utils.text import printable

LOGGER = logging.getLogger("hpo")

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"


def stderr_console() -> Console:
    """Create a console on stderr, with control codes only on a terminal."""
    # Without a value, rich follows FORCE_COLOR, which continuous integration sets for log files.
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return Console(stderr=True, force_terminal=is_terminal)


def configure_logging(console: Console | None = None, *, verbose: bool = False, quiet: bool = False) -> None:
    """Send the log of hpo to the console.

    Args:
        console: The console of the messages; None for a console on stderr.
        verbose: Whether debug messages are shown.
        quiet: Whether the progress of downloads is hidden.
    """
    console = console or stderr_console()
    handler = _TerminalHandler(console) if console.is_terminal else _LineHandler(console)
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
    LOGGER.propagate = False
    logging.getLogger("hpo.data").setLevel(logging.WARNING if quiet else logging.NOTSET)


class _TerminalHandler(logging.Handler):
    """Handler that prints the plain message, above a live view if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._print(printable(self.format(record)))

    def format(self, record: logging.LogRecord) -> str:
        return hide_passwords(super().format(record))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _LineHandler(_TerminalHandler):
    """Handler that puts time, level, study, trial and worker before each line of a message."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._time = logging.Formatter("%(asctime)s", _TIME_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{self._time.formatTime(record, _TIME_FORMAT)} {record.levelname} {_context(record)}"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _context(record: logging.LogRecord) -> str:
    """Return the study, trial and worker of a record, as far as it has them."""
    study, trial, worker = (getattr(record, name, None) for name in ("study", "trial", "worker"))
    parts = [study, None if trial is None else f"trial {trial}", None if worker is None else f"worker {worker}"]
    context = " ".join(part for part in parts if part is not None)
    return f"{context}: " if context else ""
