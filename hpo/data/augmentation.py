"""Augmentation of images: mirror images and shifted copies.

An image is a row of pixels (n, channels * height * width), channel after channel and row after row.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class ImageShape(NamedTuple):
    """Shape of one image."""

    channels: int
    height: int
    width: int


def mirrored(X: Array, shape: ImageShape) -> Array:
    """Return the images (n, pixels) with left and right exchanged."""
    return X.reshape(-1, *shape)[..., ::-1].reshape(X.shape)


def shifted(X: Array, shape: ImageShape, down: int, right: int) -> Array:
    """Return the images (n, pixels) shifted by a number of pixels.

    The pixels of the edge are repeated where the shift leaves a gap.
    """
    rows = np.clip(np.arange(shape.height) - down, 0, shape.height - 1)
    columns = np.clip(np.arange(shape.width) - right, 0, shape.width - 1)
    return X.reshape(-1, *shape)[..., rows[:, np.newaxis], columns].reshape(X.shape)


def take_with_mirrored(X: Array, rows: NDArray[np.intp], shape: ImageShape) -> Array:
    """Return the images of these rows, followed by the mirror image of each."""
    both = np.empty((2 * len(rows), X.shape[1]), X.dtype)
    # mode="clip" writes into the output without a buffer of the same size.
    np.take(X, rows, axis=0, out=both[: len(rows)], mode="clip")
    both[len(rows) :] = mirrored(both[: len(rows)], shape)
    return both


def shifted_copies(X: Array, shape: ImageShape, pixels: int) -> Iterator[Array]:
    """Yield the images shifted down, up, right and left by a number of pixels."""
    for down, right in ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)):
        yield shifted(X, shape, down, right)
