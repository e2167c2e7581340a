"""Columns of data frames as numbers, times, or indices of distinct texts."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpo.data.tables.columns import is_missing

_WHOLE_DECIMAL = re.compile(r"(-?[0-9]+)\.0+")


@dataclass(frozen=True, eq=False)
class Values:
    """Values of a column.

    Attributes:
        kind: The kind of the values.
        numbers: Numbers, 0 and 1, or seconds since 1970 (n,), NaN for a missing value; for texts, the index (n,) of
            each text in the levels, -1 for a missing value.
        levels: The sorted distinct texts.
        is_category: Whether the column is declared to be categorical.
    """

    kind: Literal["numbers", "booleans", "times", "texts"]
    numbers: NDArray[Any]
    levels: tuple[str, ...] = ()
    is_category: bool = False

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """Whether each value (n,) is missing."""
        missing: NDArray[np.bool_] = self.numbers < 0 if self.kind == "texts" else np.isnan(self.numbers)
        return missing

    def as_texts(self) -> "Values":
        """Return the values as texts, as `level_text` writes them."""
        if self.kind == "texts":
            return self
        uniques, codes = np.unique(self.numbers, return_inverse=True)
        if self.kind == "times":
            from hpo.data.tables.reading.dates import to_times

            texts = [str(time).removesuffix("T00:00:00.000000") for time in to_times(uniques)]
        else:
            convert = bool if self.kind == "booleans" else float
            texts = [level_text(convert(unique)) for unique in uniques]
        texts = ["" if np.isnan(unique) else text for unique, text in zip(uniques, texts, strict=True)]
        return _texts(codes, texts)


def level_text(value: object) -> str:
    """Return a value of a categorical column as text: 1, 1.0 and "1.0" are the same category."""
    if isinstance(value, float | np.floating):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    text = str(value).strip()
    whole = _WHOLE_DECIMAL.fullmatch(text) if text.endswith("0") else None
    return whole[1] if whole else text


def read_values(series: Any) -> Values:
    """Read a column of a data frame.

    Raises:
        ValueError: if the column holds anything but numbers, texts, booleans or times.
    """
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _read_categories(series)
    if pd.api.types.is_bool_dtype(dtype):
        return Values("booleans", series.to_numpy(np.float64, na_value=np.nan))
    if pd.api.types.is_complex_dtype(dtype):
        raise ValueError("holds complex numbers; real numbers are required")
    if pd.api.types.is_numeric_dtype(dtype):
        return Values("numbers", series.to_numpy(np.float64, na_value=np.nan))
    if pd.api.types.is_datetime64_any_dtype(dtype):
        from hpo.data.tables.reading.dates import to_seconds

        return Values("times", to_seconds(series))
    if pd.api.types.is_timedelta64_dtype(dtype):
        return Values("numbers", series.dt.total_seconds().to_numpy(np.float64))
    try:
        codes, levels = pd.factorize(series)
    except TypeError:
        raise ValueError("holds lists or other objects; numbers, texts, booleans or times are required") from None
    return _from_levels(codes, list(levels))


def _read_categories(series: Any) -> Values:
    levels, codes = list(series.cat.categories), series.cat.codes.to_numpy()
    if levels and all(isinstance(level, datetime.date) for level in levels):
        return _from_levels(codes, levels)
    return replace(_texts(codes, list(map(level_text, levels))), is_category=True)


def index_texts(codes: NDArray[Any], texts: Sequence[str]) -> Values:
    """Return the values with these indices in a list of distinct texts; -1 is a missing value."""
    return _texts(codes, [level_text(text) for text in texts])


def _from_levels(codes: NDArray[Any], levels: Sequence[Any]) -> Values:
    """Return the values with these indices in a list of distinct objects."""
    if all(isinstance(level, str) for level in levels):
        return index_texts(codes, levels)
    if all(isinstance(level, bool | np.bool_) for level in levels):
        return Values("booleans", _take(np.array(levels, np.float64), codes))
    if all(isinstance(level, Real | Decimal) and not isinstance(level, bool) for level in levels):
        return Values("numbers", _take(np.array([float(level) for level in levels]), codes))
    if all(isinstance(level, datetime.date) for level in levels):
        return Values("times", _take(_seconds(levels), codes))
    if all(isinstance(level, str | bool | np.bool_ | Real | Decimal) for level in levels):
        return _texts(codes, [level_text(level) for level in levels])
    others = [level for level in levels if not isinstance(level, str | Real | Decimal | datetime.date)]
    held = type(others[0]).__name__ if others else "times together with other values"
    raise ValueError(f"holds {held}; numbers, texts, booleans or times are required")


def _seconds(levels: Sequence[Any]) -> NDArray[np.float64]:
    import pandas as pd

    from hpo.data.tables.reading.dates import to_seconds

    return to_seconds(pd.Series(pd.to_datetime(pd.Series(levels, dtype=object), utc=True)))


def _texts(codes: NDArray[Any], levels: Sequence[str]) -> Values:
    """Return texts with sorted levels, without the texts of missing values."""
    present = sorted({level for level in levels if not is_missing(level)})
    index = {level: i for i, level in enumerate(present)}
    # A code of -1 takes the last item.
    table = np.array([*(index.get(level, -1) for level in levels), -1], np.intp)
    return Values("texts", table[codes], tuple(present))


def _take(numbers: NDArray[np.float64], codes: NDArray[Any]) -> NDArray[np.float64]:
    taken: NDArray[np.float64] = np.append(numbers, np.nan)[codes]
    return taken
