"""Choice of the scaling of a table whose study names none."""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo.data.prepared.preprocessing import Scale

# Scaling that a study names, or the choice by the table.
NamedScale = Scale | Literal["auto"]

# A table of fewer columns is no image: the smallest image of a known data set has 8 x 8 pixels.
_MIN_PIXELS = 32
# Largest values of pixels with 2 to 8 bits; scikit-learn's digits have values to 16.
_MIN_BRIGHTEST, _MAX_BRIGHTEST = 3, 255
_BLOCK_ROWS = 1024


class Scaling(NamedTuple):
    """Scaling of a table.

    Attributes:
        scale: The scaling of the preprocessing.
        notes: The choice, for messages.
        reading: The difference to earlier versions of hpo, which scale each column of a file separately.
    """

    scale: Scale
    notes: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()


def choose_scaling(scale: NamedScale, X: NDArray[Any]) -> Scaling:
    """Return a named scaling, or the choice by the raw features (n, d).

    The columns of an image have the same unit. Divided by its own standard deviation, a pixel at the border counts as
    much as a pixel in the middle, although it hardly varies.
    """
    if scale != "auto":
        return Scaling(scale)
    if not are_pixels(X):
        return Scaling("feature")
    note = (
        f"{X.shape[1]} columns of whole numbers from 0 to {X.max():g} are scaled together, like pixels; "
        'data.scale = "feature" scales each column'
    )
    return Scaling("global", (note,), ("pixels are scaled together",))


def are_pixels(X: NDArray[Any]) -> bool:
    """Return whether raw features (n, d) look like pixels: many columns of whole numbers with the same range.

    Half of the columns that vary reach half of the largest value. Border pixels stay below.
    """
    if X.shape[1] < _MIN_PIXELS or X.dtype.kind not in "iuf":
        return False
    highest = X.max(axis=0)
    brightest = highest.max()
    if X.min() != 0 or not _MIN_BRIGHTEST <= brightest <= _MAX_BRIGHTEST:
        return False
    varying = highest[highest > 0]
    return bool(np.median(varying) >= brightest / 2) and _are_whole(X)


def _are_whole(X: NDArray[Any]) -> bool:
    blocks = (X[start : start + _BLOCK_ROWS] for start in range(0, len(X), _BLOCK_ROWS))
    return X.dtype.kind != "f" or all(bool((rows == np.floor(rows)).all()) for rows in blocks)
