"""Byte format of the state of a training.

A checkpoint is the length and the CRC-32 of its header (4 bytes each, big-endian), the header in JSON, and the bytes of
all arrays. The header holds the position of the training, the name, type and shape of each array, and a CRC-32 of the
bytes of the arrays. An ``.npz`` file would take nearly twice as long to write.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A new number refuses the checkpoints of earlier versions.
FORMAT = 5

_PREFIX = struct.Struct(">II")
# Types of numbers and booleans. Other types, such as objects, are refused.
_KINDS = "biuf"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """State of a training between two epochs.

    Attributes:
        made_from: Description of the arguments of the training. Only a training with the same description continues
            from the state.
        epoch: Number of finished epochs.
        rng: State of the random generator of each fold, in JSON types.
        arrays: State of the models.
    """

    made_from: str
    epoch: int
    rng: Sequence[Mapping[str, Any]]
    arrays: Mapping[str, NDArray[Any]]


def pack_state(state: TrainingState) -> bytes:
    """Return the state as bytes.

    Raises:
        ValueError: if an array holds anything but numbers.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in state.arrays.items()}
    if refused := [name for name, array in arrays.items() if array.dtype.kind not in _KINDS]:
        raise ValueError(f"the array '{refused[0]}' of a model holds {arrays[refused[0]].dtype}; numbers are allowed")
    buffers = [array.data for array in arrays.values()]
    header = {
        "format": FORMAT,
        "made_from": state.made_from,
        "epoch": state.epoch,
        "rng": state.rng,
        "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()],
        "checksum": _checksum(buffers),
    }
    packed_header = json.dumps(header).encode()
    return b"".join([_PREFIX.pack(len(packed_header), zlib.crc32(packed_header)), packed_header, *buffers])


def unpack_state(packed: bytes) -> TrainingState:
    """Return the state that `pack_state` packed. Its arrays are read-only and may be unaligned.

    Raises:
        ValueError: if the bytes are damaged, or a checkpoint of another version.
    """
    try:
        length, header_checksum = _PREFIX.unpack_from(packed)
        start = _PREFIX.size + length
        packed_header = packed[_PREFIX.size : start]
        header = json.loads(packed_header)
        is_intact = header_checksum == zlib.crc32(packed_header)
        is_intact = is_intact and header["checksum"] == zlib.crc32(memoryview(packed)[start:])
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise ValueError(f"not a checkpoint: {error}") from error
    if not is_intact:
        raise ValueError("not a checkpoint: its checksum is wrong")
    if header.get("format") != FORMAT:
        raise ValueError(f"the checkpoint of another version: format {header.get('format')}, not {FORMAT}")
    try:
        arrays = _read_arrays(packed, start, header["arrays"])
        return TrainingState(header["made_from"], header["epoch"], header["rng"], arrays)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a checkpoint: {error}") from error


def _checksum(buffers: Iterable[memoryview]) -> int:
    checksum = 0
    for buffer in buffers:
        checksum = zlib.crc32(buffer, checksum)
    return checksum


def _read_arrays(packed: bytes, start: int, descriptions: list[Any]) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, dtype, shape in descriptions:
        if min(shape, default=0) < 0:
            raise ValueError(f"not a checkpoint: shape {shape}")
        count = math.prod(shape)
        arrays[name] = np.frombuffer(packed, dtype, count, start).reshape(shape)
        start += arrays[name].nbytes
    return arrays
