"""The database of a study: its URL, connections, locks and error messages.

A SQLite file serves the processes of one machine, a PostgreSQL server the processes of many.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection

from hpo.errors import StorageError
from hpo.storage.database import sqlite_file
from hpo.storage.database.advice import with_advice
from hpo.storage.database.retry import DATABASE_ERRORS, driver_message
from hpo.storage.database.urls import parse_url, secrets_of, shown_url, storage_argument

# The tables that hpo writes are those of this Optuna.
SUPPORTED_OPTUNA = ">=5.0,<5.1"
OPTUNA_SCHEMA_VERSION = 12
# The advisory lock for the creation of tables and studies: "hpo" in ASCII.
_CREATION_LOCK_ID = 0x68706F
_LOCK_POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class StorageTimings:
    """Timeouts of connections and leases. All processes of a study need the same lease timings.

    Attributes:
        connect_timeout_s: Time for a connection to each address of the host.
        busy_timeout_s: Time that a SQLite writer waits for other writers.
        idle_in_transaction_timeout_s: Time after which PostgreSQL ends an idle transaction. A process that is frozen
            within a transaction would otherwise keep its row locks.
        unacknowledged_timeout_s: Time after which PostgreSQL's client drops a connection that acknowledges nothing.
        lease_s: Length of a lease.
        restart_grace_s: Time after a server restart in which no expired lease is claimed, so that the owners can renew
            their leases first.
    """

    connect_timeout_s: int = 5
    busy_timeout_s: float = 60.0
    idle_in_transaction_timeout_s: float = 10.0
    unacknowledged_timeout_s: float = 30.0
    lease_s: float = 10.0
    restart_grace_s: float = 10.0


@dataclass(frozen=True)
class Database:
    """A SQLite file or a PostgreSQL database. Create it with ``Database.parse``."""

    _url: URL
    timings: StorageTimings = StorageTimings()
    # The URL of the connections, if the file is only read.
    _source: URL | None = None

    @classmethod
    def parse(cls, text: str, timings: StorageTimings | None = None) -> Self:
        """Parse a database URL.

        Raises:
            StorageError: if the text is not the URL of a SQLite file or of a PostgreSQL database.
        """
        return cls(parse_url(text), timings or StorageTimings())

    def __repr__(self) -> str:
        """Return the URL without password and options."""
        return f"Database({self.shown})"

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a SQLite file."""
        return self._url.get_backend_name() == "sqlite"

    @property
    def shown(self) -> str:
        """The URL for messages, without password and options."""
        return shown_url(self._url)

    @property
    def argument(self) -> str:
        """The option --storage for a command that the user can paste into a shell, without secrets."""
        return storage_argument(self._url)

    @property
    def connection_url(self) -> str:
        """The URL with its password, for another process. Do not show it."""
        return self._absolute_url.render_as_string(hide_password=False)

    def absolute(self) -> Self:
        """Return the same database for any working folder."""
        return replace(self, _url=self._absolute_url)

    @property
    def _absolute_url(self) -> URL:
        return self._url.set(database=str(self._path)) if self.is_sqlite else self._url

    def hide_secrets(self, text: str) -> str:
        """Replace the URL's secrets in a text."""
        for secret in secrets_of(self._url):
            text = text.replace(secret, "***")
        return text

    def error_summary(self, error: Exception) -> str:
        """Return the driver's message with advice, in one line without secrets."""
        return with_advice(self.hide_secrets(driver_message(error)))

    def check_reachable(self) -> None:
        """Check that the database accepts connections, or that its file can be created.

        Raises:
            StorageError: if the database is unreachable or read-only, refuses the password, or is not a database.
        """
        if self.is_sqlite:
            sqlite_file.check_writable(self._path, self.shown)
            if not self._path.exists():
                return
        self._check_connection()

    def check_exists(self) -> None:
        """Connect to an existing database.

        Raises:
            StorageError: if the database is unreachable, or its file is missing.
        """
        if self.is_sqlite and not self._path.is_file():
            raise StorageError(f"{self.shown}: no such file; start a study with: python -m hpo.launch {self.argument}")
        self._check_connection()

    @contextmanager
    def reading(self) -> Iterator[Self]:
        """Provide this database for reading. It needs no permission to write.

        Raises:
            StorageError: if the database is unreachable, or its file is missing.
        """
        if not self.is_sqlite or not self._path.is_file() or sqlite_file.is_writable(self._path):
            self.check_exists()
            yield self
            return
        with sqlite_file.readable_url(self._path) as source:
            database = replace(self, _source=source)
            database.check_exists()
            yield database

    def open(self) -> RDBStorage:
        """Open Optuna's storage and create its missing tables.

        Call it under ``creation_lock`` if tables may be missing, because processes that start together race otherwise.

        Raises:
            StorageError: if the database is unreachable, or its tables belong to another version of Optuna.
        """
        check_optuna_version()
        # Optuna logs a warning for an operation that is retried, and hpo reports outages itself.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        text = self._connection_url.render_as_string(hide_password=False)
        # Optuna treats the URL as a format string.
        template = text.replace("{", "{{").replace("}", "}}")
        with self.translate_errors():
            # Optuna's own check of its version needs a second connection.
            rdb = RDBStorage(
                template,
                engine_kwargs=self._engine_options,
                skip_compatibility_check=True,
                skip_table_creation=self._is_read_only,
            )
            if rdb.get_current_version() != rdb.get_head_version():
                raise StorageError(f"cannot use {self.shown}: another version of Optuna created its tables")
        if self.is_sqlite:
            event.listen(rdb.engine, "connect", _relax_sync)
            sqlite_file.watch(rdb.engine, self._path, reads_only=self._is_read_only)
        else:
            event.listen(rdb.engine, "begin", partial(_limit_idle_time, self.timings.idle_in_transaction_timeout_s))
        # Connections that were made before the listener lack its settings.
        rdb.engine.dispose()
        return rdb

    @contextmanager
    def opened(self) -> Iterator[RDBStorage]:
        """Open Optuna's storage, and close it if the block fails."""
        rdb = self.open()
        try:
            yield rdb
        except BaseException:
            close(rdb)
            raise

    def creation_lock(self) -> AbstractContextManager[None]:
        """Return a lock that one process holds while it creates tables or a study."""
        if self._is_read_only:
            return nullcontext()
        return self._file_lock() if self.is_sqlite else self._advisory_lock()

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise a database error as a StorageError of one line without the password."""
        try:
            yield
        except DATABASE_ERRORS as error:
            raise StorageError(f"cannot use {self.shown}: {self.error_summary(error)}") from error

    @property
    def _path(self) -> Path:
        return Path(str(self._url.database)).absolute()

    @property
    def _connection_url(self) -> URL:
        return self._source or self._url

    @property
    def _is_read_only(self) -> bool:
        return self._source is not None

    def _check_connection(self) -> None:
        with self.translate_errors(), self._connected() as connection:
            # SQLite reads a file when its tables are read.
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master" if self.is_sqlite else "SELECT 1")

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        engine = sqlalchemy.create_engine(self._connection_url, **self._engine_options)
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        with sqlite_file.creation_lock(self._path):
            with self._connected() as connection:
                # WAL is a property of the file. Readers (a dashboard) and the writer do not block each other.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            yield

    @property
    def _engine_options(self) -> dict[str, object]:
        timings = self.timings
        if self.is_sqlite:
            return {"connect_args": {"timeout": timings.busy_timeout_s}}
        defaults = {
            "connect_timeout": timings.connect_timeout_s,
            "application_name": "hpo",
            # Without these a connection to a vanished machine would wait for hours.
            "tcp_user_timeout": round(timings.unacknowledged_timeout_s * 1000),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 4,
        }
        return {
            "pool_pre_ping": True,
            # Two threads of a process rarely need a connection at once. Then the second connection is closed after use.
            "pool_size": 1,
            # The options of the URL have precedence. No statement is prepared, because a pooler may run the next
            # transaction on another connection, which lacks the statement.
            "connect_args": {"prepare_threshold": None}
            | {name: value for name, value in defaults.items() if name not in self._url.query},
        }

    @contextmanager
    def _advisory_lock(self) -> Iterator[None]:
        engine = sqlalchemy.create_engine(self._url, **self._engine_options)
        try:
            while True:
                with engine.begin() as connection:
                    query = f"SELECT pg_try_advisory_xact_lock({_CREATION_LOCK_ID})"
                    if connection.exec_driver_sql(query).scalar_one():
                        yield
                        return
                # The process waits without a connection, because the owner of the lock may need the last one.
                time.sleep(_LOCK_POLL_INTERVAL_S)
        finally:
            engine.dispose()


def check_optuna_version() -> None:
    """Check that the installed Optuna has the tables that hpo writes.

    Raises:
        StorageError: if Optuna's schema is not the supported one.
    """
    if models.SCHEMA_VERSION != OPTUNA_SCHEMA_VERSION:
        raise StorageError(
            f"Optuna {optuna.__version__} is not supported: its database schema is version {models.SCHEMA_VERSION}, "
            f"hpo needs version {OPTUNA_SCHEMA_VERSION}; install it with: pip install 'optuna{SUPPORTED_OPTUNA}'"
        )


def preload() -> None:
    """Import the modules that ``Database.open`` needs, and configure SQLAlchemy's mappers."""
    import alembic.migration
    import alembic.script  # noqa: F401  # for Database.open
    import sqlalchemy.dialects.sqlite
    import sqlalchemy.orm

    sqlalchemy.orm.configure_mappers()


def close(rdb: RDBStorage) -> None:
    """Close all connections of a storage."""
    rdb.remove_session()
    rdb.engine.dispose()


def autocommit(engine: Engine) -> Engine:
    """Return an engine for transactions of a single statement.

    PostgreSQL needs no BEGIN and COMMIT for a single statement, which saves two round trips.
    """
    return engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="AUTOCOMMIT")


def _relax_sync(connection: DBAPIConnection, _: object) -> None:
    # In WAL mode the crash of a process loses nothing. A crash of the machine may lose the last transactions, and the
    # study is consistent without them. Waiting for the disk at each commit would be the slowest part of a trial.
    _execute(connection, "PRAGMA synchronous=NORMAL")


def _limit_idle_time(timeout_s: float, connection: Connection) -> None:
    # A setting of the session would stay on a connection of a pooler, which other programs use.
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {round(timeout_s * 1000)}")


def _execute(connection: DBAPIConnection, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.close()
