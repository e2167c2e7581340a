"""Memory that processes share, without a file in /dev/shm, which can be tiny or read-only."""

import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T", bound=ctypes.Structure | ctypes.c_int64)


class Shared(Generic[T]):
    """A ctypes object in shared memory. A process that receives a ``Shared`` as an argument gets its ``value``.

    Attributes:
        value: The ctypes object.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._descriptor = anonymous_file(ctypes.sizeof(kind))
        self.value: T = _map(kind, self._descriptor)

    def __reduce__(self) -> tuple[Callable[..., T], tuple[type[T], Any]]:
        return _receive, (self._kind, reduction.DupFd(self._descriptor))

    @property
    def descriptor(self) -> int:
        """Descriptor of the file, for ``attach`` in a process that inherits it."""
        return self._descriptor

    def close_file(self) -> None:
        """Close the file; the object cannot be sent again.

        The launch then keeps no descriptor for each of its workers.
        """
        os.close(self._descriptor)


def _receive(kind: type[T], duplicate: Any) -> T:
    return attach(kind, duplicate.detach())


def attach(kind: type[T], descriptor: int) -> T:
    """Return the object in a shared file, and close the file."""
    with os.fdopen(descriptor, "rb+") as file:
        return _map(kind, file.fileno())


def _map(kind: type[T], descriptor: int) -> T:
    # The object keeps its memory mapped.
    return cast(T, kind.from_buffer(mmap.mmap(descriptor, ctypes.sizeof(kind))))


def anonymous_file(size: int) -> int:
    """Create a file of zeros without a name, in memory if the system has such files; return its descriptor."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("hpo")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
