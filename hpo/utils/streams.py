"""Standard streams of a command: a failure to write to stderr is ignored, a failure to write to stdout is an error."""

import errno
import io
import os
import select
import sys
import time
from collections.abc import Callable
from typing import TextIO, cast

from hpo.errors import OutputError, ReaderGoneError

# The longest time that a write to stderr waits for a reader that does not read.
STALL_TIMEOUT_S = 1.0

# A write of at most this size to a pipe with room does not block.
_CHUNK_BYTES = select.PIPE_BUF

_READER_GONE = frozenset({errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN})


def protect_streams() -> None:
    """Replace stdout and stderr, so that no failure to print ends the process unexpectedly.

    Streams without a descriptor, such as those of a test, are left as they are.
    """
    # A file that got the number of a closed standard stream would receive its output.
    closed = _open_closed_descriptors()
    sys.stdout = _replacement(sys.stdout, lambda: StrictFile(1, is_closed=1 in closed))
    sys.stderr = _replacement(sys.stderr, lambda: ForgivingFile(2))


def protect_worker_streams() -> None:
    """Send all output of a worker to stderr, and ignore failures to write it.

    stdout is the data of the launch.
    """
    sys.stderr = _replacement(sys.stderr, lambda: ForgivingFile(2))
    sys.stdout = sys.stderr


def _open_closed_descriptors() -> set[int]:
    """Open the null device in place of each closed standard stream, and return their numbers."""
    closed = set()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(descriptor)
            # The lowest free number is taken.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    return closed


def _replacement(stream: TextIO | None, create: Callable[[], "_DescriptorFile"]) -> io.TextIOWrapper:
    if stream is None:
        file, encoding = create(), "utf-8"
    else:
        try:
            stream.flush()
            descriptor = stream.fileno()
        except (OSError, ValueError):
            return cast(io.TextIOWrapper, stream)
        file, encoding = create(), stream.encoding
        file.descriptor = descriptor
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, "backslashreplace", line_buffering=True)


class _DescriptorFile(io.RawIOBase):
    """Writable file of a descriptor that belongs to the process, not to the object."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        try:
            return os.isatty(self.descriptor)
        except OSError:
            return False

    def writable(self) -> bool:
        return True


class ForgivingFile(_DescriptorFile):
    """File whose failures to write are ignored: a full disk, a closed pipe, a lost terminal, a reader that stalls.

    The bytes of a failed write are lost. Later bytes are written as soon as the file accepts bytes again.

    Args:
        descriptor: The descriptor to write to.
        stall_timeout_s: The longest time that a write waits for a reader.
    """

    def __init__(self, descriptor: int, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
        super().__init__(descriptor)
        self._stall_timeout_s = stall_timeout_s
        self._is_stalled = False
        # Whether the rest of the current line was lost.
        self._is_torn = False
        self._at_line_start = True

    def write(self, data: object) -> int:
        """Write the bytes as far as possible."""
        content = bytes(cast(bytes, data))
        pending = b"\n" + content if self._is_torn else content
        try:
            while pending:
                if not self._wait_for_room():
                    raise BlockingIOError
                n_written = os.write(self.descriptor, pending[:_CHUNK_BYTES])
                self._at_line_start = pending[n_written - 1 : n_written] == b"\n"
                self._is_torn = False
                pending = pending[n_written:]
        except OSError:
            self._is_torn = not self._at_line_start
        return len(content)

    def _wait_for_room(self) -> bool:
        """Wait until a write does not block; return whether it does not.

        After a timeout, later writes do not wait until the reader goes on.
        """
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        deadline = time.monotonic() + (0 if self._is_stalled else self._stall_timeout_s)
        while True:
            remaining_ms = max(0, round(1000 * (deadline - time.monotonic())))
            if poll.poll(remaining_ms):
                self._is_stalled = False
                return True
            if remaining_ms == 0:
                self._is_stalled = True
                return False


def let_reader_leave() -> None:
    """Discard what is printed on stdout after its reader has gone, instead of raising an error."""
    file = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(file, StrictFile):
        file.lets_reader_leave = True


class StrictFile(_DescriptorFile):
    """File whose first failure to write raises an error of one line; later bytes are discarded.

    Attributes:
        lets_reader_leave: Whether a reader that has gone is no error.

    Args:
        descriptor: The descriptor to write to.
        is_closed: Whether the stream was closed when the process started.
    """

    def __init__(self, descriptor: int, *, is_closed: bool = False) -> None:
        super().__init__(descriptor)
        self._is_closed = is_closed
        self._has_failed = False
        self.lets_reader_leave = False

    def write(self, data: object) -> int:
        """Write all bytes.

        Raises:
            ReaderGoneError: if the stream is closed or its reader has gone.
            OutputError: if the bytes cannot be written for another reason.
        """
        content = bytes(cast(bytes, data))
        if self._has_failed:
            return len(content)
        try:
            if self._is_closed:
                raise OSError(errno.EBADF, "it is closed")
            return os.write(self.descriptor, content)
        except BlockingIOError:
            # The stream is shared with a process that made it non-blocking.
            select.select([], [self.descriptor], [])
            return 0
        except OSError as error:
            self._has_failed = True
            kind = ReaderGoneError if error.errno in _READER_GONE else OutputError
            if kind is ReaderGoneError and self.lets_reader_leave:
                return len(content)
            raise kind(f"stdout: cannot be written: {error.strerror}") from None
