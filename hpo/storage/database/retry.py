"""Retries during database outages, and queries that may hang."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, ParamSpec, TypeVar

import sqlalchemy
import tenacity
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hpo.errors import DatabaseTimeoutError, StorageError

MIN_RETRY_WAIT_S = 0.1
MAX_RETRY_WAIT_S = 5.0

# PostgreSQL reports this state on a standby, and while its disk is nearly full.
_READ_ONLY_SQLSTATE = "25006"
# SQLite's code for a statement that cannot be executed, for example because its table is missing.
_SQLITE_ERROR = 1

DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError, DatabaseTimeoutError)

P = ParamSpec("P")
T = TypeVar("T")


def retry_while_unavailable(
    function: Callable[P, T],
    timeout_s: float,
    stop: threading.Event | None = None,
    max_wait_s: float = MAX_RETRY_WAIT_S,
) -> Callable[P, T]:
    """Return a function that retries during an outage.

    Args:
        function: The function to call.
        timeout_s: Time after which the outage's error is raised.
        stop: Event that ends the retries and raises the outage's error.
        max_wait_s: Longest wait between two retries. The waits grow from ``MIN_RETRY_WAIT_S`` and are random.
    """
    stop = stop or threading.Event()
    return tenacity.retry(
        retry=tenacity.retry_if_exception(is_outage),
        stop=tenacity.stop_any(tenacity.stop_after_delay(timeout_s), tenacity.stop_when_event_set(stop)),
        wait=tenacity.wait_random_exponential(multiplier=MIN_RETRY_WAIT_S, max=max_wait_s),
        sleep=tenacity.sleep_using_event(stop),
        reraise=True,
    )(function)


def is_outage(error: BaseException) -> bool:
    """Return whether the database is unreachable, read-only or hanging.

    An error about the statement itself, such as a violated constraint or a missing table, is not an outage.
    """
    return isinstance(error, DatabaseTimeoutError) or any(map(_is_transient, _driver_errors(error)))


def _is_transient(error: DBAPIError) -> bool:
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY_SQLSTATE:
        return True
    if getattr(error.orig, "sqlite_errorcode", None) == _SQLITE_ERROR:
        return False
    return isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)


@contextmanager
def suppress_outages() -> Iterator[None]:
    """Suppress the errors of an outage. The rest of the block is skipped."""
    try:
        yield
    except DATABASE_ERRORS as error:
        if not is_outage(error):
            raise


def driver_message(error: Exception) -> str:
    """Return the driver's message in one line. It may contain the password."""
    driver_error = next(_driver_errors(error), None)
    cause = driver_error.orig if driver_error is not None and driver_error.orig else error
    # A driver that tries several addresses reports each on its own line.
    lines = (line.strip() for line in str(cause).splitlines())
    return next(filter(None, lines), type(cause).__name__)


def _driver_errors(error: BaseException) -> Iterator[DBAPIError]:
    """Yield the driver's errors in the exception chain.

    Optuna may continue in a failed session, so that the first error is only the context of the raised one.
    """
    cause: BaseException | None = error
    while isinstance(cause, SQLAlchemyError | StorageInternalError | StorageError):
        if isinstance(cause, DBAPIError):
            yield cause
        cause = cause.__cause__ or cause.__context__


class BackgroundQuery(Generic[T]):
    """Query in a daemon thread, so that a hanging database cannot block the caller.

    Args:
        query: The function that queries the database.
        on_done: Called in the thread after the query has returned or raised.
    """

    def __init__(self, query: Callable[[], T], on_done: Callable[[], None] = lambda: None) -> None:
        self._future: Future[T] = Future()
        self._started_at = time.monotonic()
        self._on_done = on_done
        threading.Thread(target=self._run, args=(query,), name="background query", daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether the query has returned or raised."""
        return self._future.done()

    @property
    def age(self) -> float:
        """The seconds since the query started."""
        return time.monotonic() - self._started_at

    def result(self, timeout_s: float) -> T:
        """Wait for the query's result.

        Raises:
            DatabaseTimeoutError: if the query has not returned within ``timeout_s``.
            Exception: the query's own error.
        """
        try:
            return self._future.result(timeout_s)
        except TimeoutError:
            if self.done:
                raise
            raise DatabaseTimeoutError(f"no answer for {self.age:.0f} s") from None

    def _run(self, query: Callable[[], T]) -> None:
        try:
            self._future.set_result(query())
        except Exception as error:  # noqa: BLE001  # the border of the thread: result() raises it
            self._future.set_exception(error)
        self._on_done()
