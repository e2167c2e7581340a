"""NumPy archives from anywhere, read without pickle and in bounded memory.

The size of an array is checked before it is read, because a file of a few kilobytes can claim to hold terabytes.
"""

import errno
import lzma
import math
import os
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SUFFIX = ".npy"
_ENCRYPTED = 0x1
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# NumPy raises these for a damaged header.
HEADER_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    EOFError,
    RecursionError,
    SyntaxError,
    MemoryError,
    tokenize.TokenError,
)
# NumPy and zipfile raise these for a damaged archive. RuntimeError is an encryption or an unsupported compression.
DAMAGE_ERRORS = (*HEADER_ERRORS, RuntimeError, OSError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


class ArchiveError(ValueError):
    """An archive that is damaged, encrypted, too large, or holds Python objects."""


class NotAnArchiveError(ArchiveError):
    """A file that is not an archive."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. A pipe or a device could block or never end.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    # Without O_NONBLOCK the opening of a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(0, os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_arrays(file: BinaryIO, max_bytes: int, names: Collection[str] | None = None) -> dict[str, Array]:
    """Read the arrays of an archive that ``numpy.savez`` wrote.

    Args:
        file: The archive.
        max_bytes: The largest sum of the sizes of the arrays.
        names: The arrays to read; None for all.

    Raises:
        NotAnArchiveError: if the file is not an archive.
        ArchiveError: if an array is missing or damaged, or the arrays are too large.
    """
    try:
        archive = zipfile.ZipFile(file)
    except DAMAGE_ERRORS:
        file.seek(0)
        is_array = file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
        raise NotAnArchiveError("only one array" if is_array else "not a NumPy archive") from None
    with archive:
        members = {
            info.filename.removesuffix(_SUFFIX): info
            for info in archive.infolist()
            if names is None or info.filename.removesuffix(_SUFFIX) in names
        }
        if missing := [name for name in names or () if name not in members]:
            found = [info.filename.removesuffix(_SUFFIX) for info in archive.infolist()]
            raise ArchiveError(f"no array {missing[0]!r}; the arrays are: {', '.join(found) or 'none'}")
        total = sum(info.file_size for info in members.values())
        if total > max_bytes:
            raise ArchiveError(f"its arrays have {total:,} bytes; at most {max_bytes:,} are allowed here")
        return {name: _read_array(archive, info, name) for name, info in members.items()}


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Array:
    if info.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"array {name!r} is encrypted")
    try:
        with warnings.catch_warnings(), archive.open(info) as member:
            # NumPy warns of odd headers.
            warnings.simplefilter("ignore")
            return _read_member(member, info.file_size, name)
    except ArchiveError:
        raise
    except DAMAGE_ERRORS:
        raise ArchiveError(f"array {name!r} is damaged") from None


def _read_member(member: Any, size: int, name: str) -> Array:
    version = np.lib.format.read_magic(member)
    if version not in _HEADER_READERS:
        raise ArchiveError(f"array {name!r} has an unknown format")
    shape, fortran_order, dtype = _HEADER_READERS[version](member)
    if dtype.hasobject:
        raise ArchiveError(f"array {name!r} holds Python objects, which are never loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - member.tell():
        raise ArchiveError(f"array {name!r} is damaged: its size does not fit its shape {shape}")
    try:
        array = np.empty(shape, dtype, order="F" if fortran_order else "C")
    except MemoryError:
        raise ArchiveError(f"array {name!r} has {size:,} bytes, more than the free memory") from None
    content = array.reshape(-1, order="A").view(np.uint8).data if array.nbytes else memoryview(b"")
    while len(content):
        count = member.readinto(content[: 1 << 18])
        if not count:
            raise EOFError("the file is too short")
        content = content[count:]
    # Only the end of the member has its checksum.
    if member.read(1):
        raise EOFError("the file is too long")
    return array
