"""Encoding of a table's columns as model inputs, fitted to the training rows."""

import json
import math
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hpo.data.metrics import TaskName
from hpo.data.prepared.preprocessing import block_rows
from hpo.data.tables.reading.dates import PARTS, date_parts
from hpo.data.tables.schema import Column, Schema
from hpo.utils.npz import DAMAGE_ERRORS

Array = NDArray[Any]

# A column with more categories is encoded by the mean targets of its categories.
MAX_ONE_HOT_LEVELS = 30
# With more classes, the mean targets would be too many columns.
MAX_TARGET_CLASSES = 20
# A category with fewer training rows is encoded together with other rare categories.
_MAX_RARE_ROWS = 10
_RARE_SHARE = 0.01
_TARGET_FOLDS = 5

_GROUP_COLUMNS = 16

# Types in a stored encoder besides those of skops' own list.
_TRUSTED = frozenset({"numpy.dtype", "sklearn.frozen._frozen.FrozenEstimator", "sklearn.model_selection._split.KFold"})


@dataclass(frozen=True, eq=False)
class TableEncoder:
    """Fitted map from the columns of a table (n, d) to k numbers without gaps.

    Attributes:
        schema: The columns.
        transformer: scikit-learn's fitted ``ColumnTransformer`` of the columns and of the parts of dates.
    """

    schema: Schema
    transformer: Any

    @classmethod
    def fit(
        cls, schema: Schema, X: Array, rows: NDArray[np.intp], y: Array, *, task: TaskName, seed: int
    ) -> tuple[Self, "EncodedRows"]:
        """Fit the map to the training rows.

        Args:
            schema: The columns.
            X: The columns as numbers (n, d).
            rows: The training rows.
            y: The targets of the training rows.
            task: The task.
            seed: The seed of the folds in which categories are encoded by targets.

        Returns:
            The encoder, and the encoded training rows. A mean target of a training row is that of other folds, so that
            a model cannot read the row's own target from it.
        """
        columns = schema.columns
        # The training rows of groups or of an order can lack a class.
        n_classes = 0 if task == "regression" else len(np.unique(y))
        groups = _groups(columns, n_classes)
        fitted = {}
        means = np.empty((len(rows), 0))
        # A ColumnTransformer that fits its transformers also transforms all rows, which needs several times the memory.
        for name, group in _split(groups).items():
            transformer = _make(name.split()[0], len(rows), n_classes, seed)
            X_group = _columns(columns, X, rows, group)
            if name.startswith("means"):
                means = np.hstack([means, transformer.fit_transform(X_group, y)])
            else:
                transformer.fit(X_group)
            fitted[name] = (transformer, group)
        encoder = cls(schema, _join(fitted, _expand(columns, X[rows[:1]])))
        return encoder, EncodedRows(encoder, X, rows, means)

    @property
    def n_outputs(self) -> int:
        """Number k of encoded columns."""
        return int(max(part.stop for part in self.transformer.output_indices_.values()))

    def transform(self, X: Array) -> NDArray[np.float64]:
        """Return the encoded columns (n, k) of rows (n, d)."""
        encoded = np.empty((len(X), self.n_outputs))
        n_rows = block_rows(self.n_outputs)
        for start in range(0, len(X), n_rows):
            rows = slice(start, start + n_rows)
            encoded[rows] = self.transformer.transform(_expand(self.schema.columns, X[rows]))
        return encoded

    def rows(self, X: Array) -> Any:
        """Return the rows of a table (n, d), which are encoded when they are read."""
        if X.ndim != 2 or X.shape[1] != len(self.schema.columns):
            raise ValueError(f"X has shape {X.shape}; (n, {len(self.schema.columns)}) is required")
        return EncodedRows(self, X, np.arange(len(X)))

    def to_bytes(self) -> bytes:
        """Return the encoder as bytes without pickles."""
        import skops.io

        # skops describes each item of a list at length.
        state = {"schema": json.dumps(self.schema.to_json()), "transformer": self.transformer}
        return bytes(skops.io.dumps(state, compression=zipfile.ZIP_DEFLATED, compresslevel=1))

    @classmethod
    def from_bytes(cls, packed: bytes) -> Self:
        """Return the encoder of `to_bytes`.

        Raises:
            ValueError: if the bytes are damaged, or hold anything but an encoder.
        """
        import skops.io

        try:
            found = skops.io.get_untrusted_types(data=packed)
            if refused := [name for name in found if name not in _TRUSTED]:
                raise ValueError(f"the encoder of the columns holds {refused[0]}")
            state = skops.io.loads(packed, trusted=found)
            encoder = cls(Schema.from_json(json.loads(state["schema"])), state["transformer"])
            n_expanded = len(encoder.schema.columns) + sum(map(_n_parts, encoder.schema.columns))
            is_complete = bool(encoder.transformer.n_features_in_ == n_expanded and encoder.n_outputs)
        except ValueError:
            raise
        except DAMAGE_ERRORS as error:
            raise ValueError(f"the encoder of the columns is damaged: {error}") from None
        if not is_complete:
            raise ValueError("the encoder of the columns is damaged: it has other columns than its names")
        return encoder


class EncodedRows:
    """Encoded rows (n, k) of a table, computed block by block, because all of them would need much memory.

    Args:
        encoder: The encoder.
        X: The columns as numbers.
        rows: The indices of the rows.
        means: The mean targets of each row, which are its last encoded columns; None for the mean targets of all
            training rows.
    """

    ndim = 2

    def __init__(self, encoder: TableEncoder, X: Array, rows: NDArray[np.intp], means: Array | None = None) -> None:
        self._encoder = encoder
        self._X = X
        self._rows = rows
        self._means = means
        self._block = slice(0, 0)
        self._encoded = np.empty((0, encoder.n_outputs))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of encoded columns."""
        return len(self._rows), self._encoder.n_outputs

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> NDArray[np.float64]:
        start, stop, _ = rows.indices(len(self))
        if not self._block.start <= start <= stop <= self._block.stop:
            self._block = slice(start, max(stop, min(start + block_rows(self._encoder.n_outputs), len(self))))
            self._encoded = self._encode(self._block)
        return self._encoded[start - self._block.start : stop - self._block.start]

    def _encode(self, block: slice) -> NDArray[np.float64]:
        encoded = self._encoder.transform(self._X[self._rows[block]])
        if self._means is not None and self._means.shape[1]:
            encoded[:, -self._means.shape[1] :] = self._means[block]
        return encoded


def _make(name: str, n_rows: int, n_classes: int, seed: int) -> Any:
    """Return a transformer that is not fitted."""
    from sklearn.impute import SimpleImputer
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import OneHotEncoder, TargetEncoder

    min_rows = min(_MAX_RARE_ROWS, max(2, math.ceil(_RARE_SHARE * n_rows)))
    one_hot = {"min_frequency": min_rows, "handle_unknown": "infrequent_if_exist", "sparse_output": False}
    match name:
        case "numbers":
            return SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        case "dates":
            return SimpleImputer(strategy="median", keep_empty_features=True)
        case "categories":
            return OneHotEncoder(**one_hot)
        case "frequent":
            return OneHotEncoder(max_categories=MAX_ONE_HOT_LEVELS, **one_hot)
        case _:
            kind = "continuous" if not n_classes else "binary" if n_classes == 2 else "multiclass"
            folds = KFold(min(_TARGET_FOLDS, n_rows), shuffle=True, random_state=seed)
            return TargetEncoder(target_type=kind, cv=folds)


def _split(groups: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Divide large groups of columns, because a transformer needs several copies of its columns while it is fitted."""
    return {
        f"{name} {start}": group[start : start + _GROUP_COLUMNS]
        for name, group in groups.items()
        for start in range(0, len(group), _GROUP_COLUMNS)
    }


def _join(fitted: Mapping[str, tuple[Any, Sequence[int]]], first_row: Array) -> Any:
    """Return a ``ColumnTransformer`` of fitted transformers."""
    from sklearn.compose import ColumnTransformer
    from sklearn.frozen import FrozenEstimator

    parts = [(name, FrozenEstimator(transformer), list(group)) for name, (transformer, group) in fitted.items()]
    with warnings.catch_warnings():
        # A category of the first row is unknown if it is rare, or only in other folds.
        warnings.simplefilter("ignore", UserWarning)
        return ColumnTransformer(parts, sparse_threshold=0).fit(first_row)


def _columns(columns: Sequence[Column], X: Array, rows: NDArray[np.intp], group: Sequence[int]) -> Array:
    """Return expanded columns of some rows."""
    selected: Array
    if group[0] < len(columns):
        selected = X[np.ix_(rows, np.array(group))]
        return selected
    dates = [i for i, column in enumerate(columns) if column.kind == "date"]
    parts = _expand([columns[i] for i in dates], X[np.ix_(rows, np.array(dates))])[:, len(dates) :]
    selected = parts[:, np.array(group) - len(columns)]
    return selected


def _groups(columns: Sequence[Column], n_classes: int) -> dict[str, list[int]]:
    """Return the indices of the expanded columns by the transformer that encodes them."""
    many = "means" if n_classes <= MAX_TARGET_CLASSES else "frequent"
    groups: dict[str, list[int]] = {name: [] for name in ("numbers", "dates", "categories", "frequent", "means")}
    for i, column in enumerate(columns):
        is_large = len(column.levels) > MAX_ONE_HOT_LEVELS
        groups["numbers" if column.kind != "categorical" else many if is_large else "categories"].append(i)
    n_parts = sum(map(_n_parts, columns))
    groups["dates"] = list(range(len(columns), len(columns) + n_parts))
    return groups


def _n_parts(column: Column) -> int:
    return 0 if column.kind != "date" else len(PARTS) - (not column.has_times)


def _expand(columns: Sequence[Column], X: Array) -> Array:
    """Return columns followed by the parts of dates."""
    parts = [date_parts(X[:, i])[:, : _n_parts(column)] for i, column in enumerate(columns) if column.kind == "date"]
    return np.hstack([X, *parts]) if parts else X
