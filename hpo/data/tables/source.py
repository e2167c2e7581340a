"""Tables in files: text with a delimiter, and Parquet."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from hpo.config.study import DataConfig, StudyConfig
from hpo.data.checks import shorten
from hpo.data.sources import LABEL_REQUIRED, Array, Dataset, FileSource, data_config, find_file
from hpo.data.tables.columns import counts_columns, has_header, is_missing, is_named_header, is_number, show_column
from hpo.data.tables.features import FeatureReader, Features
from hpo.data.tables.labels import Labels, LabelTexts, read_typed_labels
from hpo.data.tables.reading.reader import Table, read_parquet, read_text
from hpo.data.tables.reading.text_file import TextTable, scan
from hpo.data.tables.selection import Selection, names_a_column, select_columns
from hpo.data.tables.summary import describe_columns
from hpo.errors import StudyFileError
from hpo.utils.text import count_of

# A text column may have some numbers, and the other way round.
_NUMBER_SHARE = 0.5


@dataclass(frozen=True)
class TableSource(FileSource):
    """Table with features in columns and a label column.

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

    @abstractmethod
    def load(self) -> Dataset:
        """Load all rows."""

    def _select(self, names: Sequence[str]) -> Selection:
        return select_columns(self.keys, names, self.path, self.study_path)

    def _dataset(
        self, table: Table, selection: Selection, features: Features, labels: Labels, layout: "_Layout"
    ) -> Dataset:
        names = [table.names[i] for i in features.kept]
        label = show_column(table.names[selection.label], selection.label)
        kinds = () if features.schema is None else describe_columns(features.schema, features.X, features.kept)
        return Dataset(
            self.name,
            features.X,
            labels.labels,
            is_table=True,
            feature_names=_unique_names(names),
            columns=features.keys,
            schema=features.schema,
            lines=table.lines,
            label=f"the label, {label},",
            summary=f"{layout.header}label in {label}: ",
            notes=(*layout.notes, *kinds, *features.notes, *labels.notes),
            reading=(*layout.reading, *features.reading, *labels.reading),
            group=None if self.keys.group is None else self._divider(table, selection),
            order=None if self.keys.order is None else self._divider(table, selection),
        )

    def _divider(self, table: Table, selection: Selection) -> Array:
        """Return the values of the groups or of the order."""
        assert selection.divider is not None, "a key names the column"
        try:
            return table.divider(selection.divider)
        except ValueError as error:
            self.refuse(f"{show_column(table.names[selection.divider], selection.divider)} {error}")


class _Layout(NamedTuple):
    """Guesses about a file for messages, and the ways in which earlier versions of hpo did not read it."""

    header: str = ""
    notes: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()


@dataclass(frozen=True)
class CsvSource(TableSource):
    """Text file with a delimiter between the columns."""

    def load(self) -> Dataset:
        """Load all rows."""
        text = scan(self.path, self.refuse)
        selection = self._select(text.first)
        header = self._has_header(text, selection)
        if len(text.lines) == header:
            self.refuse("a header without rows; add rows below it")
        categorical = [i for i, kind in selection.kinds.items() if kind == "categorical"]
        table = read_text(
            text, has_header=header, kept=selection.kept, as_text=categorical, as_written=selection.others
        )
        labels = self._labels(table, selection.label, prefers_comma=text.delimiter != ",")
        features = FeatureReader(table, self.keys, selection, self.refuse, prefers_comma=text.delimiter != ",").read()
        counted = header and counts_columns(text.first, selection.label)
        is_new = counted and all(is_number(text.first[i]) for i in selection.kept)
        layout = _Layout("a header, " if header else "no header, ", text.notes, ("with a header of numbers",) * is_new)
        return self._dataset(table, selection, features, labels, layout)

    def _labels(self, table: Table, label: int, *, prefers_comma: bool) -> Labels:
        texts, codes = table.written[label]
        is_guessed = self.keys.label is None
        written = LabelTexts(texts, codes, self.keys.task, table.where, self.refuse, is_guessed)
        return written.read(prefers_comma=prefers_comma)

    def _has_header(self, text: TextTable, selection: Selection) -> bool:
        if self.keys.header is not None:
            if not self.keys.header:
                self._check_no_header(text, selection)
            return self.keys.header
        if len(text.lines) == 1:
            # One row of names is a header, one row with a number is a row.
            return not any(is_number(text.first[i]) for i in (*selection.kept, selection.label))
        decision = self._decide_header(_Sample(text, selection))
        if decision is None:
            self.refuse(
                f"line {text.lines[0]} may be a header or a row: {shorten(text.first)}; "
                "set data.header = true or data.header = false"
            )
        return decision

    def _decide_header(self, sample: "_Sample") -> bool | None:
        first, label, labels = sample.text.first, sample.selection.label, sample.labels
        if names_a_column(self.keys):
            return is_named_header(first, label, sample.selection.kept, labels)
        numeric = sample.numeric
        n_text = len(sample.selection.kept) - len(numeric)
        is_named = any(not is_number(first[i]) and not is_missing(first[i]) for i in numeric)
        if n_text and not is_named and not counts_columns(first, label):
            return sample.is_text_header()
        return has_header(first, label, numeric, labels, sample.numbers(numeric), n_text=n_text)

    def _check_no_header(self, text: TextTable, selection: Selection) -> None:
        """Refuse a first row of names that the study file calls a row."""
        sample = _Sample(text, selection)
        for i in sample.numeric:
            if not is_number(text.first[i]) and not is_missing(text.first[i]):
                line = text.lines[0]
                self.refuse(
                    f"line {line}, {show_column(None, i)}: {text.first[i]!r} is not a number; if line {line} is a "
                    "header, remove data.header = false"
                )


@dataclass(frozen=True, eq=False)
class _Sample:
    """First rows of a text file, for the decision whether the first one is a header."""

    text: TextTable
    selection: Selection

    @property
    def labels(self) -> list[str]:
        """Labels of the rows after the first."""
        return self._column(self.selection.label)

    @cached_property
    def numeric(self) -> list[int]:
        """Positions of the features whose cells below the first row are mostly numbers."""
        return [i for i in self.selection.kept if _are_numbers(self._column(i))]

    def numbers(self, positions: Sequence[int]) -> NDArray[np.float64]:
        """Return columns of the rows after the first as numbers; NaN for other cells."""
        columns = [[float(c) if is_number(c) else np.nan for c in self._column(i)] for i in positions]
        return np.array(columns, np.float64).T.reshape(len(self.text.sample), len(positions))

    def is_text_header(self) -> bool | None:
        """Decide whether the first row is a header, if it differs from the others at most in columns of text."""
        first, label = self.text.first, self.selection.label
        texts = [i for i in self.selection.kept if i not in self.numeric]
        if any(first[i] in self._column(i) for i in texts if first[i]):
            return False
        if any(is_number(first[i]) for i in self.numeric):
            return False
        own_label, labels = first[label], [other.strip() for other in self.labels]
        if own_label in labels or is_number(own_label):
            return False
        if self.numeric or _are_numbers(labels):
            return True
        # A new text in each column is a header if the texts of the other rows are not all new.
        is_repeated = any(max(Counter(self._column(i)).values()) > 1 for i in (*texts, label))
        return True if is_repeated or len(labels) == 1 else None

    def _column(self, position: int) -> list[str]:
        return [row[position].strip() for row in self.text.sample]


def _are_numbers(cells: Sequence[str]) -> bool:
    present = [cell for cell in cells if not is_missing(cell)]
    return sum(map(is_number, present)) >= _NUMBER_SHARE * max(1, len(present))


@dataclass(frozen=True)
class ParquetSource(TableSource):
    """Parquet file."""

    def load(self) -> Dataset:
        """Load all rows."""
        if self.keys.header is not None:
            self._refuse_header()
        table = read_parquet(self.path, self.refuse)
        if len(table.names) < 2 or not len(table.matrix):
            n_columns = count_of(len(table.names), "column")
            self.refuse(f"{count_of(len(table.matrix), 'row')} and {n_columns}; features and a label are required")
        selection = self._select([str(name) for name in table.names])
        try:
            labels = Labels(read_typed_labels(table.columns.pop(selection.label), table.where, self.refuse))
        except ValueError as error:
            self.refuse(f"{show_column(table.names[selection.label], selection.label)} {error}; {LABEL_REQUIRED}")
        features = FeatureReader(table, self.keys, selection, self.refuse).read()
        return self._dataset(table, selection, features, labels, _Layout())

    def _refuse_header(self) -> NoReturn:
        raise StudyFileError(f"{self.study_path}: data.header: a Parquet file has column names; remove this key")


def _unique_names(names: Sequence[str | None]) -> tuple[str, ...] | None:
    """Return the names of features, None if a feature has no name of its own."""
    return tuple(map(str, names)) if all(names) and len(set(names)) == len(names) else None
