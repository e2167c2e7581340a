"""Byte format of the state of a training.

A checkpoint is the length of its header (4 bytes, big-endian), the header in JSON, and the bytes of all arrays. The
header holds the position of the training, the name, type and shape of each array, and a CRC-32 of the bytes of the
arrays. An ``.npz`` file would take nearly twice as long to write.
"""

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A new number refuses the checkpoints of earlier versions.
FORMAT = 3

_LENGTH_BYTES = 4
# Types of numbers and booleans. Other types, such as objects, are refused.
_KINDS = "biuf"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """State of a training between two epochs.

    Attributes:
        made_from: Description of the arguments of the training. Only a training with the same description continues
            from the state.
        epoch: Number of finished epochs.
        rng: State of the random generator, in JSON types.
        arrays: State of the model.
    """

    made_from: str
    epoch: int
    rng: Mapping[str, Any]
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
    return b"".join([len(packed_header).to_bytes(_LENGTH_BYTES), packed_header, *buffers])


def unpack_state(packed: bytes) -> TrainingState:
    """Return the state that `pack_state` packed. Its arrays are read-only and may be unaligned.

    Raises:
        ValueError: if the bytes are damaged, or a checkpoint of another version.
    """
    start = _LENGTH_BYTES + int.from_bytes(packed[:_LENGTH_BYTES])
    try:
        header = json.loads(packed[_LENGTH_BYTES:start])
        is_intact = header["checksum"] == zlib.crc32(memoryview(packed)[start:])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a checkpoint: {error}") from error
    if not is_intact:
        raise ValueError("not a checkpoint: its checksum is wrong")
    if header.get("format") != FORMAT:
        raise ValueError(f"the checkpoint of another version: format {header.get('format')}, not {FORMAT}")
    arrays = _read_arrays(packed, start, header["arrays"])
    return TrainingState(header["made_from"], header["epoch"], header["rng"], arrays)


def _checksum(buffers: Iterable[memoryview]) -> int:
    checksum = 0
    for buffer in buffers:
        checksum = zlib.crc32(buffer, checksum)
    return checksum


def _read_arrays(packed: bytes, start: int, descriptions: list[Any]) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, dtype, shape in descriptions:
        count = math.prod(shape)
        arrays[name] = np.frombuffer(packed, dtype, count, start).reshape(shape)
        start += arrays[name].nbytes
    return arrays
