"""Labels of a table: numbers if their text can be restored from the numbers, otherwise text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hpo.data.metrics import TaskName
from hpo.data.sources import EXACT_INTEGERS, FEATURE_REQUIRED, LABEL_REQUIRED, MAX_FEATURE, to_numbers
from hpo.data.tables.columns import is_number
from hpo.data.tables.reading.numbers import find_style, parse_numbers
from hpo.data.tables.reading.values import Values, level_text, read_values

Array = NDArray[Any]

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.0")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels, the guesses about them, and the ways in which earlier versions of hpo did not read them."""

    labels: Array
    notes: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LabelTexts:
    """Labels as they are written.

    Attributes:
        written: The distinct texts.
        codes: The index of each row's text (n,).
        task: The task of the study file, None to decide by the labels.
        where: Returns the place of a row for messages.
        refuse: Raises an error.
        is_guessed: Whether the study file does not name the label column.
    """

    written: Sequence[str]
    codes: NDArray[np.intp]
    task: TaskName | None
    where: Callable[[int], str]
    refuse: Callable[[str], NoReturn]
    is_guessed: bool = False

    def read(self, *, prefers_comma: bool) -> Labels:
        """Return the labels.

        Args:
            prefers_comma: Whether numbers have rather a decimal comma than commas between thousands.

        Raises:
            DataError: if a label is missing, or cannot be used.
        """
        stripped = [label.strip() for label in self.written]
        self._check_present(stripped)
        if prefers_comma and (targets := self._comma_targets(stripped)) is not None:
            return Labels(targets[self.codes], ("labels are numbers with decimal commas",))
        if self._are_targets(stripped):
            return Labels(self._targets(stripped)[self.codes])
        numbers = exact_numbers(stripped)
        if numbers is not None:
            return Labels(numbers[self.codes])
        return self._texts(stripped)

    def _texts(self, stripped: Sequence[str]) -> Labels:
        self._check_spaces(stripped)
        were_numbers = all(map(_was_number, stripped))
        was_text = not were_numbers or any(abs(float(label)) >= EXACT_INTEGERS for label in stripped)
        example = next((label for label in stripped if not _INTEGER.fullmatch(label)), None)
        is_noted = were_numbers and example is not None
        notes = (f"labels are text, because {example!r} is not written as a whole number",) if is_noted else ()
        is_old = was_text and list(self.written) == stripped
        return Labels(np.array(self.written)[self.codes], notes, () if is_old else ("labels as text",))

    def _are_targets(self, stripped: Sequence[str]) -> bool:
        """Return whether labels are numbers to predict: by the study file, or because they are not all whole."""
        if self.task is not None:
            return self.task == "regression"
        return all(map(is_number, stripped)) and not all(float(label).is_integer() for label in stripped)

    def _comma_targets(self, stripped: Sequence[str]) -> Array | None:
        """Return numbers with decimal commas, None if they are no such numbers."""
        is_class = self.task == "classification"
        if is_class or find_style(stripped, prefers_comma=True) != "decimal comma":
            return None
        return parse_numbers(stripped, "decimal comma")

    def _targets(self, stripped: Sequence[str]) -> Array:
        """Return labels as numbers, and refuse others."""
        for code, label in enumerate(stripped):
            if not is_number(label) or not abs(float(label)) <= MAX_FEATURE:
                self.refuse(f"{self.where(self._first(code))}: label {label!r} is not a target; {FEATURE_REQUIRED}")
        return np.array(stripped, np.float64)

    def _check_present(self, stripped: Sequence[str]) -> None:
        """Refuse missing labels, and labels with the text of a missing number."""
        if (missing := self._rows(stripped, "")).size:
            is_empty = self.is_guessed and bool(missing[0] == 0)
            other = ", or set data.label to the column of the classes" * is_empty
            advice = f"fill in or remove the rows without a label ({len(missing)} from here on){other}"
            self.refuse(f"{self.where(missing[0])}: the label is missing; {advice}")
        if (missing := self._rows([label.lower() for label in stripped], "nan")).size:
            where = f"{self.where(missing[0])}: label {stripped[self.codes[missing[0]]]!r}"
            advice = f"fill in or remove the rows without a label ({len(missing)})"
            self.refuse(f"{where} is a missing value; {advice}")

    def _check_spaces(self, stripped: Sequence[str]) -> None:
        """Refuse labels that differ in spaces only."""
        spellings: dict[str, str] = {}
        for code, (label, written) in enumerate(zip(stripped, self.written, strict=True)):
            if spellings.setdefault(label, written) != written:
                where = f"{self.where(self._first(code))}: label {label!r}"
                self.refuse(f"{where} is written with and without spaces; correct the file")

    def _rows(self, texts: Sequence[str], text: str) -> NDArray[np.intp]:
        return np.flatnonzero(np.array([other == text for other in texts], bool)[self.codes])

    def _first(self, code: int) -> int:
        return int((self.codes == code).argmax())


def read_typed_labels(series: Any, where: Callable[[int], str], refuse: Callable[[str], NoReturn]) -> Array:
    """Return the labels of a column that has types.

    Args:
        series: The column, a series of pandas.
        where: Returns the place of a row for messages.
        refuse: Raises an error.

    Raises:
        ValueError: if the column holds anything but numbers, texts, booleans or times.
    """
    values = read_values(series)
    if values.kind == "texts":
        values = _typed_texts(series)
    if (missing := np.flatnonzero(values.is_missing)).size:
        advice = f"fill in or remove the rows without a label ({len(missing)})"
        refuse(f"{where(int(missing[0]))}: the label is missing; {advice}")
    if values.kind in ("texts", "times"):
        texts = values.as_texts()
        written: Array = np.array(texts.levels)[texts.numbers]
        return written
    if values.kind == "booleans":
        return values.numbers.astype(np.bool_)
    return to_numbers(
        values.numbers, lambda row: refuse(f"{where(row)}: label {values.numbers[row]}; {LABEL_REQUIRED}")
    )


def _typed_texts(series: Any) -> Values:
    """Return the texts of labels as they are written, because "none" can be a class."""
    import pandas as pd

    codes, found = pd.factorize(series)
    texts = [label if isinstance(label, str) else level_text(label) for label in found]
    levels = sorted(text for text in set(texts) if text.strip().lower() not in ("", "nan"))
    index = {level: i for i, level in enumerate(levels)}
    # A code of -1 takes the last item.
    return Values("texts", np.array([*(index.get(text, -1) for text in texts), -1], np.intp)[codes], tuple(levels))


def exact_numbers(labels: Sequence[str]) -> Array | None:
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
