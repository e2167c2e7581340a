"""Numbers in texts: plain, with a decimal comma, or with commas between thousands."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpo.data.tables.columns import is_number

NumberStyle = Literal["plain", "decimal comma", "thousands"]

_DECIMAL_COMMA = re.compile(r"[+-]?([0-9]{1,3}(\.[0-9]{3})+|[0-9]+)(,[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")

# Characters that each text of a column of prices or shares can have.
UNITS = "%$€£¥"


def find_unit(levels: Sequence[str]) -> str:
    """Return the unit that is in each text, empty without one."""
    return next((unit for unit in UNITS if levels and all(unit in level for level in levels)), "")


def without_unit(levels: Sequence[str], unit: str) -> Sequence[str]:
    """Return texts without their unit."""
    return [level.replace(unit, "").strip() for level in levels] if unit else levels


def find_style(levels: Sequence[str], *, prefers_comma: bool = False) -> NumberStyle | None:
    """Return the style in which all texts are numbers, None if they are not.

    Args:
        levels: The texts.
        prefers_comma: Whether a comma is rather a decimal comma than between thousands.
    """
    if all(map(is_number, levels)):
        return "plain"
    is_thousands = all(_THOUSANDS.fullmatch(level) or is_number(level) for level in levels)
    if is_thousands and not prefers_comma:
        return "thousands"
    return "decimal comma" if all(map(_DECIMAL_COMMA.fullmatch, levels)) else None


def parse_numbers(levels: Sequence[str], style: NumberStyle) -> NDArray[np.float64]:
    """Return texts as numbers; NaN for a text that is no number."""
    return np.array([_parse(level, style) for level in levels], np.float64)


def _parse(level: str, style: NumberStyle) -> float:
    if style == "decimal comma" and _DECIMAL_COMMA.fullmatch(level):
        return float(level.replace(".", "").replace(",", "."))
    if style == "thousands" and _THOUSANDS.fullmatch(level):
        return float(level.replace(",", ""))
    return float(level) if is_number(level) else np.nan
