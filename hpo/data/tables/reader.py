"""Reading of tables through pandas."""

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hpo.data.columns import MISSING
from hpo.data.tables.selection import Selection
from hpo.data.tables.text_file import TextTable

Array = NDArray[Any]

# Other spellings of a missing value make a column text, whose distinct texts are checked without regard to case.
_MISSING = sorted(
    {spelling for text in MISSING for spelling in (text, text.upper(), text.capitalize())} | {"NaN", "N/A"}
)


@dataclass(frozen=True, eq=False)
class Table:
    """Content of a table.

    Attributes:
        frame: The columns by their position, as a data frame.
        names: The name of each column, None without a name.
        lines: The line number of each row (n,), None without lines.
    """

    frame: Any
    names: Sequence[str | None]
    lines: NDArray[np.int64] | None = None

    def divider(self, selection: Selection) -> Array | None:
        """Return the values (n,) of the column that divides the rows, None without one."""
        if selection.divider is None:
            return None
        from hpo.data.tables.dates import to_times
        from hpo.data.tables.values import read_values

        values = read_values(self.frame[selection.divider])
        if values.kind == "texts":
            # An empty text is a missing value.
            texts: Array = np.array([*values.levels, ""])[values.numbers]
            return texts
        return to_times(values.numbers) if values.kind == "times" else values.numbers

    def where(self, row: int) -> str:
        """Return the place of a row for messages."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


def read_text(text: TextTable, *, has_header: bool, as_text: Collection[int], as_written: Collection[int]) -> Table:
    """Read the rows of a text file.

    Args:
        text: The layout of the file.
        has_header: Whether the first row is a header.
        as_text: The positions of columns whose numbers are read as text.
        as_written: The positions of columns that are read as text without missing values.
    """
    frame = _read_csv(text, int(has_header), as_text, as_written)
    # pandas reads a long file in parts, and finds a type for each of them.
    mixed = [i for i in frame.columns if frame[i].dtype == object]
    if mixed:
        frame = _read_csv(text, int(has_header), {*as_text, *mixed}, as_written)
    names = [name if has_header else None for name in text.first]
    return Table(frame, names, np.array(text.lines[has_header:]))


def _read_csv(text: TextTable, n_skipped: int, as_text: Collection[int], as_written: Collection[int]) -> Any:
    import pandas as pd

    missing: Any = {i: _MISSING for i in range(len(text.first)) if i not in as_written}
    with text.rows_after(n_skipped) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        return pd.read_csv(
            file,
            sep=text.delimiter,
            header=None,
            dtype=dict.fromkeys({*as_text, *as_written}, "str"),
            na_values=missing,
            keep_default_na=False,
        )


def read_parquet(path: Path, refuse: Callable[[str], NoReturn]) -> Table:
    """Read a Parquet file.

    Args:
        path: The file.
        refuse: A function that raises an error.
    """
    import pandas as pd
    import pyarrow

    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (pyarrow.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        refuse(f"not a Parquet file that can be read: {reason}; write the table again, for example with pandas")
    names = [str(name).strip() for name in frame.columns]
    frame.columns = pd.RangeIndex(len(names))
    return Table(frame.reset_index(drop=True), names)
