"""Data folder, and the creation and checks of folders in it."""

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

from hpo.errors import DataError
from hpo.utils.npz import open_regular

_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def data_dir() -> Path:
    """Return the data folder: ``$HPO_DATA_DIR``, or the platform's cache folder.

    A user without a home folder, as in a container with any user id, has a data folder among the temporary files.

    Raises:
        DataError: if ``$HPO_DATA_DIR`` names the home folder of a user that does not exist.
    """
    if given := os.environ.get("HPO_DATA_DIR"):
        folder = expand_home(given)
        if str(folder).startswith("~"):
            raise DataError(f"HPO_DATA_DIR={given}: no such home folder; set it to another folder")
        return folder
    try:
        return user_cache_path("hpo")
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"hpo-{os.geteuid()}"


def expand_home(path: str) -> Path:
    """Replace a leading ``~`` or ``~user`` by the home folder; without such a folder the path stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises an error


@contextmanager
def translate_disk_errors() -> Iterator[None]:
    """Raise a DataError in place of an OSError."""
    try:
        yield
    except OSError as error:
        advice = "; set HPO_DATA_DIR to a folder that can be written" if error.errno in _NOT_WRITABLE else ""
        raise DataError(f"{error.filename or data_dir()}: {error.strerror or error}{advice}") from None


@contextmanager
def atomic_folder(folder: Path, mode: int = 0o700) -> Iterator[Path]:
    """Create a temporary folder that is renamed to ``folder`` when the block ends.

    If the block raises, the temporary folder is removed. Temporary folders of killed processes are removed first, so
    the caller holds a lock on the parent folder.
    """
    for abandoned in folder.parent.glob("*.part"):
        if abandoned.is_dir():
            shutil.rmtree(abandoned)
    partial = folder.with_name(f"{folder.name}.part")
    partial.mkdir(mode)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_trusted(*folders: Path) -> None:
    """Check that only this user or root can have written the folders.

    Other data would give other results.

    Raises:
        DataError: if another user owns a folder or can write into it.
    """
    if sys.platform == "win32":
        return
    for folder in folders:
        status = folder.stat()
        if status.st_uid not in (os.geteuid(), 0):
            raise DataError(f"{folder}: not loaded, because another user owns it; remove it or set HPO_DATA_DIR")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise DataError(f"{folder}: not loaded, because other users can write into it; chmod go-w it, or remove it")


def open_trusted(path: Path) -> BinaryIO:
    """Open a regular file that this user or root owns.

    Another user can swap a folder of the path after its check, so that the opened file is checked itself.

    Raises:
        DataError: if another user owns the file.
        OSError: if it cannot be opened, or is not a regular file.
    """
    file = open_regular(path)
    if sys.platform != "win32" and os.fstat(file.fileno()).st_uid not in (os.geteuid(), 0):
        file.close()
        raise DataError(f"{path}: not loaded, because another user owns it; remove it or set HPO_DATA_DIR")
    return file
