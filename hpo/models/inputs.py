"""Checks of the features and labels that a predictor gets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo.data.sources import FEATURE_REQUIRED, find_invalid_feature

if TYPE_CHECKING:
    from hpo.data.tables.schema import Column, Schema

Array = NDArray[Any]

_NUMBERS = "biuf"
_SHOWN = 10


def check_features(X: ArrayLike, n_features: int, names: Sequence[str] | None) -> Array:
    """Return raw features as an array of numbers (n, d).

    Args:
        X: The features. If it has ``columns``, such as a data frame, the columns with the names are selected.
        n_features: The number d of features.
        names: The names of the features; None if they are unknown.

    Raises:
        ValueError: if the predictor cannot use the features. The message states what is expected.
    """
    features = _select_features(X, n_features, names)
    if features.dtype.kind not in _NUMBERS:
        raise ValueError(_wrong_features(features, names))
    if (invalid := find_invalid_feature(features)) is not None:
        raise ValueError(f"{_cell(*invalid, names)} is {features[invalid]}; {FEATURE_REQUIRED}")
    return features


def check_table(X: Any, schema: "Schema") -> NDArray[np.float64]:
    """Return the columns of a table as numbers (n, d), with missing values as NaN and categories as indices.

    Args:
        X: The columns as a data frame, or as an array in the order of the training.
        schema: The columns of the training.

    Raises:
        ValueError: if a column is missing, or if a value is not of its column's kind. The message names the place.
    """
    import pandas as pd

    frame = X if hasattr(X, "iloc") else pd.DataFrame(_as_array(X, "X"))
    table = _read_frame(frame, schema.columns)
    if (invalid := find_invalid_feature(table, allows_missing=True)) is not None:
        raise ValueError(f"{_cell(*invalid, schema.names)} is {table[invalid]}; {FEATURE_REQUIRED}")
    return table


def _select_features(X: Any, n_features: int, names: Sequence[str] | None) -> Array:
    """Return the features in the order of the training."""
    if hasattr(X, "iloc"):
        from hpo.data.tables.schema import Column

        return _read_frame(X, [Column(name) for name in names or (None,) * n_features])
    positions = None if names is None else _find_columns(X, names)
    features = _as_array(X, "X")
    if positions is not None and features.ndim == 2:
        features = features[:, positions]
    _check_shape(features, n_features)
    return features


def _read_frame(frame: Any, columns: "Sequence[Column]") -> NDArray[np.float64]:
    """Return the columns of a data frame of pandas as numbers (n, d), in the order of the training."""
    names = [column.name for column in columns if column.name is not None]
    positions = _find_columns(frame, names) if len(set(names)) == len(columns) else None
    if positions is None:
        _check_shape(frame, len(columns))
        positions = list(range(len(columns)))
    if not len(frame):
        raise ValueError("X has no rows; at least one is required")
    return np.column_stack(
        [_read_column(frame.iloc[:, i], column) for i, column in zip(positions, columns, strict=True)]
    )


def _read_column(series: Any, column: "Column") -> NDArray[np.float64]:
    from hpo.data.tables.reading.values import read_values
    from hpo.data.tables.schema import CellError

    name = f"column {column.name!r}" if column.name is not None else f"column {series.name}"
    try:
        return column.read(read_values(series.infer_objects()))
    except CellError as error:
        raise ValueError(f"X: row {error.row}, {name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"X: {name} {error}") from None


def _check_shape(features: Any, n_features: int) -> None:
    if features.ndim != 2 or features.shape[1] != n_features:
        raise ValueError(f"X has shape {features.shape}; (n, {n_features}) is required{_advice(features, n_features)}")
    if not len(features):
        raise ValueError("X has no rows; at least one is required")


def check_outputs(outputs: Array) -> Array:
    """Return the outputs (n, n_outputs) of a model if all are finite.

    Raises:
        ValueError: if the features of a row are too large for the model.
    """
    finite = np.isfinite(outputs).all(axis=1)
    if not finite.all():
        raise ValueError(f"X[{int(finite.argmin())}] is too far from the training data: the model overflows")
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


def _find_columns(X: Any, names: Sequence[str]) -> list[int] | None:
    """Return the positions of the columns with these names; None for an array, or for columns without names.

    Raises:
        ValueError: if a column is missing, or if two columns have its name.
    """
    columns = getattr(X, "columns", None)
    # A data frame without names numbers its columns.
    if columns is None or not any(isinstance(column, str) for column in columns):
        return None
    found = [str(column).strip() for column in columns]
    if missing := [name for name in names if name not in found]:
        extra = [name for name in found if name not in names]
        others = f" and the columns {_list(extra)} are unknown" * bool(extra)
        raise ValueError(f"X: the columns {_list(missing)} are missing{others}; required are {_list(names)}")
    if doubled := [name for name in names if found.count(name) > 1]:
        raise ValueError(f"X: several columns have the name {doubled[0]!r}; one is required")
    return [found.index(name) for name in names]


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
