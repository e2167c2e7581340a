"""Recognition of a column's kind by its values."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo.data.tables.columns import is_number
from hpo.data.tables.reading.dates import find_format, has_times, is_ambiguous
from hpo.data.tables.reading.numbers import NumberStyle, find_style, find_unit, without_unit
from hpo.data.tables.reading.values import Values
from hpo.data.tables.schema import FALSE, TRUE, Column, Kind, date_format, take_levels
from hpo.utils.text import count_of

# A column of numbers may have some other texts, if it has too many values for categories.
_NUMBER_SHARE = 0.9
_MIN_NUMBER_LEVELS = 20

_MIN_IDENTIFIER_ROWS = 20
_IDENTIFIER_SHARE = 0.9
_MAX_CATEGORY_LENGTH = 60

Unused = Literal["identifier", "free text", "empty"]


class Recognized(NamedTuple):
    """Recognized column.

    Attributes:
        column: The column, None if it is no feature.
        unused: The reason why it is no feature.
        note: A guess that can be wrong, for a message.
        numbers: The values as numbers (n,), None if they are not known yet.
    """

    column: Column | None
    unused: Unused | None = None
    note: str = ""
    numbers: NDArray[np.float64] | None = None


def recognize(name: str | None, values: Values, *, prefers_comma: bool = False) -> Recognized:
    """Recognize the kind of a column.

    Args:
        name: The name of the column, None without a header.
        values: The values of all rows.
        prefers_comma: Whether numbers have rather a decimal comma than commas between thousands.
    """
    if values.is_missing.all():
        return Recognized(None, "empty")
    if values.kind != "texts":
        return Recognized(_of_kind(name, values))
    if values.is_category:
        return Recognized(_categorical(name, values))
    return _recognize_format(name, values, prefers_comma) or _recognize_text(name, values)


def with_kind(name: str | None, values: Values, kind: Kind, *, prefers_comma: bool = False) -> Column:
    """Return a column whose kind the study file names.

    Raises:
        CellError: if a value is not of this kind.
    """
    match kind:
        case "categorical":
            return _categorical(name, values.as_texts())
        case "date":
            return _date(name, values, date_format(values))
        case _:
            levels = [level for level in values.levels if _has_digit(level)]
            unit = find_unit(levels)
            style = find_style(without_unit(levels, unit), prefers_comma=prefers_comma) or "plain"
            return Column(name, kind, style=style, unit=unit, skips_text=True)


_STYLES: dict[NumberStyle, str] = {
    "plain": "",
    "decimal comma": "decimal commas",
    "thousands": "commas between thousands",
}


def _of_kind(name: str | None, values: Values) -> Column:
    match values.kind:
        case "booleans":
            return Column(name, "boolean")
        case "times":
            return Column(name, "date", has_times=has_times(values.numbers))
        case _:
            return Column(name)


def _categorical(name: str | None, texts: Values) -> Column:
    return Column(name, "categorical", levels=texts.levels)


def _date(name: str | None, values: Values, form: str) -> Column:
    column = Column(name, "date", form=form)
    return Column(name, "date", form=form, has_times=has_times(column.read(values)))


def _recognize_format(name: str | None, values: Values, prefers_comma: bool) -> Recognized | None:
    """Recognize texts that are all numbers, booleans or dates."""
    unit = find_unit(values.levels)
    if (style := find_style(without_unit(values.levels, unit), prefers_comma=prefers_comma)) is not None:
        noted = ", ".join(filter(None, [unit, _STYLES[style]]))
        return Recognized(Column(name, style=style, unit=unit), note=f"numbers with {noted}" if noted else "")
    if _are_booleans(values.levels):
        return Recognized(Column(name, "boolean"))
    if (found := find_format(values.levels)) is not None:
        form, seconds = found
        noted = f"dates such as {values.levels[0]!r} are month/day/year" if is_ambiguous(values.levels, form) else ""
        column = Column(name, "date", form=form, has_times=has_times(seconds))
        return Recognized(column, note=noted, numbers=take_levels(seconds, values))
    return None


def _are_booleans(levels: Sequence[str]) -> bool:
    pair = {level.lower() for level in levels}
    return any(pair == {true, false} for true, false in zip(TRUE, FALSE, strict=True))


def _recognize_text(name: str | None, values: Values) -> Recognized:
    counts = np.bincount(values.numbers[values.numbers >= 0], minlength=len(values.levels))
    n, n_levels = int(counts.sum()), len(values.levels)
    is_numeric = np.array(list(map(is_number, values.levels)))
    if is_numeric.sum() > _MIN_NUMBER_LEVELS and counts[is_numeric].sum() >= _NUMBER_SHARE * n:
        other = values.levels[int((~is_numeric).argmax())]
        n_other = n - int(counts[is_numeric].sum())
        read = "is read as a missing number" if n_other == 1 else "are read as missing numbers"
        noted = f"{count_of(n_other, 'text')} such as {other!r} {read}"
        return Recognized(Column(name, skips_text=True), note=noted)
    if n >= _MIN_IDENTIFIER_ROWS and n_levels >= _IDENTIFIER_SHARE * n:
        return Recognized(None, "free text" if _has_sentences(values.levels) else "identifier")
    if n_levels > _MIN_NUMBER_LEVELS and _mean_length(values.levels, counts) > _MAX_CATEGORY_LENGTH:
        return Recognized(None, "free text")
    noted = _mixed_note(values.levels, is_numeric)
    return Recognized(_categorical(name, values), note=noted)


def _mixed_note(levels: Sequence[str], is_numeric: NDArray[np.bool_]) -> str:
    if not is_numeric.any():
        return ""
    other = levels[int((~is_numeric).argmax())]
    return f"categories, because {other!r} is not a number"


def _mean_length(levels: Sequence[str], counts: NDArray[np.intp]) -> float:
    return float(np.average([len(level) for level in levels], weights=counts))


def _has_sentences(levels: Sequence[str]) -> bool:
    return float(np.mean([level.count(" ") for level in levels[:1000]])) >= 3


def _has_digit(level: str) -> bool:
    return any(character.isdigit() for character in level)
