"""Reading of tables through pandas."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from hpo.data.tables.columns import MISSING
from hpo.data.tables.reading.text_file import TextTable
from hpo.data.tables.reading.values import Values, index_texts, read_values
from hpo.utils.npz import DAMAGE_ERRORS

Array = NDArray[Any]

# Other spellings of a missing value make a column text, whose distinct texts are checked without regard to case.
_MISSING = sorted(
    {spelling for text in MISSING for spelling in (text, text.upper(), text.capitalize())} | {"NaN", "N/A"}
)

_BLOCK_ROWS = 8192


class Written(NamedTuple):
    """Texts of a column, as they are written.

    Attributes:
        texts: The distinct texts.
        codes: The index of each row's text (n,).
    """

    texts: Sequence[str]
    codes: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Table:
    """Content of a table. The memory of a column is reused after it is taken.

    Attributes:
        columns: The columns by their position, as series of pandas or as `_TextColumn`.
        names: The name of each column, None without a name.
        matrix: Memory (n, d) for the numbers of features; a text file's columns are in it.
        written: The columns whose texts are never missing, by their position.
        lines: The line number of each row (n,), None without lines.
    """

    columns: dict[int, Any]
    names: Sequence[str | None]
    matrix: NDArray[np.float64]
    written: dict[int, Written] = field(default_factory=dict)
    lines: NDArray[np.int64] | None = None

    def take(self, position: int) -> Values:
        """Remove a column, and return its values.

        Raises:
            ValueError: if the column holds anything but numbers, texts, booleans or times.
        """
        column = self.columns.pop(position)
        return column.values() if isinstance(column, _TextColumn) else read_values(column)

    def divider(self, position: int) -> Array:
        """Return the values (n,) of a column that divides the rows. A missing text is empty.

        Raises:
            ValueError: if the column holds anything but numbers, texts, booleans or times.
        """
        from hpo.data.tables.reading.dates import to_times

        if position in self.written:
            texts, codes = self.written[position]
            stripped: Array = np.array([text.strip() for text in texts])[codes]
            return stripped
        values = self.take(position)
        if values.kind == "texts":
            levels: Array = np.array([*values.levels, ""])[values.numbers]
            return levels
        return to_times(values.numbers) if values.kind == "times" else values.numbers

    def where(self, row: int) -> str:
        """Return the place of a row for messages."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


def read_text(
    text: TextTable, *, has_header: bool, kept: Sequence[int], as_text: Collection[int], as_written: Collection[int]
) -> Table:
    """Read the rows of a text file.

    Args:
        text: The layout of the file.
        has_header: Whether the first row is a header.
        kept: The positions of the columns that may be features.
        as_text: The positions of columns whose numbers are read as text.
        as_written: The positions of columns that are read as text without missing values.
    """
    lines = np.array(text.lines[has_header:])
    matrix = np.empty((len(lines), len(kept)))
    columns = {i: _TextColumn(matrix[:, k]) for k, i in enumerate(kept)}
    others = {i: _TextColumn(np.empty(len(lines))) for i in as_written}
    _read_csv(text, int(has_header), columns | others, as_text, as_written)
    # A type is found for each block of a column.
    if mixed := {i: _TextColumn(column.codes) for i, column in columns.items() if column.is_mixed}:
        _read_csv(text, int(has_header), mixed, mixed, as_written)
    names = [name if has_header else None for name in text.first]
    return Table(columns | mixed, names, matrix, {i: column.written() for i, column in others.items()}, lines)


def _read_csv(
    text: TextTable,
    n_skipped: int,
    columns: "Mapping[int, _TextColumn]",
    as_text: Collection[int],
    as_written: Collection[int],
) -> None:
    """Read columns of a file in blocks of rows, because a data frame of all rows would double the memory."""
    import pandas as pd

    missing: Any = {i: _MISSING for i in range(len(text.first)) if i not in as_written}
    types: Any = dict.fromkeys({*as_text, *as_written}, "str")
    options: dict[str, Any] = {"sep": text.delimiter, "header": None, "keep_default_na": False, "low_memory": False}
    with (
        text.rows_after(n_skipped) as file,
        pd.read_csv(file, dtype=types, na_values=missing, chunksize=_BLOCK_ROWS, **options) as blocks,
    ):
        start = 0
        for block in blocks:
            for i, column in columns.items():
                column.write(block[i], start)
            start += len(block)


class _TextColumn:
    """Column of a text file, read block by block.

    Args:
        codes: The numbers (n,), or the indices of texts, NaN for a missing value.
    """

    def __init__(self, codes: NDArray[np.float64]) -> None:
        self.codes = codes
        self._index: dict[str, int] = {}
        self._kinds: set[str] = set()

    def write(self, series: Any, start: int) -> None:
        """Write the values of the rows from ``start``."""
        import pandas as pd

        out = self.codes[start : start + len(series)]
        if isinstance(series.dtype, pd.StringDtype):
            codes, levels = pd.factorize(series)
            # The code of a missing value is -1, the last item.
            indices = [self._index.setdefault(text, len(self._index)) for text in levels.to_numpy(object)]
            out[:] = np.array([*indices, np.nan])[codes]
            self._kinds.add("texts")
        elif series.dtype.kind in "biuf":
            out[:] = series
            # A block without values can have any type.
            self._kinds |= set() if np.isnan(out).all() else {"booleans" if series.dtype.kind == "b" else "numbers"}
        else:
            self._kinds.add("objects")

    @property
    def is_mixed(self) -> bool:
        """Whether the blocks have different types."""
        return len(self._kinds) > 1 or "objects" in self._kinds

    def values(self) -> Values:
        """Return the values of all rows."""
        if "texts" in self._kinds:
            return index_texts(self._indices(), list(self._index))
        return Values("booleans" if "booleans" in self._kinds else "numbers", self.codes)

    def written(self) -> Written:
        """Return the texts of all rows."""
        return Written(list(self._index), self._indices())

    def _indices(self) -> NDArray[np.intp]:
        return np.where(np.isnan(self.codes), -1, self.codes).astype(np.intp)


def read_parquet(path: Path, refuse: Callable[[str], NoReturn]) -> Table:
    """Read a Parquet file.

    Args:
        path: The file.
        refuse: A function that raises an error.
    """
    import pandas as pd
    import pyarrow

    with path.open("rb") as file:
        try:
            frame = pd.read_parquet(file, engine="pyarrow")
        except (pyarrow.ArrowException, *DAMAGE_ERRORS) as error:
            # An error of the disk has a number, an error of the content has none.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = str(error).partition("\n")[0].rpartition(": ")[2].rstrip(".")
            refuse(f"not a Parquet file that can be read: {reason}; write the table again, for example with pandas")
    names = [str(name).strip() for name in frame.columns]
    columns = {i: frame.iloc[:, i] for i in range(len(names))}
    return Table(columns, names, np.empty((len(frame), len(names))))
