"""Checks of the classes of a data set, and its description."""

from collections.abc import Sequence

import numpy as np

from hpo.data.sources import Array, Dataset
from hpo.errors import DataError

_SHOWN = 10
_SHOWN_CHARACTERS = 40

# A table of fewer rows is not refused because of its number of classes.
_MIN_CHECKED_ROWS = 10
_MIN_CHECKED_CLASSES = 20
_MIN_CLASS_ROWS = 4
_MIN_CHECKED_NUMBERS = 50
_MIN_NUMBER_ROWS = 20


def are_decimals(labels: Array) -> bool:
    """Return whether labels are numbers that are not all whole."""
    return labels.dtype.kind == "f" and bool((labels != np.floor(labels)).any())


def check_classes(dataset: Dataset, classes: Array, is_chosen: bool, *, is_task_given: bool = False) -> None:
    """Refuse labels that are probably not classes.

    Args:
        dataset: The data set.
        classes: The classes.
        is_chosen: Whether the study file names the label column.
        is_task_given: Whether the study file says that the labels are classes.

    Raises:
        DataError: if there are too many classes.
    """
    if is_task_given and classes.dtype.kind in "iuf":
        return
    n, c = len(dataset.labels), len(classes)
    is_number = classes.dtype.kind in "iuf"
    is_range = is_number and classes[-1] - classes[0] == c - 1
    is_plausible = is_chosen and (is_range or not is_number)
    has_small_classes = c > _MIN_CHECKED_CLASSES and n < _MIN_CLASS_ROWS * c and not is_plausible
    if (
        (n >= _MIN_CHECKED_ROWS and 2 * c > n)
        or has_small_classes
        or (is_number and _are_values(n, classes, is_chosen))
    ):
        problem = f"{dataset.name}: {dataset.label} has {c} classes in {n} rows"
        advice = "set data.label to the name or position of the column of the classes"
        if is_chosen:
            advice = "data.label names this column, but a class needs several rows: name a column with fewer values"
        if not dataset.is_table:
            advice = "classes are required, as text if they are no whole numbers from 0"
        if is_number:
            task = 'data.task = "regression" predicts it, data.task = "classification" takes each number as a class'
            advice = (
                f"is this a number to predict? {task}; data.label selects another column"
                if dataset.is_table
                else (f"is this a number to predict? {task}")
            )
        raise DataError(f"{problem}; {advice}")


def _are_values(n: int, classes: Array, is_chosen: bool) -> bool:
    """Return whether numbers are too many and too scattered for classes."""
    c = len(classes)
    is_range = classes[-1] - classes[0] == c - 1
    return bool(c > _MIN_CHECKED_NUMBERS and not is_range and (not is_chosen or n < _MIN_NUMBER_ROWS * c))


def describe(dataset: Dataset, y: Array, classes: Array) -> list[str]:
    """Return the guesses about a data set in lines: rows, columns, label, and classes or range of numbers."""
    if not len(classes):
        numbers = f"numbers from {y.min():g} to {y.max():g}, mean {y.mean():g}"
        return [f"{len(y)} rows, {dataset.summary}{numbers}", *dataset.notes]
    counts = np.bincount(y, minlength=len(classes)).tolist()
    shown = [f"{show_label(label)} ({count})" for label, count in zip(classes[:_SHOWN], counts, strict=False)]
    more = [f"{len(classes) - _SHOWN} more"] * (len(classes) > _SHOWN)
    summary = f"{len(y)} rows, {dataset.summary}{len(classes)} classes: {', '.join(shown + more)}"
    return [summary, *dataset.notes, *_rare_classes(dataset, y, classes, counts)]


def show_label(label: object) -> str:
    """Return a label for a message."""
    value = label.item() if isinstance(label, np.generic) else label
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def shorten(items: Sequence[str]) -> str:
    """Join items for a message, at most ten."""
    more = [f"{len(items) - _SHOWN} more"] * (len(items) > _SHOWN)
    return ", ".join([*items[:_SHOWN], *more])


def _rare_classes(dataset: Dataset, y: Array, classes: Array, counts: Sequence[int]) -> list[str]:
    """Describe the classes that cannot have a row in each split."""
    rare = [i for i, count in enumerate(counts) if count < 3]
    described = []
    for i in rare[: _SHOWN + 1]:
        rows = np.flatnonzero(y == i)
        place = "row" if dataset.lines is None else "line"
        places = rows if dataset.lines is None else dataset.lines[rows]
        noun = f"{place}{'s' if len(rows) > 1 else ''}"
        described.append(f"{show_label(classes[i])} ({noun} {' and '.join(map(str, places.tolist()))})")
    if not rare:
        return []
    described += [""] * (len(rare) - len(described))
    return [f"classes with too few rows for each split, maybe mistyped: {shorten(described)}"]
