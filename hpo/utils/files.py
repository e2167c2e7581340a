"""Files that are there whole or not at all."""

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
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when it is finished; a former one stays until then.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    try:
        descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _cannot(path, error) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            os.fchmod(file.fileno(), _FILE_MODE)
        Path(aside).replace(path)
    except OSError as error:
        raise _cannot(path, error) from None
    finally:
        Path(aside).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path) as file:
        file.write(text.encode())


def writable_folder(folder: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        OutputError: it cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # For root every folder is writable; one whose write permission was taken away is not meant to be.
        permitted = bool(stat.S_IMODE(folder.stat().st_mode) & 0o222)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot(folder, error) from None
    if not permitted:
        raise OutputError(f"{folder}: cannot be written: it is read-only; use another folder with --output")
    return folder


def _cannot(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}; use another place with --output")
