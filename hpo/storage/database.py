"""The database: the only module that knows its URL.

One SQLite file serves the processes of one machine, one PostgreSQL server those of many.
"""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

import optuna
import sqlalchemy
import tenacity
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from hpo.errors import StorageError

if TYPE_CHECKING:  # not needed for a SQLite file
    import psycopg

CONNECT_TIMEOUT = 5  # seconds, for each address of the host
SQLITE_BUSY_TIMEOUT = 60  # seconds that a writer waits for the others
RETRY_WAIT_MAX = 5  # seconds between two tries while the database is away

_SCHEMA_LOCK = 0x68706F  # "hpo": the advisory lock that guards the creation of tables and studies
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4}  # seconds, seconds, tries
_SENT_TIMEOUT = 30_000  # milliseconds until what was sent is given up
_READ_ONLY = "25006"  # what PostgreSQL says as a standby, or while its disk is nearly full
_IDLE_TIMEOUT = 10_000  # milliseconds after which the server ends a transaction in which nothing is said

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}

P = ParamSpec("P")
T = TypeVar("T")


class NoAnswerError(StorageError):
    """The database hangs."""


DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError, NoAnswerError)  # what its calls raise, Optuna's too


def parse_url(text: str) -> URL:
    """The database's URL with our driver.

    Raises:
        StorageError: not a URL of a SQLite file or a PostgreSQL database.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The text may hold a password: it is not repeated.
        raise StorageError(
            "--storage: not a database URL; use sqlite:///FILE.db or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    backend = url.get_backend_name()
    if backend not in DRIVERS:
        raise StorageError(f"--storage: {backend} is not supported; use sqlite:///FILE.db or postgresql://...")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise StorageError("--storage: the workers cannot share a database in memory; use sqlite:///FILE.db")
    return url.set(drivername=DRIVERS[backend])


def show_url(url: URL) -> str:
    """The URL as people may see it: no password, no options."""
    shown = url.set(query={}, drivername=url.get_backend_name())
    return shown.render_as_string(hide_password=True)


def check_reachable(url: URL) -> None:
    """Connect once.

    Raises:
        StorageError: the database cannot be reached, refuses the password, or its file cannot be opened.
    """
    if url.get_backend_name() == "sqlite" and not _sqlite_path(url).parent.is_dir():
        raise StorageError(f"cannot use {show_url(url)}: {_sqlite_path(url).parent} is not a folder; create it first")
    with translate_errors(url):
        engine = sqlalchemy.create_engine(url, **_engine_options(url))
        try:
            with engine.begin() as connection:
                if url.get_backend_name() == "sqlite":
                    # WAL stays with the file: readers (a dashboard) and the writer do not block each other.
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                connection.exec_driver_sql("SELECT 1")
        finally:
            engine.dispose()


def check_exists(url: URL) -> None:
    """Connect to a database that somebody made before.

    Raises:
        StorageError: it cannot be reached, or its file is missing.
    """
    if url.get_backend_name() == "sqlite" and not _sqlite_path(url).is_file():
        raise StorageError(f"{show_url(url)}: no such file; start a study with: python -m hpo.launch")
    check_reachable(url)


def open_storage(url: URL) -> RDBStorage:
    """Optuna's storage on this database, its tables created where they are missing.

    The tables are made under ``creation_lock``: processes that start together on a fresh database race otherwise.
    """
    # It warns of what it tries once more, and so do we.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    text = url.render_as_string(hide_password=False)
    with translate_errors(url):
        # Optuna treats the URL as a format string.
        try:
            rdb = RDBStorage(text.replace("{", "{{").replace("}", "}}"), engine_kwargs=_engine_options(url))
        except RuntimeError as error:  # the tables of another version of Optuna
            raise StorageError(f"cannot use {show_url(url)}: {error}") from error
    event.listen(rdb.engine, "connect", _do_not_sync if url.get_backend_name() == "sqlite" else _do_not_stall)
    rdb.engine.dispose()
    return rdb


def preload() -> None:
    """Import what ``open_storage`` will need, and what SQLAlchemy makes of it."""
    import alembic.migration
    import alembic.script  # noqa: F401
    import optuna.storages._rdb.models  # noqa: F401
    import sqlalchemy.dialects.sqlite
    import sqlalchemy.orm

    sqlalchemy.orm.configure_mappers()


@contextmanager
def opened(url: URL) -> Iterator[RDBStorage]:
    """Optuna's storage, open for good unless something goes wrong within."""
    rdb = open_storage(url)
    try:
        yield rdb
    except BaseException:
        close(rdb)
        raise


def close(rdb: RDBStorage) -> None:
    """Let go of every connection."""
    rdb.remove_session()
    rdb.engine.dispose()


@contextmanager
def creation_lock(url: URL) -> Iterator[None]:
    """One process at a time creates tables and studies in this database."""
    with _folder_lock(url) if url.get_backend_name() == "sqlite" else _advisory_lock(url):
        yield


@contextmanager
def translate_errors(url: URL) -> Iterator[None]:
    """Turn what the database says into one line without its password."""
    try:
        yield
    except DATABASE_ERRORS as error:
        raise StorageError(f"cannot use {show_url(url)}: {reason(error, url)}") from error


def retry_while_unavailable(function: Callable[P, T], timeout: float, stop: threading.Event) -> Callable[P, T]:
    """The function, tried again while the database is away: for ``timeout`` seconds, or until ``stop`` is set."""
    return tenacity.retry(
        retry=tenacity.retry_if_exception(is_outage),
        stop=tenacity.stop_any(tenacity.stop_after_delay(timeout), tenacity.stop_when_event_set(stop)),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=RETRY_WAIT_MAX),
        sleep=tenacity.sleep_using_event(stop),
        reraise=True,
    )(function)


def is_outage(error: BaseException) -> bool:
    """Whether the database went away or cannot be written, rather than refused what it was asked."""
    return isinstance(error, NoAnswerError) or any(
        told.connection_invalidated
        or isinstance(told, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
        or getattr(told.orig, "sqlstate", None) == _READ_ONLY
        for told in _told_by_driver(error)
    )


def _told_by_driver(error: BaseException) -> Iterator[DBAPIError]:
    """What the driver said, among the errors that led to this one: Optuna goes on in a session that has failed."""
    cause: BaseException | None = error
    while isinstance(cause, SQLAlchemyError | StorageInternalError | StorageError):
        if isinstance(cause, DBAPIError):
            yield cause
        cause = cause.__cause__ or cause.__context__


def single(engine: Engine) -> Engine:
    """The engine for transactions of a single statement: PostgreSQL wants no BEGIN and COMMIT around one."""
    return engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="AUTOCOMMIT")


def reason(error: Exception, url: URL) -> str:
    """What the database says, in one line without its password."""
    told = next(_told_by_driver(error), None)
    cause = told.orig if told is not None and told.orig else error
    text = str(cause)
    # A driver that tries several addresses says so on several lines.
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(cause).__name__)
    return line.replace(url.password, "***") if url.password else line


class BackgroundQuery(Generic[T]):
    """What is asked of a database that may hang, in a thread of its own that nobody has to wait for.

    Args:
        ask: asks, and returns the answer.
        then: called in that thread when the answer, or an error, has come.

    Attributes:
        answered: whether the answer, or an error, has come.
    """

    def __init__(self, ask: Callable[[], T], then: Callable[[], None] = lambda: None) -> None:
        self._answer: Future[T] = Future()
        self._asked_at = time.monotonic()
        self._then = then
        threading.Thread(target=self._run, args=(ask,), name="question", daemon=True).start()

    @property
    def answered(self) -> bool:
        return self._answer.done()

    @property
    def age(self) -> float:
        """The seconds since it was asked."""
        return time.monotonic() - self._asked_at

    def answer(self, seconds: float) -> T:
        """Wait for the answer.

        Raises:
            NoAnswerError: there is none yet.
            Exception: what the database raised.
        """
        try:
            return self._answer.result(seconds)
        except TimeoutError:
            if self.answered:
                raise
            raise NoAnswerError(f"no answer for {self.age:.0f} s") from None

    def _run(self, ask: Callable[[], T]) -> None:
        try:
            self._answer.set_result(ask())
        except Exception as error:  # noqa: BLE001  # the border of the thread: raised where the answer is asked for
            self._answer.set_exception(error)
        self._then()


@contextmanager
def suppress_outages() -> Iterator[None]:
    """Within: what needs the database is left undone while it is away."""
    try:
        yield
    except DATABASE_ERRORS as error:
        if not is_outage(error):
            raise


def _do_not_sync(connection: sqlite3.Connection, _: object) -> None:
    # In WAL mode the death of a process loses nothing. That of the machine may lose the last transactions, which
    # leaves the study whole, as it was a moment before; to wait for the disk at each would be the slowest part.
    connection.execute("PRAGMA synchronous=NORMAL")


def _do_not_stall(connection: "psycopg.Connection", _: object) -> None:
    # A process that is frozen within a transaction would keep the rows that it has locked from everybody.
    connection.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_TIMEOUT}".encode())
    connection.commit()


def _engine_options(url: URL) -> dict[str, object]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_BUSY_TIMEOUT}}
    return {
        "pool_pre_ping": True,
        # A server whose machine vanished never says so: without these a connection would wait for hours.
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT,
            "application_name": "hpo",
            "tcp_user_timeout": _SENT_TIMEOUT,
            **_KEEPALIVE,
        },
    }


def _sqlite_path(url: URL) -> Path:
    return Path(str(url.database)).absolute()


@contextmanager
def _folder_lock(url: URL) -> Iterator[None]:
    # The folder itself: a lock file would stay behind, and closing a descriptor of the database would drop
    # the locks that SQLite holds on it.
    folder = os.open(_sqlite_path(url).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def _advisory_lock(url: URL) -> Iterator[None]:
    engine = sqlalchemy.create_engine(url, **_engine_options(url))
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")
            yield
    finally:
        engine.dispose()
