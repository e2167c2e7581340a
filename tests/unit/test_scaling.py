"""Choice of the scaling of a table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from hpo.data.prepared.scaling import Scaling, are_pixels, choose_scaling

ROWS = 40


def make_image_rows(pixels=64, brightest=255, seed=0):
    """Return images whose border is dark."""
    X = np.random.default_rng(seed).integers(0, brightest + 1, (ROWS, pixels))
    X[0] = brightest
    X[:, : pixels // 4] = 0
    return X


@pytest.mark.parametrize("brightest", [3, 15, 16, 255])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64])
def test_images_are_pixels(brightest, kind):
    assert are_pixels(make_image_rows(brightest=brightest).astype(kind))


def test_digits_are_pixels():
    assert are_pixels(load_digits().data)


def shifted(X):
    return X + 1


def fractions(X):
    return X / 255


def one_of_them(X):
    X = X.astype(float)
    X[-1, -1] = 0.5
    return X


def dates(X):
    return X * 1000


def bits(X):
    return X > 127


def few(X):
    return X[:, -31:]


def one_large(X):
    X = X % 7
    X[0, 1] = 255
    return X


@pytest.mark.parametrize("change", [shifted, fractions, one_of_them, dates, bits, few, one_large])
def test_other_columns_are_no_pixels(change):
    X = change(make_image_rows())
    assert not are_pixels(X)
    assert choose_scaling("auto", X) == Scaling("feature")


@pytest.mark.parametrize("load", [load_breast_cancer, load_wine])
def test_measurements_are_no_pixels(load):
    assert not are_pixels(load().data)


def test_pixels_are_scaled_together():
    scaling = choose_scaling("auto", make_image_rows())
    assert scaling.scale == "global"
    assert scaling.reading == ("pixels are scaled together",)
    (note,) = scaling.notes
    assert note.startswith("64 columns of whole numbers from 0 to 255 are scaled together")


@given(st.sampled_from(["feature", "global", "none"]))
def test_named_scaling_is_used(scale):
    assert choose_scaling(scale, make_image_rows()) == Scaling(scale)
