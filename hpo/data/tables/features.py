"""Features of a table: their kinds, their values as numbers, and notes about the columns that are left out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hpo.config.study import DataConfig
from hpo.data.checks import shorten
from hpo.data.sources import FEATURE_REQUIRED, find_invalid_feature
from hpo.data.tables.columns import select_features, show_column
from hpo.data.tables.reading.kinds import Recognized, Unused, recognize, with_kind
from hpo.data.tables.reading.reader import Table
from hpo.data.tables.reading.values import Values
from hpo.data.tables.schema import CellError, Column, Schema
from hpo.data.tables.selection import Selection

Array = NDArray[Any]

_REASONS: dict[Unused, str] = {
    "identifier": "nearly every row has another text",
    "free text": "free text",
    "empty": "without values",
}


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a table.

    Attributes:
        X: The columns as numbers (n, d).
        schema: The columns; None for plain numbers without gaps.
        kept: The positions of the columns.
        keys: The names of the columns, or their positions if a name is not unique.
        notes: Guesses about the columns, for messages.
        reading: The ways in which earlier versions of hpo did not read the columns.
    """

    X: Array
    schema: Schema | None
    kept: Sequence[int]
    keys: tuple[str | int, ...]
    notes: tuple[str, ...]
    reading: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """Reader of the features of one table.

    Attributes:
        table: The table.
        keys: The [data] of the study.
        selection: The columns by their use.
        refuse: Raises an error.
        prefers_comma: Whether numbers have rather a decimal comma than commas between thousands.
    """

    table: Table
    keys: DataConfig
    selection: Selection
    refuse: Callable[[str], NoReturn]
    prefers_comma: bool = False

    def read(self) -> Features:
        """Return the features."""
        X = self.table.matrix
        columns: list[Column] = []
        positions: list[int] = []
        unused: dict[int, Unused] = {}
        notes: list[str] = []
        for position in self.selection.kept:
            values = self._values(position)
            recognized = self._recognize(position, values)
            if recognized.note:
                notes.append(f"{self._show(position)}: {recognized.note}")
            if recognized.column is None:
                assert recognized.unused is not None
                unused[position] = recognized.unused
            else:
                numbers = recognized.numbers
                X[:, len(columns)] = (
                    self._read_cells(position, recognized.column, values) if numbers is None else numbers
                )
                columns.append(recognized.column)
                positions.append(position)
        if not columns:
            self.refuse(f"no feature is left: {'; '.join(self._describe_unused(unused))}")
        return self._select(X[:, : len(columns)], columns, positions, (*self._describe_unused(unused), *notes))

    def _select(self, X: Array, columns: list[Column], positions: list[int], notes: tuple[str, ...]) -> Features:
        """Leave out the columns that number the rows."""
        self._check_numbers(X, columns, positions)
        numeric = [i for i, p in enumerate(positions) if columns[i].kind == "numeric" and p not in self.selection.kinds]
        names = [column.name for column in columns]
        found = select_features(
            [X[:, i] for i in numeric],
            [names[i] for i in numeric],
            [positions[i] for i in numeric],
            self.keys.drop,
            leaves_out=True,
        )
        left_out = {numeric[i] for i in range(len(numeric)) if i not in found.kept}
        kept = [i for i in range(len(columns)) if i not in left_out]
        if not kept:
            self.refuse("no feature is left; a feature and a label are required")
        X = _keep(X, kept)
        schema = Schema(tuple(columns[i] for i in kept))
        is_plain = all(column == Column(column.name) for column in schema.columns) and not np.isnan(X).any()
        kept_positions = [positions[i] for i in kept]
        return Features(
            X,
            None if is_plain else schema,
            kept_positions,
            tuple(map(self._key, kept_positions)),
            (*self._describe(X, kept_positions), *found.notes, *notes),
            found.reading,
        )

    def _values(self, position: int) -> Values:
        try:
            return self.table.take(position)
        except ValueError as error:
            self.refuse(f"{self._show(position)} {error}; {self._drop(position)} leaves it out")

    def _recognize(self, position: int, values: Values) -> Recognized:
        name, kind = self.table.names[position], self.selection.kinds.get(position)
        if kind is None:
            return recognize(name, values, prefers_comma=self.prefers_comma)
        if values.is_missing.all():
            return Recognized(None, "empty")
        try:
            return Recognized(with_kind(name, values, kind, prefers_comma=self.prefers_comma))
        except CellError as error:
            self._refuse_cell(position, error)

    def _read_cells(self, position: int, column: Column, values: Values) -> NDArray[np.float64]:
        try:
            numbers = column.read(values)
        except CellError as error:
            self._refuse_cell(position, error)
        if np.isnan(numbers).all():
            self.refuse(f"{self._show(position)}: no value is a number; {self._drop(position)} leaves the column out")
        return numbers

    def _refuse_cell(self, position: int, error: CellError) -> NoReturn:
        where = f"{self.table.where(error.row)}, {self._show(position)}"
        self.refuse(f"{where}: {error}; correct it, or leave the column out with {self._drop(position)}")

    def _check_numbers(self, X: Array, columns: Sequence[Column], positions: Sequence[int]) -> None:
        if (invalid := find_invalid_feature(X, allows_missing=True)) is not None:
            row, i = invalid
            where = f"{self.table.where(row)}, {self._show(positions[i])}"
            self.refuse(f"{where}: {X[row, i]} is not a feature; {FEATURE_REQUIRED}")

    def _drop(self, position: int) -> str:
        return f"data.drop = {json.dumps([*(self.keys.drop or ()), position])}"

    def _describe_unused(self, unused: dict[int, Unused]) -> tuple[str, ...]:
        """Describe the columns that are left out because of their values."""
        described = []
        for reason, text in _REASONS.items():
            columns = [i for i, other in unused.items() if other == reason]
            key = json.dumps([self._key(i) for i in columns], ensure_ascii=False)
            keeps = f"; data.categorical = {key} keeps {'it' if len(columns) == 1 else 'them'}" * (reason != "empty")
            if columns:
                described.append(f"left out {shorten([self._show(i) for i in columns])}: {text}{keeps}")
        return tuple(described)

    def _describe(self, X: Array, kept: Sequence[int]) -> tuple[str, ...]:
        """Describe columns that are left out by a key, have the same name or are constant."""
        used = {*self.selection.kept, *self.selection.others}
        dropped = [self._show(i) for i in range(len(self.table.names)) if i not in used]
        names = [self.table.names[i] for i in kept]
        doubled = sorted({repr(name) for name in names if name is not None and names.count(name) > 1})
        constant = [self._show(kept[i]) for i in np.flatnonzero(_is_constant(X)).tolist()]
        return (
            *([f"left out by data.drop: {shorten(dropped)}"] * bool(dropped)),
            *([f"features with the same name: {shorten(doubled)}"] * bool(doubled)),
            *([f"constant features: {shorten(constant)}"] * bool(constant)),
        )

    def _key(self, position: int) -> str | int:
        name = self.table.names[position]
        return name if name and list(self.table.names).count(name) == 1 else position

    def _show(self, position: int) -> str:
        return show_column(self.table.names[position], position)


def _keep(X: Array, kept: Sequence[int]) -> Array:
    """Return the columns with these indices in the memory of the columns."""
    for i, column in enumerate(kept):
        if i != column:
            X[:, i] = X[:, column]
    return X[:, : len(kept)]


def _is_constant(X: Array) -> NDArray[np.bool_]:
    """Return whether each column (d,) has one value and no gaps."""
    constant: NDArray[np.bool_] = (X[:1] == X).all(axis=0)
    return constant
