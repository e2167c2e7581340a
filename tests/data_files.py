"""Data sets that tests write, and strategies for their content."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from hpo.config.study import StudyConfig
from hpo.data.sources import MAX_FEATURE, find_source
from hpo.errors import DataError

_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
_KINDS = st.sampled_from(
    [
        _TEXTS.filter(lambda text: text == text.strip()),
        st.integers(1 - 2**53, 2**53 - 1),
        st.integers(-1000, 1000).map(float),
        st.booleans(),
    ]
)
# Labels of one kind and at least two classes.
LABELS = _KINDS.flatmap(lambda kind: st.lists(kind, min_size=2, max_size=20)).filter(lambda y: len(set(y)) > 1)
NUMBERS = st.floats(min_value=-MAX_FEATURE, max_value=MAX_FEATURE)


def make_config(dataset, folder=Path(), **data):
    """Return a study of this data set whose file is in the folder."""
    config = {"study": {"name": "s"}, "data": {"dataset": str(dataset), **data}, "path": folder / "study.toml"}
    return StudyConfig.model_validate(config)


def find(dataset, folder=Path(), **data):
    return find_source(make_config(dataset, folder, **data))


def error_of(load, *args, error=DataError, **keys):
    """Return the error of a call, which has one line."""
    with pytest.raises(error) as caught:
        load(*args, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_csv(text):
    """Write ``own.csv`` into the working directory."""
    Path("own.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


def load_csv(text, **data):
    write_csv(text)
    return find("own.csv", **data).load()


def load_npz(**arrays):
    np.savez("own.npz", **arrays)
    return find("own.npz").load()


def write_npz(folder, n=120, d=5, classes=3, seed=0):
    """Write ``own.npz`` with random rows into a folder."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, d)) * np.arange(1, d + 1), rng.integers(0, classes, n)
    np.savez(folder / "own.npz", X=X, y=y)
    return X, y


def npz_config(folder, seed=0, **data):
    """Return a study of ``own.npz`` in a folder."""
    config = make_config(**{"dataset": folder / "own.npz", "pca": 0.9} | data)
    return config.model_copy(update={"study": config.study.model_copy(update={"seed": seed})})
