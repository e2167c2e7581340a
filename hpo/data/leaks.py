"""Search for features that predict the label alone, because they are probably not known before the label."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hpo.data.checks import shorten
from hpo.data.sources import Array, Dataset

# In fewer rows, a feature can predict the label by chance.
_MIN_ROWS = 20
_MIN_CLASS_ROWS = 5
_MAX_LEVEL_SHARE = 0.2

# Most features are excluded by the first rows.
_PROBED_ROWS = 200


def describe_leaks(dataset: Dataset, y: Array, classes: Array, rows: NDArray[np.intp]) -> list[str]:
    """Return a warning about the features of a table that predict the label of the training rows alone.

    Args:
        dataset: The data set.
        y: The targets of all rows.
        classes: The classes, empty without classes.
        rows: The training rows.
    """
    if dataset.columns is None or len(rows) < _MIN_ROWS:
        return []
    if len(classes) and np.bincount(y[rows])[np.unique(y[rows])].min() < _MIN_CLASS_ROWS:
        return []
    found = [dataset.columns[i] for i in _find(dataset, y, rows)]
    if not found:
        return []
    shown = shorten([f"column {column!r}" if isinstance(column, str) else f"column {column + 1}" for column in found])
    verb, it = ("predicts", "it is") if len(found) == 1 else ("predict", "they are")
    return [f"{shown}: {verb} the label alone; if {it} not known before the label, add to data.drop: {found}"]


def _find(dataset: Dataset, y: Array, rows: NDArray[np.intp]) -> Iterator[int]:
    for i in range(dataset.X.shape[1]):
        is_category = dataset.schema is not None and dataset.schema.columns[i].kind == "categorical"
        probe = rows[:_PROBED_ROWS]
        if _predicts(dataset.X[probe, i], y[probe], is_category) and _predicts(
            dataset.X[rows, i], y[rows], is_category
        ):
            yield i


def _predicts(column: Array, y: Array, is_category: bool) -> bool:
    """Return whether rows with equal values have equal targets, and the order of the values that of the targets."""
    order = np.argsort(column, kind="stable")
    values, targets = column[order], y[order]
    is_same = (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
    changes = targets[1:] != targets[:-1]
    if (is_same & changes).any() or not changes.any():
        return False
    if is_category:
        return bool(len(y) - is_same.sum() <= _MAX_LEVEL_SHARE * len(y))
    if y.dtype.kind == "f":
        steps = np.diff(targets)
        return bool((steps >= 0).all() or (steps <= 0).all())
    # Each class has one interval of values.
    return bool(changes.sum() + 1 == len(np.unique(y)))
