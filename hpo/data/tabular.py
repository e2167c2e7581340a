"""CSV files with features in columns and a label column."""

import csv
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn, Self

import numpy as np

from hpo.config.study import DataConfig, StudyConfig
from hpo.data.checks import shorten
from hpo.data.columns import (
    counts_columns,
    has_header,
    is_missing,
    is_named_header,
    is_number,
    select_features,
    show_column,
)
from hpo.data.sources import (
    EXACT_INTEGERS,
    FEATURE_REQUIRED,
    MAX_FEATURE,
    Array,
    Dataset,
    FileSource,
    data_config,
    find_file,
    find_invalid_feature,
)
from hpo.errors import StudyFileError

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.0")
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "'|'"}


@dataclass(frozen=True)
class CsvSource(FileSource):
    """CSV file.

    Attributes:
        path: The file.
        keys: The [data] of the study.
        study_path: The study file, for messages.
    """

    has_columns: ClassVar[bool] = True

    path: Path
    keys: DataConfig
    study_path: Path

    @classmethod
    def from_config(cls, config: StudyConfig) -> Self:
        """Return the source of a study's data."""
        return cls(find_file(config), data_config(config), config.path)

    def load(self) -> Dataset:
        """Load all rows."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                columns = self._parse(self._rows(file))
        except UnicodeDecodeError:
            self.refuse("not a UTF-8 text; save the table as CSV in UTF-8")
        X = columns.features
        if (invalid := find_invalid_feature(X)) is not None:
            self._refuse_feature(columns, *invalid)
        labels = self._labels(columns)
        names = [columns.name(i) for i in columns.kept]
        try:
            features = select_features(X, names, columns.kept, self.keys.drop)
        except ValueError as error:
            self.refuse(str(error))
        X = X if len(features.kept) == X.shape[1] else np.ascontiguousarray(X[:, features.kept])
        kept = [columns.kept[i] for i in features.kept]
        return Dataset(
            self.name,
            X,
            labels.labels,
            is_table=True,
            feature_names=columns.unique_names(kept),
            lines=np.array(columns.lines),
            label=f"the label, {show_column(columns.name(columns.label), columns.label)},",
            summary=columns.summary,
            notes=(*columns.notes(X, kept), *features.notes, *labels.notes),
            reading=(*columns.reading, *features.reading, *labels.reading),
            group=None if self.keys.group is None else np.array(columns.divider_cells),
            order=None if self.keys.order is None else np.array(columns.divider_cells),
        )

    def _find_divider(self, names: Sequence[str]) -> int | None:
        """Return the index of the column of the groups or of the order, None without either."""
        for key, column in (("group", self.keys.group), ("order", self.keys.order)):
            if column is not None:
                return self._find_column(key, column, names)
        return None

    def _rows(self, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the last line number and the cells of each row that is not blank."""
        reader = csv.reader(self._without_nul(file), strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            self.refuse(f"line {reader.line_num}: {error}")

    def _without_nul(self, file: Iterable[str]) -> Iterator[str]:
        """Refuse a line with a NUL character, because NumPy removes it from the end of a text."""
        for number, line in enumerate(file, 1):
            if "\0" in line:
                self.refuse(f"line {number}: a NUL character (byte 0); remove it, or save the table as CSV in UTF-8")
            yield line

    def _parse(self, rows: Iterator[tuple[int, list[str]]]) -> "_Columns":
        line, first = next(rows, (0, []))
        if not first:
            self.refuse("empty")
        if len(first) < 2:
            self._refuse_single_column(line, first[0])
        names = [cell.strip() for cell in first]
        label = self._find_label(names)
        columns = _Columns(label, self._find_kept(names, label), names, self._find_divider(names))
        if self.keys.header is not None:
            columns.has_header = self.keys.header
        if columns.has_header is False and not columns.append(line, first):
            self._refuse_row(columns, line, first, rows)
        for number, cells in rows:
            if len(cells) != len(first):
                self.refuse(f"line {number}: {len(cells)} columns instead of {len(first)}")
            if not columns.append(number, cells):
                self._refuse_row(columns, number, cells, rows)
        if not columns.lines:
            self.refuse("a header without rows")
        if columns.has_header is None:
            self._decide_header(columns, line, first)
        return columns

    def _refuse_row(
        self, columns: "_Columns", line: int, cells: Sequence[str], rest: Iterable[tuple[int, Sequence[str]]]
    ) -> NoReturn:
        """Refuse a row with a missing label, or with a feature that is missing or not a number.

        Args:
            columns: The rows before it.
            line: The line number of the row.
            cells: The cells of the row.
            rest: The rows after it.
        """
        invalid = next((i for i in columns.kept if is_missing(cells[i]) or not is_number(cells[i])), columns.label)
        where = f"line {line}, {columns.show(invalid)}: {cells[invalid].strip()!r} is"
        if invalid == columns.label:
            missing = 1 + sum(not row[invalid].strip() for _, row in rest if invalid < len(row))
            advice = f"fill in or remove the rows without a label ({missing} from here on)"
            self.refuse(f"line {line}: the label is missing; {advice}{self._other_label(columns)}")
        if self.keys.header is False and not columns.lines:
            self.refuse(f"{where} not a number; if line {line} is a header, remove data.header = false")
        if is_missing(cells[invalid]):
            missing = 1 + sum(is_missing(row[invalid]) for _, row in rest if invalid < len(row))
            self._refuse_missing(where, missing, invalid)
        if found := [name for delimiter, name in _OTHER_DELIMITERS.items() if delimiter in cells[invalid]]:
            self.refuse(f"{where} not a number; commas must separate the columns, not {found[0]}")
        # A column that begins with numbers is not a label of text.
        is_label = self.keys.label is None and not columns.lines
        other = f"data.label = {invalid} makes this column the label" if is_label else "correct it"
        self.refuse(f"{where} not a number; {other}, or leave the column out with {self._drop(invalid)}")

    def _refuse_feature(self, columns: "_Columns", row: int, feature: int) -> NoReturn:
        X = columns.features
        where = f"line {columns.lines[row]}, {columns.show(columns.kept[feature])}: {X[row, feature]} is"
        if np.isnan(X[row, feature]):
            self._refuse_missing(where, int(np.isnan(X[:, feature]).sum()), columns.kept[feature])
        self.refuse(f"{where} not a feature; {FEATURE_REQUIRED}")

    def _refuse_missing(self, where: str, count: int, column: int) -> NoReturn:
        self.refuse(
            f"{where} a missing value; fill in or remove the rows without a value in this column ({count} from here "
            f"on), or leave the column out with {self._drop(column)}"
        )

    def _drop(self, column: int) -> str:
        return f"data.drop = {json.dumps([*(self.keys.drop or ()), column])}"

    def _other_label(self, columns: "_Columns") -> str:
        """Advise to choose another label if the last column may be empty throughout."""
        is_guessed = self.keys.label is None and not any(label.strip() for label in columns.labels)
        return ", or set data.label to the column of the classes" if is_guessed else ""

    def _decide_header(self, columns: "_Columns", line: int, first: Sequence[str]) -> None:
        keys = (self.keys.label, self.keys.group, self.keys.order, *(self.keys.drop or ()))
        is_named = any(isinstance(key, str) for key in keys)
        if is_named:
            decision = is_named_header(first, columns.label, columns.kept, columns.labels)
        else:
            decision = has_header(first, columns.label, columns.kept, columns.labels, columns.features)
        if decision is None:
            self.refuse(
                f"line {line} may be a header or a row: {shorten([cell.strip() for cell in first])}; "
                "set data.header = true or data.header = false"
            )
        columns.has_header = decision
        if decision and counts_columns(first, columns.label) and all(is_number(first[i]) for i in columns.kept):
            columns.reading = ("with a header of numbers",)
        if not decision and not columns.prepend(line, first):
            self._refuse_row(columns, line, first, ())

    def _find_label(self, names: Sequence[str]) -> int:
        if self.keys.label is None:
            return len(names) - 1
        return self._find_column("label", self.keys.label, names)

    def _find_kept(self, names: Sequence[str], label: int) -> list[int]:
        dropped = {self._find_column("drop", key, names) for key in self.keys.drop or ()}
        if label in dropped:
            self._refuse_key(
                "drop", f"{show_column(names[label], label)} is the label; set data.label to another column"
            )
        divider = self._find_divider(names)
        if divider == label:
            key = "group" if self.keys.group is not None else "order"
            self._refuse_key(key, f"{show_column(names[label], label)} is the label; set another column")
        kept = [i for i in range(len(names)) if i not in (label, divider) and i not in dropped]
        if not kept:
            self._refuse_key("drop", "no feature is left")
        return kept

    def _find_column(self, key: str, column: str | int, names: Sequence[str]) -> int:
        """Return the index of the column that a key of the study file names."""
        if isinstance(column, int):
            if not -len(names) <= column < len(names):
                self._refuse_key(
                    key, f"{self.path} has no column {column}; -{len(names)} to {len(names) - 1} are allowed"
                )
            return column % len(names)
        if self.keys.header is False:
            self._refuse_key(key, f"{column!r} is a name, and data.header = false; a position from 0 is allowed")
        if column not in names:
            allowed = f"allowed are {shorten(list(map(repr, names)))}, or a position from 0"
            self._refuse_key(key, f"{self.path} has no column with the name {column!r}; {allowed}")
        if names.count(column) > 1:
            found = ", ".join(str(i) for i, name in enumerate(names) if name == column)
            problem = f"{names.count(column)} columns of {self.path} have the name {column!r}"
            self._refuse_key(key, f"{problem}; use one of their positions: {found}")
        return names.index(column)

    def _refuse_key(self, key: str, problem: str) -> NoReturn:
        raise StudyFileError(f"{self.study_path}: data.{key}: {problem}")

    def _refuse_single_column(self, line: int, cell: str) -> NoReturn:
        found = [name for delimiter, name in _OTHER_DELIMITERS.items() if delimiter in cell]
        other = f", not {found[0]}" if found else ""
        self.refuse(f"line {line}: only one column; features and a label, separated by commas{other}, are required")

    def _labels(self, columns: "_Columns") -> "_Labels":
        written = columns.labels
        stripped = [label.strip() for label in written]
        if self._are_targets(stripped):
            return _Labels(self._targets(columns, stripped))
        numbers = _exact_numbers(stripped)
        if numbers is not None:
            return _Labels(numbers)
        self._check_text(columns, stripped)
        were_numbers = all(map(_was_number, stripped))
        was_text = not were_numbers or any(abs(float(label)) >= EXACT_INTEGERS for label in stripped)
        example = next((label for label in stripped if not _INTEGER.fullmatch(label)), None)
        is_noted = were_numbers and example is not None
        notes = (f"labels are text, because {example!r} is not written as a whole number",) if is_noted else ()
        return _Labels(np.array(written), notes, () if was_text and written == stripped else ("labels as text",))

    def _are_targets(self, stripped: Sequence[str]) -> bool:
        """Return whether labels are numbers to predict: by the study file, or because they are not all whole."""
        if self.keys.task is not None:
            return self.keys.task == "regression"
        return all(map(is_number, stripped)) and not all(float(label).is_integer() for label in stripped)

    def _targets(self, columns: "_Columns", stripped: Sequence[str]) -> Array:
        """Return labels as numbers, and refuse missing ones and others."""
        for row, label in enumerate(stripped):
            if not is_number(label) or not abs(float(label)) <= MAX_FEATURE:
                self._check_present(columns, row, stripped)
                self.refuse(f"line {columns.lines[row]}: label {label!r} is not a target; {FEATURE_REQUIRED}")
        return np.array(stripped, np.float64)

    def _check_present(self, columns: "_Columns", row: int, stripped: Sequence[str]) -> None:
        """Refuse the label of a row if its text is that of a missing number."""
        if stripped[row].lower() == "nan":
            missing = sum(label.lower() == "nan" for label in stripped)
            where = f"line {columns.lines[row]}: label {stripped[row]!r}"
            self.refuse(f"{where} is a missing value; fill in or remove the rows without a label ({missing})")

    def _check_text(self, columns: "_Columns", stripped: Sequence[str]) -> None:
        """Refuse missing labels, and labels that differ in spaces only."""
        spellings: dict[str, str] = {}
        for row, (label, written) in enumerate(zip(stripped, columns.labels, strict=True)):
            self._check_present(columns, row, stripped)
            if spellings.setdefault(label, written) != written:
                where = f"line {columns.lines[row]}: label {label!r}"
                self.refuse(f"{where} is written with and without spaces; correct the file")


@dataclass(frozen=True, eq=False)
class _Labels:
    """Labels, the guesses about them, and the ways in which earlier versions of hpo did not read them."""

    labels: Array
    notes: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()


class _Columns:
    """Columns of a CSV file.

    Attributes:
        label: The index of the label column.
        kept: The indices of the feature columns.
        first: The cells of the first row.
        has_header: Whether the first row is a header, None until this is decided.
        reading: The ways in which earlier versions of hpo did not read the columns.
        lines: The line number of each row.
        labels: The label of each row, as it is written.
        divider: The index of the column of the groups or of the order, None without either.
        divider_cells: The cells of this column.
    """

    def __init__(self, label: int, kept: list[int], first: Sequence[str], divider: int | None = None) -> None:
        self.label = label
        self.kept = kept
        self.first = first
        self.has_header: bool | None = None
        self.reading: tuple[str, ...] = ()
        self.lines = array("q")
        self.labels: list[str] = []
        self.divider = divider
        self.divider_cells: list[str] = []
        self._features = array("d")

    @property
    def features(self) -> Array:
        """Features (n, d)."""
        return np.frombuffer(self._features).reshape(len(self.lines), len(self.kept))

    def append(self, line: int, cells: Sequence[str]) -> bool:
        """Append a row.

        Returns:
            Whether each feature is a number and the label is not empty.
        """
        label = cells[self.label]
        features = [cells[i] for i in self.kept]
        joined = "".join(features)
        try:
            self._features.extend(map(float, features))
        except ValueError:
            return False
        if "_" in joined or not joined.isascii():
            return False
        self.lines.append(line)
        self.labels.append(label)
        if self.divider is not None:
            self.divider_cells.append(cells[self.divider].strip())
        return bool(label.strip())

    def prepend(self, line: int, cells: Sequence[str]) -> bool:
        """Insert a row before all others.

        Returns:
            Whether the label is not empty. The features are numbers.
        """
        self.lines.insert(0, line)
        self.labels.insert(0, cells[self.label])
        if self.divider is not None:
            self.divider_cells.insert(0, cells[self.divider].strip())
        self._features = array("d", [float(cells[i]) for i in self.kept]) + self._features
        return bool(cells[self.label].strip())

    def unique_names(self, features: Sequence[int]) -> tuple[str, ...] | None:
        """Return the names of features, None if a feature has no name of its own."""
        names = [self.name(i) for i in features]
        return tuple(map(str, names)) if all(names) and len(set(names)) == len(names) else None

    def name(self, column: int) -> str | None:
        """Return the name of a column, None without a header."""
        name = self.first[column]
        # An error can come before the decision.
        is_named = not is_number(name) if self.has_header is None else self.has_header
        return name if is_named else None

    @property
    def summary(self) -> str:
        """Header and label, for messages."""
        header = "a header" if self.has_header else "no header"
        return f"{header}, label in {self.show(self.label)}: "

    def notes(self, X: Array, kept: Sequence[int]) -> tuple[str, ...]:
        """Describe columns that are left out, have the same name or are constant."""
        used = {*self.kept, self.label, self.divider}
        dropped = [self.show(i) for i in range(len(self.first)) if i not in used]
        names = [self.name(i) for i in kept]
        doubled = sorted({repr(name) for name in names if name is not None and names.count(name) > 1})
        constant = [self.show(kept[i]) for i in np.flatnonzero(np.ptp(X, axis=0) == 0).tolist()]
        return (
            *([f"left out by data.drop: {shorten(dropped)}"] * bool(dropped)),
            *([f"features with the same name: {shorten(doubled)}"] * bool(doubled)),
            *([f"constant features: {shorten(constant)}"] * bool(constant)),
        )

    def show(self, column: int) -> str:
        """Return a column for a message."""
        return show_column(self.name(column), column)


def _exact_numbers(labels: Sequence[str]) -> Array | None:
    """Return labels as numbers if their text can be restored from the numbers."""
    if all(map(_INTEGER.fullmatch, labels)):
        numbers = list(map(int, labels))
        return np.array(numbers, np.int64) if max(map(abs, numbers)) < EXACT_INTEGERS else None
    if all(map(_DECIMAL.fullmatch, labels)):
        decimals = np.array(labels, np.float64)
        return decimals if np.abs(decimals).max() < EXACT_INTEGERS else None
    return None


def _was_number(label: str) -> bool:
    """Return whether earlier versions of hpo read a label as a number."""
    try:
        float(label)
    except ValueError:
        return False
    return True
