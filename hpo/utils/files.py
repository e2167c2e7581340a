"""Writing of files: regular files are replaced atomically, anything else is written to."""

import errno
import io
import logging
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hpo.errors import OutputError

# A link chain of this length is a loop, as for the kernel.
_MAX_LINKS = 40

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")

# The folder or the file system forbids a replacement, but the file itself may be written.
_NOT_REPLACEABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV})

_LOGGER = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a buffer whose bytes become the content of ``path`` when the block ends.

    If the block raises, the file is left as it is. Links are followed. A regular file is replaced atomically and keeps
    its mode and owner; in a folder that forbids it, the file is overwritten. A device, a pipe or an open descriptor
    (``/dev/stdout``) receives the bytes.

    Raises:
        OutputError: if the folder or the file cannot be written.
    """
    buffer = io.BytesIO()
    try:
        yield buffer
        _write(path, buffer.getvalue())
    except OSError as error:
        raise _write_error(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as ``atomic_write`` does.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as file:
        file.write(text.encode())


def file_in(path: Path, name: str) -> Path:
    """Return the path of a file: ``path`` itself, or the file of this name in it if it is a folder."""
    return path / name if path.is_dir() else path


def check_writable(path: Path) -> Path:
    """Check that a file, and its folder if it is missing, can be written; return the path. Nothing is created.

    Raises:
        OutputError: if the file or its folder cannot be written.
    """
    try:
        if _is_special(path):
            # Opening a pipe would wait for its reader.
            return path
        target = Path(os.path.realpath(path))
        if target.exists():
            os.close(os.open(target, os.O_WRONLY | os.O_CLOEXEC))
        else:
            writable_folder(next(parent for parent in target.parents if parent.exists()))
    except OSError as error:
        raise _write_error(path, error) from None
    return path


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
        raise OutputError(f"{folder}: cannot be written: it is read-only; use another place")
    return folder


def create_folder_of(path: Path) -> None:
    """Create the folder of a file if it is missing.

    Raises:
        OutputError: if the folder cannot be created.
    """
    folder = Path(os.path.realpath(path)).parent
    if not folder.exists():
        writable_folder(folder)


def _write(path: Path, content: bytes) -> None:
    descriptor = _named_descriptor(path)
    if descriptor is not None:
        # A second open file would start at the first byte again.
        _write_all(os.dup(descriptor), content)
        return
    target = Path(os.path.realpath(path))
    try:
        existing = _open_existing(target)
    except FileNotFoundError:
        _replace(target, content, None)
        return
    status = os.fstat(existing)
    if stat.S_ISREG(status.st_mode):
        try:
            _replace(target, content, status)
        except OSError as error:
            if error.errno not in _NOT_REPLACEABLE:
                os.close(existing)
                raise
            _overwrite(existing, content)
        else:
            os.close(existing)
    else:
        _write_all(existing, content)


def _named_descriptor(path: Path) -> int | None:
    """Return the descriptor that a path such as ``/dev/stdout`` names, directly or through links."""
    for _ in range(_MAX_LINKS):
        path = Path(os.path.abspath(path))  # noqa: PTH100  # unlike Path.absolute, it removes ".."
        if match := _DESCRIPTOR.fullmatch(str(path)):
            return int(match[1])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _is_special(path: Path) -> bool:
    """Return whether a path names a descriptor, a device, a pipe or a socket."""
    return _named_descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def _open_existing(path: Path) -> int:
    """Open a file to write into it; report that a named pipe has no reader yet, and wait for it."""
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO or not path.is_fifo():
            raise
        _LOGGER.warning("%s: waiting for a reader of this pipe", path)
        return os.open(path, flags)
    os.set_blocking(descriptor, True)
    return descriptor


def _replace(path: Path, content: bytes, replaced: os.stat_result | None) -> None:
    """Write a temporary file next to ``path`` and rename it, with the mode and owner of the replaced file."""
    # The name is short, because the name of the file may have the maximal length.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    # The mode of a new file is subject to the umask.
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if replaced is None else 0o600
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if replaced is not None:
                _copy_ownership(file.fileno(), replaced)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_ownership(descriptor: int, replaced: os.stat_result) -> None:
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (replaced.st_uid, replaced.st_gid):
        os.fchown(descriptor, replaced.st_uid, replaced.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(replaced.st_mode))


def _overwrite(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.truncate()


def _write_all(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _write_error(path: Path, error: OSError) -> OutputError:
    reason, advice = error.strerror or str(error), "use another place"
    target = Path(os.path.realpath(path))
    nearest = next(place for place in (target, *target.parents) if os.path.lexists(place))
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and not nearest.is_dir():
        reason = "it is not a folder" if nearest == target else f"{nearest} is not a folder"
    elif error.errno == errno.ENOENT:
        if nearest in (target, target.parent):
            reason = f"no file can be created in {nearest if nearest.is_dir() else target.parent}"
        else:
            advice = "create the folder first"
    return OutputError(f"{path}: cannot be written: {reason}; {advice}")
