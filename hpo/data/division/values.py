"""Values of the column that divides the rows: the groups, or the order in time."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NoReturn

import numpy as np

from hpo.data.division.base import Array, Rows
from hpo.data.tables.columns import is_missing, is_number

Refuse = Callable[[int, str], NoReturn]


def group_indices(values: Array, refuse: Refuse) -> Rows:
    """Return the index of the group of each row.

    Args:
        values: The value of each row.
        refuse: Raises the error about a row.
    """
    _check_present(values, refuse, "give each row a group")
    if values.dtype.kind == "O":
        values = np.array([str(value) for value in values])
    return np.unique(values, return_inverse=True)[1]


def ranks(values: Array, refuse: Refuse) -> Rows:
    """Return the rank of the value of each row; equal values have the same rank.

    Args:
        values: The value of each row: numbers or times, also as text.
        refuse: Raises the error about a row.
    """
    _check_present(values, refuse, "fill in or remove the rows without a value")
    if values.dtype.kind not in "OUT":
        return np.unique(values, return_inverse=True)[1]
    texts = [str(value).strip() for value in values]
    numbers, times = _parse(texts, _to_number), _parse(texts, _to_time)
    parsed = max(numbers, times, key=len)
    if (row := len(parsed)) < len(texts):
        refuse(row, f"{texts[row]!r} is neither a number nor a time such as 2024-01-31 or 2024-01-31T08:00")
    has_zone = [getattr(value, "tzinfo", None) is not None for value in parsed]
    if any(has_zone) and not all(has_zone):
        row = has_zone.index(not has_zone[0])
        refuse(row, f"{texts[row]!r} cannot be compared, because only some of the times have a time zone")
    rank_of = {value: rank for rank, value in enumerate(sorted(set(parsed)))}
    return np.array([rank_of[value] for value in parsed], np.intp)


def _check_present(values: Array, refuse: Refuse, advice: str) -> None:
    missing = [row for row, value in enumerate(values) if str(value) == "NaT" or is_missing(str(value))]
    if missing:
        refuse(missing[0], f"the value is missing ({len(missing)} in all); {advice}")


def _parse(texts: Sequence[str], parse: Callable[[str], Any]) -> list[Any]:
    """Return the values of all texts up to the first that is no value."""
    values = []
    for text in texts:
        try:
            values.append(parse(text))
        except ValueError:
            break
    return values


def _to_number(text: str) -> int | float:
    if not is_number(text):
        raise ValueError(text)
    try:
        # A float would not tell apart two times in nanoseconds.
        return int(text)
    except ValueError:
        return float(text)


def _to_time(text: str) -> datetime:
    return datetime.fromisoformat(text)
