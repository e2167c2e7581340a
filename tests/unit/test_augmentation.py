"""Mirror images and shifted copies."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpo.data.augmentation import ImageShape, mirrored, shifted, shifted_copies, take_with_mirrored

SHAPE = ImageShape(3, 32, 32)
seeds = st.integers(0, 2**32 - 1)


def random_images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)


def test_mirrored_exchanges_left_and_right():
    image = np.zeros((3, 32, 32), np.uint8)
    image[1, 5, 0] = 7
    expected = np.zeros((3, 32, 32), np.uint8)
    expected[1, 5, 31] = 7
    assert (mirrored(image.reshape(1, -1), SHAPE) == expected.reshape(1, -1)).all()


@given(st.integers(0, 3), seeds)
def test_mirrored_twice_is_original(n, seed):
    images = random_images(n, seed)
    assert (mirrored(mirrored(images, SHAPE), SHAPE) == images).all()


def test_shifted_repeats_edge():
    image = np.zeros((3, 32, 32), np.uint8)
    image[2, 10, 20], image[0, 0, 5] = 7, 9
    expected = np.zeros((3, 32, 32), np.uint8)
    expected[2, 12, 19], expected[0, :3, 4] = 7, 9
    assert (shifted(image.reshape(1, -1), SHAPE, 2, -1) == expected.reshape(1, -1)).all()


@given(st.integers(-15, 15), st.integers(-15, 15), seeds)
def test_shifts_and_mirrors_agree(down, right, seed):
    images = random_images(2, seed)
    assert (shifted(images, SHAPE, 0, 0) == images).all()
    mirrored_first = shifted(mirrored(images, SHAPE), SHAPE, down, -right)
    assert (mirrored(shifted(images, SHAPE, down, right), SHAPE) == mirrored_first).all()
    there_and_back = shifted(shifted(images, SHAPE, down, right), SHAPE, -down, -right).reshape(-1, *SHAPE)
    assert (there_and_back == images.reshape(-1, *SHAPE))[..., 15:17, 15:17].all()


def test_shapes_may_be_rectangular():
    shape = ImageShape(1, 2, 3)
    image = np.arange(6).reshape(1, 6)
    assert mirrored(image, shape).tolist() == [[2, 1, 0, 5, 4, 3]]
    assert shifted(image, shape, 1, 0).tolist() == [[0, 1, 2, 0, 1, 2]]
    assert shifted(image, shape, 0, 1).tolist() == [[0, 0, 1, 3, 3, 4]]


def test_mirror_images_follow_their_rows():
    images = random_images(5, 0)
    rows = np.array([3, 0])
    taken = take_with_mirrored(images, rows, SHAPE)
    assert (taken == np.vstack([images[rows], mirrored(images[rows], SHAPE)])).all()
    assert taken.dtype == np.uint8


def test_shifted_copies_have_fixed_order():
    images = random_images(2, 0)
    shifts = ((3, 0), (-3, 0), (0, 3), (0, -3))
    for copy, (down, right) in zip(shifted_copies(images, SHAPE, 3), shifts, strict=True):
        assert (copy == shifted(images, SHAPE, down, right)).all()
