"""Advice for errors of the database that a user can fix."""

import re

from hpo.storage.database.retry import driver_message

# The driver gives no code for a refused connection, only the server's text.
_NO_CONNECTION = re.compile(
    "too many clients|too many connections|connection slots are reserved|no more connections allowed|query_wait_timeout"
)

MORE_CONNECTIONS = "use fewer --workers, or raise the limit of connections of the server"

_ADVICE = {
    _NO_CONNECTION: MORE_CONNECTIONS,
    re.compile("unsupported startup parameter"): "the pooler refuses this option; remove it from the URL",
    re.compile("password authentication failed"): "in a URL, write @ as %40, / as %2F, # as %23 and % as %25",
    re.compile("readonly database|read-only transaction|permission denied for"): "the study needs a user who may write",
    re.compile("database is locked"): "another program keeps it locked; end that program",
    re.compile("disk I/O error"): "check the disk; if a -wal or -shm file was removed, end all processes of the study",
    re.compile("too many open files", re.IGNORECASE): "raise the limit with: ulimit -n 4096",
}


def with_advice(message: str) -> str:
    """Append the advice for an error of the database to its message."""
    advice = next((text for pattern, text in _ADVICE.items() if pattern.search(message)), None)
    return f"{message}; {advice}" if advice else message


def lacks_connection(error: Exception) -> bool:
    """Return whether the server refused a connection because it has too many."""
    return _NO_CONNECTION.search(driver_message(error)) is not None
