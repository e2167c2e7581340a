"""Durations and counts as text."""


def format_duration(seconds: float) -> str:
    """Format seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count_of(number: int, noun: str) -> str:
    """Format a count and its noun: 1 trial, 2 trials."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
