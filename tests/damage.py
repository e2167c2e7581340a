"""Damage to files and packed bytes, as Hypothesis strategies."""

from hypothesis import strategies as st


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
