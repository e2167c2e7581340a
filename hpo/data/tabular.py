"""CSV files with features in columns and a label column."""

import csv
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from hpo.config.study import StudyConfig
from hpo.data.sources import (
    EXACT_INTEGERS,
    FEATURE_REQUIRED,
    LABEL_REQUIRED,
    Array,
    Dataset,
    FileSource,
    data_config,
    find_file,
    find_invalid_feature,
    to_integers,
)
from hpo.errors import StudyFileError

_SHOWN_COLUMNS = 10


@dataclass(frozen=True)
class CsvSource(FileSource):
    """CSV file. Its first row is a header if ``label`` is given or if one of its features is not a number.

    Attributes:
        path: The file.
        label: The name of the label column; None for the last column.
        study_path: The study file, for messages.
    """

    has_columns: ClassVar[bool] = True

    path: Path
    label: str | None
    study_path: Path

    @classmethod
    def from_config(cls, config: StudyConfig) -> Self:
        """Return the source of a study's data."""
        return cls(find_file(config), data_config(config).label, config.path)

    def load(self) -> Dataset:
        """Load all rows."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                columns = self._parse(self._rows(file))
        except UnicodeDecodeError:
            self.refuse("not a UTF-8 text")
        X = np.frombuffer(columns.features).reshape(len(columns.lines), -1)
        if (invalid := find_invalid_feature(X)) is not None:
            row, column = invalid
            self.refuse(f"{columns.location(row, column)}: {X[row, column]} is not a feature; {FEATURE_REQUIRED}")
        return Dataset(self.name, X, self._labels(columns))

    def _rows(self, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the last line number and the cells of each row that is not blank."""
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            self.refuse(f"line {reader.line_num}: {error}")

    def _parse(self, rows: Iterator[tuple[int, list[str]]]) -> "_Columns":
        first_row = next(rows, None)
        if first_row is None:
            self.refuse("empty")
        first = list(first_row[1])
        if len(first) < 2:
            self.refuse(
                f"line {first_row[0]}: only one column; features and a label, separated by commas, are required"
            )
        columns = self._header(first)
        for line, cells in rows if columns.names else chain([first_row], rows):
            if len(cells) != len(first):
                self.refuse(f"line {line}: {len(cells)} columns instead of {len(first)}")
            if not columns.append(line, cells):
                self.refuse(columns.problem(line, cells))
        if not columns.lines:
            self.refuse("a header without rows")
        return columns

    def _header(self, first: list[str]) -> "_Columns":
        names = [cell.strip() for cell in first]
        if self.label is None:
            header = not all(map(_is_number, names[:-1]))
            return _Columns(names if header else [], len(names) - 1)
        if names.count(self.label) != 1:
            allowed = ", ".join(map(repr, names[:_SHOWN_COLUMNS])) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
            raise StudyFileError(
                f"{self.study_path}: data.label: {names.count(self.label)} columns of {self.path} have the name "
                f"{self.label!r}; allowed are {allowed}"
            )
        return _Columns(names, names.index(self.label))

    def _labels(self, columns: "_Columns") -> Array:
        labels = columns.labels
        try:
            numbers = np.array(labels, np.float64)
        except ValueError:
            if not columns.names and not _is_number(labels[0]) and all(map(_is_number, labels[1:])):
                self.refuse(f"line 1 is a header of numbers, or has a wrong label; set data.label = {labels[0]!r}")
            return np.array(labels)
        if (np.isfinite(numbers) & (np.abs(numbers) >= EXACT_INTEGERS)).any():
            # Text keeps all digits.
            return np.array(labels)
        return to_integers(
            numbers, lambda row: self.refuse(f"line {columns.lines[row]}: label {labels[row]!r}; {LABEL_REQUIRED}")
        )


class _Columns:
    """Columns of a CSV file.

    Attributes:
        names: The names of all columns; empty without a header.
        label: The index of the label column.
        lines: The line number of each row.
        labels: The label of each row.
        features: The features, row after row.
    """

    def __init__(self, names: list[str], label: int) -> None:
        self.names = names
        self.label = label
        self.lines = array("q")
        self.labels: list[str] = []
        self.features = array("d")

    def append(self, line: int, cells: list[str]) -> bool:
        """Append a row.

        Returns:
            Whether each feature is a number and the label is not empty.
        """
        label = cells.pop(self.label).strip()
        try:
            self.features.extend(map(float, cells))
        except ValueError:
            return False
        self.lines.append(line)
        self.labels.append(label)
        return bool(label)

    def problem(self, line: int, features: list[str]) -> str:
        """Describe the problem of a row that was not appended."""
        for column, cell in enumerate(features):
            if not _is_number(cell):
                return f"line {line}, {self._column(column)}: {cell.strip()!r} is not a number"
        return f"line {line}: the label is missing"

    def location(self, row: int, feature: int) -> str:
        """Return line and column of a feature."""
        return f"line {self.lines[row]}, {self._column(feature)}"

    def _column(self, feature: int) -> str:
        column = feature + (feature >= self.label)
        return f"column {self.names[column]!r}" if self.names else f"column {column + 1}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
