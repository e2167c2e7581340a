"""Columns of a table as it was read for a study: their kinds, and their values as numbers."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from hpo.data.tables.reading.dates import most_frequent_format, parse_dates, to_times
from hpo.data.tables.reading.numbers import NumberStyle, parse_numbers, without_unit
from hpo.data.tables.reading.values import Values

Array = NDArray[Any]

Kind = Literal["numeric", "boolean", "categorical", "date"]

# Value of a category that the training did not see. A missing value is NaN.
UNKNOWN = -1.0

TRUE, FALSE = ("true", "yes", "y", "t", "on", "1"), ("false", "no", "n", "f", "off", "0")
_EIGHT_DIGITS = re.compile(r"[0-9]{8}")
_YEAR = re.compile(r"[12][0-9]{3}")


class CellError(ValueError):
    """A cell that has no value of its column's kind.

    Attributes:
        row: The row, from 0.
    """

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(problem)
        self.row = row


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Attributes:
        name: The name, None without a header.
        kind: The kind.
        levels: The sorted categories, as `level_text` writes them.
        form: The format of dates.
        style: The style of numbers in texts.
        unit: The unit of each number in a text, such as "%"; empty without one.
        skips_text: Whether text between numbers is a missing value.
        has_times: Whether dates have a time of the day.
    """

    name: str | None
    kind: Kind = "numeric"
    levels: tuple[str, ...] = ()
    form: str = ""
    style: NumberStyle = "plain"
    unit: str = ""
    skips_text: bool = False
    has_times: bool = False

    def read(self, values: Values) -> NDArray[np.float64]:
        """Return values as numbers (n,): a number, 0 or 1, the index of a category, or seconds since 1970.

        Raises:
            CellError: if a value is not of the column's kind.
            ValueError: if the column has another type, such as times in place of numbers.
        """
        return _READERS[self.kind](self, values)

    def values(self, numbers: Array) -> Array:
        """Return numbers of `read` as values (n,) that `read` accepts."""
        if self.kind == "date":
            return to_times(numbers)
        if self.kind == "categorical":
            levels = np.array([*self.levels, None], object)
            return levels[np.where(numbers >= 0, numbers, -1).astype(np.intp)]
        return numbers


@dataclass(frozen=True)
class Schema:
    """Columns that are features, in the order of the training."""

    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the columns, None if a column has none."""
        names = tuple(column.name for column in self.columns if column.name is not None)
        return names if len(names) == len(self.columns) else None

    def frame(self, X: Array) -> Any:
        """Return the numbers (n, d) of the columns as a data frame of their values."""
        import pandas as pd

        names = [i if column.name is None else column.name for i, column in enumerate(self.columns)]
        series = [pd.Series(column.values(X[:, i])) for i, column in enumerate(self.columns)]
        frame = pd.concat(series, axis=1)
        frame.columns = pd.Index(names)
        return frame

    def to_json(self) -> list[dict[str, Any]]:
        """Return the columns as values for JSON."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_json(cls, columns: Sequence[Mapping[str, Any]]) -> Self:
        """Return the columns of `to_json`.

        Raises:
            TypeError: if the values are not those of columns.
            KeyError: if a column has no levels.
            ValueError: if a kind is unknown.
        """
        read = tuple(Column(**{**column, "levels": tuple(column["levels"])}) for column in columns)
        if unknown := [column.kind for column in read if column.kind not in _READERS]:
            raise ValueError(f"no kind of a column is named {unknown[0]!r}")
        return cls(read)


def date_format(values: Values) -> str:
    """Return the format of values that the study file calls dates.

    Raises:
        CellError: if they have no common format.
    """
    if values.kind == "times":
        return ""
    texts = values.as_texts()
    for form, pattern in (("%Y%m%d", _EIGHT_DIGITS), ("%Y", _YEAR)):
        if texts.levels and all(map(pattern.fullmatch, texts.levels)):
            return form
    # A text that does not fit is refused when the column is read.
    return most_frequent_format(texts.levels)


def _read_numeric(column: Column, values: Values) -> NDArray[np.float64]:
    if values.kind == "times":
        raise ValueError("holds times; numbers are required")
    if values.kind != "texts":
        return values.numbers
    numbers = parse_numbers(without_unit(values.levels, column.unit), column.style)
    # A text such as "nan" is a missing value, so that NaN is a text that is no number.
    if not column.skips_text:
        _refuse_text(values, ~np.isnan(numbers), "a number")
    return take_levels(numbers, values)


def _read_boolean(column: Column, values: Values) -> NDArray[np.float64]:
    del column
    if values.kind != "texts":
        other = ~np.isnan(values.numbers) & (values.numbers != 0) & (values.numbers != 1)
        if other.any():
            row = int(other.argmax())
            raise CellError(row, f"{values.numbers[row].item()!r} is not true or false")
        return values.numbers
    lower = [level.lower() for level in values.levels]
    numbers = np.array([1.0 if level in TRUE else 0.0 if level in FALSE else np.nan for level in lower])
    _refuse_text(values, ~np.isnan(numbers), "true or false")
    return take_levels(numbers, values)


def _read_categorical(column: Column, values: Values) -> NDArray[np.float64]:
    texts = values.as_texts()
    # pandas reads "true" in a file as a boolean, hpo reads it as the text of a category.
    spell = str.lower if values.kind == "booleans" else str
    index = {spell(level): float(i) for i, level in enumerate(column.levels)}
    return take_levels(np.array([index.get(spell(level), UNKNOWN) for level in texts.levels]), texts)


def _read_date(column: Column, values: Values) -> NDArray[np.float64]:
    if values.kind == "times":
        return values.numbers
    texts = values.as_texts()
    seconds = parse_dates(texts.levels, column.form or "ISO8601")
    _refuse_text(texts, ~np.isnan(seconds), f"a date in the format {column.form or 'ISO8601'}")
    return take_levels(seconds, texts)


_READERS: Mapping[Kind, Callable[[Column, Values], NDArray[np.float64]]] = {
    "numeric": _read_numeric,
    "boolean": _read_boolean,
    "categorical": _read_categorical,
    "date": _read_date,
}


def take_levels(numbers: NDArray[np.float64], texts: Values) -> NDArray[np.float64]:
    """Return the numbers of a column's levels as the numbers of its rows (n,)."""
    taken: NDArray[np.float64] = np.append(numbers, np.nan)[texts.numbers]
    return taken


def _refuse_text(texts: Values, is_valid: NDArray[np.bool_], required: str) -> None:
    """Raise a CellError for the first text that is not valid."""
    if is_valid.all():
        return
    row = int((~np.append(is_valid, True)[texts.numbers]).argmax())
    raise CellError(row, f"{texts.levels[texts.numbers[row]]!r} is not {required}")
