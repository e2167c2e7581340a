"""Columns that the keys of [data] name: the label, columns to leave out, and columns of a given kind."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hpo.config.study import DataConfig
from hpo.data.checks import shorten
from hpo.data.tables.columns import show_column
from hpo.data.tables.schema import Kind
from hpo.errors import StudyFileError

_KINDS: tuple[tuple[str, Kind], ...] = (("categorical", "categorical"), ("numeric", "numeric"), ("date", "date"))


@dataclass(frozen=True)
class Selection:
    """Columns of a table by their use.

    Attributes:
        label: The index of the label column.
        kept: The indices of the columns that may be features.
        kinds: The kinds that the study file names, by the index of a column.
        divider: The index of the column of the groups or of the order, None without either.
    """

    label: int
    kept: tuple[int, ...]
    kinds: dict[int, Kind]
    divider: int | None = None

    @property
    def others(self) -> tuple[int, ...]:
        """Indices of the columns that are used, but are no features."""
        return (self.label,) if self.divider is None else (self.label, self.divider)


def select_columns(keys: DataConfig, names: Sequence[str], path: Path, study_path: Path) -> Selection:
    """Find the columns that the keys of a study name.

    Args:
        keys: The [data] of the study.
        names: The cells of the first row, or the names of the columns.
        path: The file of the table, for messages.
        study_path: The study file, for messages.

    Raises:
        StudyFileError: if a key names a column that does not exist, or whose use is another one.
    """
    return _Finder(keys, names, path, study_path).select()


def names_a_column(keys: DataConfig) -> bool:
    """Return whether a key names a column by its name."""
    lists = (keys.drop, keys.categorical, keys.numeric, keys.date)
    named = (keys.label, keys.group, keys.order, *(column for listed in lists for column in listed or ()))
    return any(isinstance(column, str) for column in named)


@dataclass(frozen=True)
class _Finder:
    keys: DataConfig
    names: Sequence[str]
    path: Path
    study_path: Path

    def select(self) -> Selection:
        label = len(self.names) - 1 if self.keys.label is None else self._find("label", self.keys.label)
        dropped = {self._find("drop", column) for column in self.keys.drop or ()}
        if label in dropped:
            self._refuse_label("drop", label)
        divider = self._find_divider(label)
        kept = tuple(i for i in range(len(self.names)) if i not in (label, divider) and i not in dropped)
        if not kept:
            self._refuse("drop", "no feature is left")
        return Selection(label, kept, self._find_kinds(label, divider, dropped), divider)

    def _find_divider(self, label: int) -> int | None:
        """Return the index of the column of the groups or of the order, None without either."""
        for key, column in (("group", self.keys.group), ("order", self.keys.order)):
            if column is not None:
                divider = self._find(key, column)
                if divider == label:
                    self._refuse(key, f"{show_column(self.names[label], label)} is the label; set another column")
                return divider
        return None

    def _find_kinds(self, label: int, divider: int | None, dropped: set[int]) -> dict[int, Kind]:
        kinds: dict[int, Kind] = {}
        for key, kind in _KINDS:
            for column in getattr(self.keys, key) or ():
                found = self._find(key, column)
                if found == label:
                    self._refuse_label(key, label)
                if found == divider:
                    problem = "divides the rows and is no feature; remove it from this key"
                    self._refuse(key, f"{show_column(self.names[found], found)} {problem}")
                if found in dropped or kinds.get(found, kind) != kind:
                    other = "drop" if found in dropped else kinds[found]
                    self._refuse(key, f"{show_column(self.names[found], found)} is in data.{other}, too; choose one")
                kinds[found] = kind
        return kinds

    def _find(self, key: str, column: str | int) -> int:
        """Return the index of the column that a key of the study file names."""
        names = self.names
        if isinstance(column, int):
            if not -len(names) <= column < len(names):
                self._refuse(key, f"{self.path} has no column {column}; -{len(names)} to {len(names) - 1} are allowed")
            return column % len(names)
        if self.keys.header is False:
            self._refuse(key, f"{column!r} is a name, and data.header = false; a position from 0 is allowed")
        if column not in names:
            similar = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {similar[0]!r}? " if similar else ""
            allowed = f"{hint}allowed are {shorten(list(map(repr, names)))}, or a position from 0"
            self._refuse(key, f"{self.path} has no column with the name {column!r}; {allowed}")
        if names.count(column) > 1:
            found = ", ".join(str(i) for i, name in enumerate(names) if name == column)
            problem = f"{names.count(column)} columns of {self.path} have the name {column!r}"
            self._refuse(key, f"{problem}; use one of their positions: {found}")
        return names.index(column)

    def _refuse_label(self, key: str, label: int) -> NoReturn:
        self._refuse(key, f"{show_column(self.names[label], label)} is the label; set data.label to another column")

    def _refuse(self, key: str, problem: str) -> NoReturn:
        raise StudyFileError(f"{self.study_path}: data.{key}: {problem}")
