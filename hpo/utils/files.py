"""Atomic writing of files."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hpo.errors import OutputError

_FILE_MODE = 0o644


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path`` when the block ends.

    If the block raises, the previous file stays and the temporary file is removed.

    Raises:
        OutputError: if the folder or the file cannot be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _write_error(path, error) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            os.fchmod(file.fileno(), _FILE_MODE)
        Path(temporary).replace(path)
    except OSError as error:
        raise _write_error(path, error) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as file:
        file.write(text.encode())


def writable_folder(folder: Path) -> Path:
    """Create a folder if it is missing and check that it is writable.

    Raises:
        OutputError: if the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Root can write to every folder. A folder without write permission is refused for root, too.
        permitted = bool(stat.S_IMODE(folder.stat().st_mode) & 0o222)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _write_error(folder, error) from None
    if not permitted:
        raise OutputError(f"{folder}: cannot be written: it is read-only; use another folder with --output")
    return folder


def _write_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}; use another place with --output")
