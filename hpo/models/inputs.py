"""Checks of the features and labels that a predictor gets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo.data.sources import FEATURE_REQUIRED, find_invalid_feature

Array = NDArray[Any]

_NUMBERS = "biuf"
_SHOWN = 10


def check_features(X: ArrayLike, n_features: int, names: Sequence[str] | None) -> Array:
    """Return raw features as an array of numbers (n, d).

    Args:
        X: The features. If it has ``columns``, such as a data frame, these are compared with the names.
        n_features: The number d of features.
        names: The names of the features; None if they are unknown.

    Raises:
        ValueError: if the predictor cannot use the features. The message states what is expected.
    """
    if names is not None and hasattr(X, "columns"):
        _check_names(list(X.columns), names)
    features = _as_array(X, "X")
    if features.ndim != 2 or features.shape[1] != n_features:
        raise ValueError(f"X has shape {features.shape}; (n, {n_features}) is required{_advice(features, n_features)}")
    if not len(features):
        raise ValueError("X has no rows; at least one is required")
    if features.dtype.kind not in _NUMBERS:
        raise ValueError(_wrong_features(features, names))
    if (invalid := find_invalid_feature(features)) is not None:
        raise ValueError(f"{_cell(*invalid, names)} is {features[invalid]}; {FEATURE_REQUIRED}")
    return features


def check_outputs(outputs: Array) -> Array:
    """Return the outputs (n, classes) of a net if all are finite.

    Raises:
        ValueError: if the features of a row are too large for the net.
    """
    finite = np.isfinite(outputs).all(axis=1)
    if not finite.all():
        raise ValueError(f"X[{int(finite.argmin())}] is too far from the training data: the net overflows")
    return outputs


def check_labels(y: ArrayLike, n: int, classes: Array) -> Array:
    """Return labels (n,) of the kind of the classes. A column (n, 1) is accepted.

    Raises:
        ValueError: if the labels cannot be compared with the classes. The message states what is expected.
    """
    labels = _as_array(y, "y")
    if labels.shape not in ((n,), (n, 1)):
        raise ValueError(f"y has shape {labels.shape}; ({n},) is required, one label for each row of X")
    labels = labels.ravel()
    is_text = classes.dtype.kind == "U"
    if labels.dtype.kind == "O":
        labels = _from_objects(labels, is_text)
    if labels.dtype.kind not in ("U" if is_text else _NUMBERS):
        raise ValueError(f"y holds {labels.dtype}; {_expected(classes)}")
    known = np.isin(labels, classes)
    if not known.all():
        row = int(known.argmin())
        raise ValueError(f"y[{row}] is {labels[row].item()!r}; {_expected(classes)}")
    return labels


def check_targets(y: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return numbers (n,). A column (n, 1) is accepted.

    Raises:
        ValueError: if y has another shape, or anything but finite numbers.
    """
    targets = _as_array(y, "y")
    if targets.shape not in ((n,), (n, 1)):
        raise ValueError(f"y has shape {targets.shape}; ({n},) is required, one number for each row of X")
    targets = targets.ravel()
    if targets.dtype.kind == "O":
        targets = _from_objects(targets, is_text=False)
    if targets.dtype.kind not in _NUMBERS or not np.isfinite(targets).all():
        raise ValueError("y holds something else than finite numbers")
    return targets.astype(np.float64)


def _as_array(values: ArrayLike, name: str) -> Array:
    if hasattr(values, "toarray"):
        raise ValueError(f"{name} is a sparse matrix; use {name}.toarray()")
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked values; fill them first")
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not an array: {error}") from None


def _check_names(columns: list[Any], names: Sequence[str]) -> None:
    # A data frame without names numbers its columns.
    if not any(isinstance(column, str) for column in columns):
        return
    found = [str(column).strip() for column in columns]
    if found == list(names):
        return
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names]
    problems = [f"the columns {_list(missing)} are missing"] * bool(missing)
    problems += [f"the columns {_list(extra)} are unknown"] * bool(extra)
    problem = " and ".join(problems) or "its columns are in another order"
    raise ValueError(f"X: {problem}; the order of the training is required: X[[{_list(names)}]]")


def _advice(features: Array, n_features: int) -> str:
    if features.shape == (n_features,):
        return "; for a single row use X.reshape(1, -1)"
    if features.ndim > 2 and features.size == len(features) * n_features:
        return "; use X.reshape(len(X), -1)"
    return ""


def _wrong_features(features: Array, names: Sequence[str] | None) -> str:
    if features.dtype.kind == "O":
        for (row, column), value in np.ndenumerate(features):
            if not isinstance(value, int | float | np.integer | np.floating | np.bool_):
                return f"{_cell(row, column, names)} is {value!r}; {FEATURE_REQUIRED}"
        return "X holds Python objects; use X.astype(float)"
    return f"X holds {features.dtype}; real numbers are required"


def _cell(row: int, column: int, names: Sequence[str] | None) -> str:
    return f"X[{row}, {column}]" + ("" if names is None else f" (column {names[column]!r})")


def _from_objects(labels: Array, is_text: bool) -> Array:
    allowed = str if is_text else (int, float, np.integer, np.floating, np.bool_)
    for row, label in enumerate(labels):
        if not isinstance(label, allowed):
            raise ValueError(f"y[{row}] is {label!r}; {'text' if is_text else 'a number'} is required")
    return np.array(labels.tolist())


def _expected(classes: Array) -> str:
    return f"the classes are {_list(classes.tolist())}"


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(repr, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
