"""Guesses about the columns of a table: whether its first row is a header, and which columns number its rows."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Texts of a missing value. A header has other names.
MISSING = frozenset({"", "?", "-", ".", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "+nan", "null", "none", "missing"})

# A row of so few cells can count its columns by chance.
_MIN_COUNTED_CELLS = 4
_MIN_INTEGER_CELLS = 3
_DECIMAL_SHARE = 0.9

# A shorter column counts its rows by chance.
_MIN_COUNTED_ROWS = 10
_INDEX_NAMES = frozenset({"index", "level_0", "rownames"})
_ID_NAMES = frozenset({"id", "ids", "key", "uid", "uuid", "no", "nr", "number", "#", "row", "rowid", "sample"})


def is_number(cell: str) -> bool:
    """Return whether a cell is a number in ASCII digits without underscores."""
    cell = cell.strip()
    if "_" in cell or not cell.isascii():
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_missing(cell: str) -> bool:
    """Return whether a cell is empty or one of the usual texts of a missing value."""
    return cell.strip().lower() in MISSING


def has_header(
    first: Sequence[str], label: int, kept: Sequence[int], labels: Sequence[str], X: Array, *, n_text: int = 0
) -> bool | None:
    """Decide whether the first row is a header.

    Args:
        first: The cells of the first row.
        label: The index of the label column.
        kept: The indices of the feature columns with numbers.
        labels: The labels of the other rows.
        X: The features of the other rows.
        n_text: The number of other feature columns.

    Returns:
        The decision, None if the first row can be both.
    """
    own_label = first[label]
    is_seen = own_label.strip() in {other.strip() for other in labels}
    names = [first[i] for i in kept if not is_number(first[i])]
    if counts_columns(first, label):
        return _is_counting_header(first, label, is_seen)
    if names:
        return _is_named_header(first, names, label, is_seen, n_text)
    if is_number(own_label):
        return None if _is_integer_over_decimals([first[i] for i in kept], X) else False
    if is_seen:
        return False
    return None if _is_only_exception(labels) else False


def is_named_header(first: Sequence[str], label: int, kept: Sequence[int], labels: Sequence[str]) -> bool | None:
    """Decide whether the first row is a header, if the study file has a name that is in this row.

    Returns:
        True, or None if the first row can be both.
    """
    if counts_columns(first, label) or not all(is_number(first[i]) for i in kept):
        return True
    is_seen = first[label].strip() in {other.strip() for other in labels}
    return None if is_seen or is_number(first[label]) else True


def counts_columns(first: Sequence[str], label: int) -> bool:
    """Return whether a row holds 0, 1, 2, ... except for a label name and a pandas index."""
    offset = 1 if first[0].strip() == "" and label != 0 else 0
    features = [i for i in range(offset, len(first)) if i != label]
    is_count = all(first[i].strip() == str(i - offset) for i in features)
    own_label = first[label].strip()
    return bool(features) and is_count and (not is_number(own_label) or own_label == str(label - offset))


def _is_counting_header(first: Sequence[str], label: int, is_seen: bool) -> bool | None:
    if is_number(first[label]):
        return True if len(first) >= _MIN_COUNTED_CELLS else None
    return None if is_seen or len(first) == 2 else True


def _is_named_header(first: Sequence[str], names: Sequence[str], label: int, is_seen: bool, n_text: int) -> bool | None:
    is_mixed = len(names) < len(first) - 1 - n_text
    if all(map(is_missing, names)):
        is_index = len(names) == 1 and first[0].strip() == "" and label != 0
        return True if is_index and not is_seen and not is_number(first[label]) else None
    return None if is_mixed and is_seen else True


def _is_integer_over_decimals(features: Sequence[str], X: Array) -> bool:
    """Return whether the features are distinct integers above columns of decimals."""
    integers = {cell.strip() for cell in features if cell.strip().isdecimal()}
    if len(integers) < max(len(features), _MIN_INTEGER_CELLS) or not len(X):
        return False
    return bool(((np.floor(X) != X).mean(axis=0) >= _DECIMAL_SHARE).all())


def _is_only_exception(labels: Sequence[str]) -> bool:
    """Return whether a text that is not among these labels differs from all of them in kind."""
    if all(map(is_number, labels)):
        return True
    return min(Counter(labels).values()) > 1


class IndexColumns(NamedTuple):
    """Columns that number the rows.

    Attributes:
        pandas: The positions of columns that pandas wrote.
        others: The positions of columns that are probably no features.
        counters: The positions of features that count the rows, but have the name of a feature.
    """

    pandas: list[int]
    others: list[int]
    counters: list[int]


def find_index_columns(columns: Sequence[Array], names: Sequence[str | None]) -> IndexColumns:
    """Find the columns that number the rows.

    Args:
        columns: The columns, each (n,).
        names: The name of each column, None without a header.
    """
    found = IndexColumns([], [], [])
    for i, name in enumerate(names):
        lower = None if name is None else name.lower()
        is_unnamed = lower is not None and (lower == "" or lower.startswith("unnamed: "))
        column = columns[i]
        is_count = counts_rows(column)
        if (is_unnamed and (is_count or _is_unique(column))) or (lower in _INDEX_NAMES and is_count):
            found.pandas.append(i)
        elif is_unnamed or (len(column) >= _MIN_COUNTED_ROWS and _is_id(lower) and (is_count or _is_unique(column))):
            found.others.append(i)
        elif len(column) >= _MIN_COUNTED_ROWS and is_count:
            (found.others if name is None and len(names) > 1 else found.counters).append(i)
    return found


def counts_rows(column: Array) -> bool:
    """Return whether a column is 0, 1, 2, ... or 1, 2, 3, ..."""
    return any(column[0] == start and np.array_equal(column, np.arange(start, start + len(column))) for start in (0, 1))


class SelectedFeatures(NamedTuple):
    """Columns that are features.

    Attributes:
        kept: The indices of the features.
        notes: The guesses about other columns, for messages.
        reading: The ways in which earlier versions of hpo did not read these columns.
    """

    kept: list[int]
    notes: tuple[str, ...]
    reading: tuple[str, ...]


def select_features(
    columns: Sequence[Array],
    names: Sequence[str | None],
    positions: Sequence[int],
    drop: Sequence[str | int] | None,
    *,
    leaves_out: bool,
) -> SelectedFeatures:
    """Select the columns that are features.

    Args:
        columns: The columns, each (n,).
        names: The name of each column, None without a header.
        positions: The position of each column in the file.
        drop: The columns that the study file leaves out, None if it has no such key.
        leaves_out: Whether a column that is probably not a feature is left out if the study file has no such key.

    Raises:
        ValueError: if a column is probably not a feature and is not left out.
    """
    found = find_index_columns(columns, names)
    everything = list(range(len(names)))
    if drop is not None and len(drop) == 0:
        numbered = sorted([*found.pandas, *found.others, *found.counters])
        return SelectedFeatures(everything, _kept_note(numbered, names, positions), ())
    others = found.others if drop is None else []
    if others and not leaves_out:
        key = ", ".join(_key(i, names, positions) for i in sorted([*found.pandas, *others]))
        raise ValueError(
            f"{_show(others, names, positions)}: counts or numbers the rows, or has no name; set "
            f"data.drop = [{key}] to leave it out, or data.drop = [] to use it as a feature"
        )
    kept = [i for i in everything if i not in {*found.pandas, *others}]
    notes = _kept_note(sorted({*found.others, *found.counters} - {*others}), names, positions)
    left_out = [
        f"left out {_show(columns, names, positions)}: {reason}; data.drop = [] keeps it"
        for columns, reason in ((found.pandas, "the index of the rows"), (others, "numbers the rows, or has no name"))
        if columns
    ]
    return SelectedFeatures(kept, (*left_out, *notes), ("without the index of the rows",) * bool(found.pandas))


def show_column(name: str | None, position: int) -> str:
    """Return a column for a message, numbered from 1."""
    return f"column {name!r}" if name else f"column {position + 1}"


def _kept_note(columns: Sequence[int], names: Sequence[str | None], positions: Sequence[int]) -> tuple[str, ...]:
    if not columns:
        return ()
    key = ", ".join(_key(i, names, positions) for i in columns)
    return (f"{_show(columns, names, positions)}: counts or numbers the rows; data.drop = [{key}] leaves it out",)


def _show(columns: Sequence[int], names: Sequence[str | None], positions: Sequence[int]) -> str:
    return ", ".join(show_column(names[i], positions[i]) for i in columns)


def _key(column: int, names: Sequence[str | None], positions: Sequence[int]) -> str:
    name = names[column]
    return json.dumps(name) if name and names.count(name) == 1 else str(positions[column])


def _is_unique(column: Array) -> bool:
    return bool((np.floor(column) == column).all()) and len(np.unique(column)) == len(column)


def _is_id(name: str | None) -> bool:
    return name is not None and (name in _ID_NAMES or _has_id_part(name))


def _has_id_part(name: str) -> bool:
    return name.endswith(("_id", " id", "-id", ".id")) or name.startswith(("id_", "row_"))
