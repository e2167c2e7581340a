"""The file of a SQLite database: its lock, its identity, and access without permission to write."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import OperationalError

from hpo.errors import StorageError

# SQLite keeps the newest transactions and their index in two more files while a process uses the database.
_WAL_SUFFIXES = ("-wal", "-shm")
_WAL_IDS = "hpo_wal_ids"
_LOCK_SUFFIX = "-creation"
_LOCK_TIMEOUT_S = 60.0
_LOCK_POLL_INTERVAL_S = 0.05

_FileId = tuple[int, int] | None


def check_writable(path: Path, shown: str) -> None:
    """Check that the file can be written, or created if it is missing.

    Raises:
        StorageError: if the file, or its folder, is missing or read-only.
    """
    folder = path.parent
    if not folder.is_dir():
        raise StorageError(f"cannot use {shown}: {folder} is not a folder; create it first")
    if path.is_dir():
        raise StorageError(f"cannot use {shown}: {path} is a folder; give the path of a file")
    for place in (path, folder):
        if place.exists() and not _may_write(place):
            raise StorageError(
                f"cannot write to {shown}: {place} is read-only for this user; "
                "use another --storage, or copy the file to a folder of yours"
            )


def is_writable(path: Path) -> bool:
    """Return whether this user may write the file and its folder, which SQLite needs for its other files."""
    return _may_write(path) and _may_write(path.parent)


@contextmanager
def readable_url(path: Path) -> Iterator[URL]:
    """Provide a URL for reading a file that this user may not write.

    Raises:
        StorageError: if the file cannot be read.
    """
    if not _may(os.R_OK, path):
        raise StorageError(f"{path} cannot be read: permission denied")
    wal = Path(f"{path}-wal")
    if _can_open(url := _read_only_url(path, mode="ro")):
        yield url
    elif not wal.exists() or not wal.stat().st_size:
        # SQLite takes the file as it is, without its other files.
        yield _read_only_url(path, immutable="1")
    else:
        # Only a process that may write the folder can read the transactions in a WAL without an index.
        with tempfile.TemporaryDirectory(prefix="hpo-") as folder:
            copy = Path(folder, path.name)
            try:
                shutil.copyfile(path, copy)
                shutil.copyfile(wal, f"{copy}-wal")
            except OSError as error:
                raise StorageError(f"{error.filename}: cannot be copied: {error.strerror}") from None
            yield _read_only_url(copy, mode="ro")


@contextmanager
def creation_lock(path: Path) -> Iterator[None]:
    """Hold a lock with the name of the database.

    The lock is a file of its own, because closing a descriptor of the database file would drop the locks that SQLite
    holds on it. The file is removed at the end.

    Raises:
        StorageError: if the folder cannot be written, or another process holds the lock for too long.
    """
    lock = Path(f"{path.resolve()}{_LOCK_SUFFIX}")
    try:
        descriptor = _acquire(lock)
    except OSError as error:
        raise StorageError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def watch(engine: Engine, path: Path, *, reads_only: bool = False) -> None:
    """Make each use of an engine fail after the file was removed or replaced.

    The same holds for SQLite's -wal and -shm files. With ``reads_only`` these are not checked, because a connection
    that only reads does not prevent their regular removal.
    """
    opened = _file_id(path)

    def check_file(*_: object) -> None:
        if _file_id(path) != opened:
            raise StorageError(f"{path} was deleted, moved or replaced while it was in use; restore the file")

    def check_files(_: object, record: sqlalchemy.pool.ConnectionPoolEntry, __: object) -> None:
        check_file()
        if record.info.get(_WAL_IDS, ids := _wal_ids(path)) != ids:
            raise StorageError(
                f"{path.name}-wal or {path.name}-shm was deleted while {path} was in use; "
                "end all processes of the study, then the same command goes on"
            )

    def keep_wal_ids(connection: Connection, *_: object) -> None:
        # The files stay until the last connection closes that has read the database.
        info = connection.connection.info
        if _WAL_IDS not in info and None not in (ids := _wal_ids(path)):
            info[_WAL_IDS] = ids

    event.listen(engine, "do_connect", check_file)
    event.listen(engine, "checkout", check_files)
    if not reads_only:
        event.listen(engine, "after_cursor_execute", keep_wal_ids)


def _may_write(path: Path) -> bool:
    return _may(os.W_OK, path)


def _may(mode: int, path: Path) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _read_only_url(path: Path, **options: str) -> URL:
    # SQLite decodes the path of such a URL.
    return URL.create("sqlite", database=path.absolute().as_uri(), query={**options, "uri": "true"})


def _can_open(url: URL) -> bool:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")
    except OperationalError:
        return False
    finally:
        engine.dispose()
    return True


def _acquire(lock: Path) -> int:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o666)
        if _lock(descriptor) and _file_id(lock) == _id_of(os.fstat(descriptor)):
            return descriptor
        # Another process has the lock, or has removed the file since it was opened.
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise StorageError(f"{lock} is locked by another process, which starts a study; wait for it or end it")
        time.sleep(_LOCK_POLL_INTERVAL_S)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wal_ids(path: Path) -> list[_FileId]:
    return [_file_id(Path(f"{path}{suffix}")) for suffix in _WAL_SUFFIXES]


def _file_id(path: Path) -> _FileId:
    try:
        return _id_of(path.stat())
    except FileNotFoundError:
        return None


def _id_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
