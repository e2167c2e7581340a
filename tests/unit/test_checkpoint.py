"""Byte format of a checkpoint."""

import io
import json
import zlib

import numpy as np
import pytest
from damage import damaged
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from hpo.models.checkpoint import TrainingState, pack_state, unpack_state

arrays = st_numpy.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    shape=st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


def make_state(**state_arrays):
    rng = np.random.default_rng(0).bit_generator.state
    return TrainingState("test", 7, rng, state_arrays)


@settings(deadline=None)
@given(state_arrays=st.dictionaries(st.text(max_size=5), arrays, max_size=4))
def test_unpacked_state_equals_packed_state(state_arrays):
    state = TrainingState("test", 7, np.random.default_rng(0).bit_generator.state, state_arrays)
    unpacked = unpack_state(pack_state(state))
    assert (unpacked.made_from, unpacked.epoch, unpacked.rng) == (state.made_from, state.epoch, state.rng)
    assert list(unpacked.arrays) == list(state_arrays)
    for name, array in state_arrays.items():
        other = unpacked.arrays[name]
        assert (other.dtype, other.shape, other.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_transposed_array_keeps_its_values():
    array = np.arange(6.0).reshape(2, 3).T
    assert (unpack_state(pack_state(make_state(W=array))).arrays["W"] == array).all()


def test_unpacked_arrays_are_read_only():
    assert not unpack_state(pack_state(make_state(W=np.ones(3)))).arrays["W"].flags.writeable


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["text"]), np.array(["2026-01-01"], "datetime64[D]")])
def test_array_without_numbers_is_refused(array):
    with pytest.raises(ValueError, match=r"the array 'W' of a model holds .*; numbers are allowed"):
        pack_state(make_state(W=array))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_header(header, body=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(4) + zlib.crc32(text).to_bytes(4) + text + body


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"not a checkpoint",
        npy(np.zeros(3)),
        with_header({"epoch": 1}),
        with_header([1]),
        with_header({"checksum": 1}, b"12"),
    ],
    ids=["empty", "text", "array", "key missing", "list", "checksum wrong"],
)
def test_other_bytes_are_refused(packed):
    with pytest.raises(ValueError, match="not a checkpoint"):
        unpack_state(packed)


def test_checkpoint_of_earlier_format_is_refused():
    body = np.zeros(5, np.float32).tobytes()
    header = {"made_from": "{}", "epoch": 3, "rng": {}, "checksum": zlib.crc32(body)}
    with pytest.raises(ValueError, match="the checkpoint of another version: format None, not 5"):
        unpack_state(with_header(header, body))


@settings(deadline=None)
@given(st.data())
def test_damaged_checkpoint_is_refused(data):
    packed = pack_state(make_state(W=np.arange(5.0)))
    changed = data.draw(damaged(packed))
    assume(changed != packed)
    with pytest.raises(ValueError, match="not a checkpoint"):
        unpack_state(changed)


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": [["W", "<f8", [-5]]]},
        {"arrays": [["W", "O", [5]]]},
        {"arrays": [["W", "<f8", [1 << 70]]]},
        {"arrays": [["W", "<f8", ["a"]]]},
        {"arrays": 3},
        {"arrays": None},
    ],
)
def test_forged_arrays_are_refused(change):
    body = np.zeros(5).tobytes()
    header = {"format": 4, "made_from": "{}", "epoch": 3, "rng": {}, "checksum": zlib.crc32(body)} | change
    with pytest.raises(ValueError, match=r"."):
        unpack_state(with_header(header, body))


@given(st.data())
def test_damaged_body_is_refused(data):
    packed = bytearray(pack_state(make_state(W=np.arange(5.0))))
    place = data.draw(st.integers(len(packed) - 40, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="not a checkpoint: its checksum is wrong"):
        unpack_state(bytes(packed))
