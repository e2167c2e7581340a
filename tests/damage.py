"""Damage to files and packed bytes, as Hypothesis strategies, and forged archives of skops."""

import io
import zipfile

import numpy as np
from hypothesis import strategies as st

_CENTRAL_HEADER = b"PK\x01\x02"
FORGERIES = ("huge array", "damaged array", "nested JSON", "encryption", "compression")


def forged(packed: bytes, forgery: str) -> bytes:
    """Return an archive of skops that claims a huge array, an encryption or another of `FORGERIES`."""
    match forgery:
        case "huge array":
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
            return _with_members(packed, ".npy", header.getvalue())
        case "damaged array":
            return _with_members(packed, ".npy", b"\x93NUMPY\x01\x00\x76\x00" + b"{" * 118)
        case "nested JSON":
            return _with_members(packed, ".json", b"[" * 100_000)
        case "encryption":
            return _with_central_byte(packed, 8, 1)
        case _:
            return _with_central_byte(packed, 10, 99)


def _with_members(packed: bytes, suffix: str, content: bytes) -> bytes:
    """Return a ZIP archive whose members with a suffix have another content."""
    other = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive, zipfile.ZipFile(other, "w") as written:
        for name in archive.namelist():
            written.writestr(name, content if name.endswith(suffix) else archive.read(name))
    return other.getvalue()


def _with_central_byte(packed: bytes, offset: int, value: int) -> bytes:
    """Return a ZIP archive with another byte in the central header of each member."""
    first, *headers = packed.split(_CENTRAL_HEADER)
    place = offset - len(_CENTRAL_HEADER)
    changed = [header[:place] + bytes([value]) + header[place + 1 :] for header in headers]
    return _CENTRAL_HEADER.join([first, *changed])


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the content with a byte flipped, a part cut out, bytes inserted, or the end missing."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    match draw(st.sampled_from(["flip", "cut", "insert", "truncate", "overwrite"])):
        case "flip":
            return content[:place] + bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]
        case "cut":
            return content[:place] + content[place + draw(st.integers(1, 64)) :]
        case "insert":
            return content[:place] + draw(st.binary(min_size=1, max_size=16)) + content[place:]
        case "truncate":
            return content[:place]
        case _:
            new = draw(st.binary(min_size=1, max_size=16))
            return content[:place] + new + content[place + len(new) :]
