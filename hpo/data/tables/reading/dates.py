"""Dates: their formats, and their parts as numbers."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ISO = "ISO8601"
MONTH_FIRST, DAY_FIRST = "%m/%d/%Y", "%d/%m/%Y"
# Names of the parts that follow the seconds since 1970. The hour is a part if a column has times.
PARTS = ("year", "month", "day", "weekday", "day of year", "hour")

_DAYS = (
    ISO,
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%d.%m.%y",
    MONTH_FIRST,
    DAY_FIRST,
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%m/%d/%y",
    "%d/%m/%y",
)
_NAMED_DAYS = ("%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%d %B %Y", "%b %d %Y")
_TIMES = ("", " %H:%M:%S", " %H:%M", " %I:%M %p", " %I:%M:%S %p", " %H:%M:%S.%f")
FORMATS = tuple(day + time for day in (*_DAYS, *_NAMED_DAYS) for time in (_TIMES if day != ISO else ("",)))

_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?")
_MAYBE_DATE = re.compile(r"\d{1,4}[-./ ][\w:./, +-]{3,36}|[A-Za-z]{3,9} \d{1,2},? \d{4}[\w: ]{0,12}")
_PROBED_LEVELS = 50
_SECONDS_PER_DAY = 86400


def find_format(levels: Sequence[str]) -> tuple[str, NDArray[np.float64]] | None:
    """Find the first format that fits all texts.

    Returns:
        The format and the seconds since 1970 of each text; None if the texts are no dates.
    """
    probe = _probe(levels)
    if not probe or not all(map(_MAYBE_DATE.fullmatch, probe)):
        return None
    for form in FORMATS:
        if form == ISO and not all(map(_ISO_DATE.fullmatch, probe)):
            continue
        if not np.isnan(parse_dates(probe, form)).any():
            seconds = parse_dates(levels, form)
            if not np.isnan(seconds).any():
                return form, seconds
    return None


def most_frequent_format(levels: Sequence[str]) -> str:
    """Return the first format that fits the most texts."""
    probe = _probe(levels)
    return max(FORMATS, key=lambda form: int((~np.isnan(parse_dates(probe, form))).sum()))


def _probe(levels: Sequence[str]) -> Sequence[str]:
    return levels[:: max(1, len(levels) // _PROBED_LEVELS)]


def is_ambiguous(levels: Sequence[str], form: str) -> bool:
    """Return whether each date is valid with day and month exchanged, too."""
    if not form.startswith(MONTH_FIRST):
        return False
    return not np.isnan(parse_dates(levels, form.replace(MONTH_FIRST, DAY_FIRST))).any()


def parse_dates(levels: Sequence[str], form: str) -> NDArray[np.float64]:
    """Return texts as seconds since 1970 in UTC; NaN for a text that does not have the format."""
    import pandas as pd

    parsed = pd.to_datetime(pd.Series(levels, dtype=object), format=form, utc=True, errors="coerce")
    return to_seconds(parsed)


def to_seconds(times: Any) -> NDArray[np.float64]:
    """Return a series of times as seconds since 1970 in UTC; NaN for a missing time."""
    if times.dt.tz is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    microseconds = times.to_numpy("datetime64[us]")
    seconds: NDArray[np.float64] = microseconds.astype(np.int64) / 1e6
    return np.where(np.isnat(microseconds), np.nan, seconds)


def to_times(seconds: Array) -> Array:
    """Return seconds since 1970 as times (n,); NaT for NaN."""
    is_known = np.isfinite(seconds)
    microseconds = np.rint(np.where(is_known, seconds, 0) * 1e6).astype(np.int64)
    times: Array = np.where(is_known, microseconds.astype("datetime64[us]"), np.datetime64("NaT", "us"))
    return times


def has_times(seconds: Array) -> bool:
    """Return whether a time is not midnight."""
    return bool((seconds[np.isfinite(seconds)] % _SECONDS_PER_DAY != 0).any())


def date_parts(seconds: Array) -> Array:
    """Return the `PARTS` (n, 6) of dates in seconds since 1970; NaN for NaN."""
    times = to_times(seconds)
    days, months, years = (times.astype(f"datetime64[{unit}]") for unit in "DMY")
    parts = np.column_stack(
        [
            years.astype(np.int64) + 1970,
            months.astype(np.int64) % 12 + 1,
            (days - months.astype("datetime64[D]")).astype(np.int64) + 1,
            (days.astype(np.int64) + 3) % 7,
            (days - years.astype("datetime64[D]")).astype(np.int64) + 1,
            (times - days).astype("timedelta64[h]").astype(np.int64),
        ]
    ).astype(np.float64)
    parts[~np.isfinite(seconds)] = np.nan
    return parts
