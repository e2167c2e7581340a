"""How the benchmarks measure, and how they show it: medians with their spread, beside the machine that they are of."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from threadpoolctl import threadpool_info

from hpo.utils.files import writing
from hpo.utils.system import cores, cpu
from hpo.utils.system import versions as versions_of

TIMING_SECONDS = 0.1  # that one timing takes: what is shorter is repeated

Work = Callable[[], object]

json_option = click.option(
    "--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there, too."
)


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, the lowest and the highest."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Of these measurements."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def time_alternately(works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Time several pieces of work beside each other.

    Returns:
        The seconds of one call of each, a mean over its repetitions, for every round. What slows the machine for longer
        than a round slows all of them: compare those of the same round.
    """
    repetitions = {name: _repetitions(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        # Back and forth: none is always the one that comes after the same other.
        for name in list(works)[:: -1 if number % 2 else 1]:
            seconds[name].append(_time(works[name], repetitions[name]) / repetitions[name])
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Of what was measured in the same rounds, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def _repetitions(work: Work) -> int:
    """How many calls take about ``TIMING_SECONDS``; they warm up caches and buffers on the way."""
    count = 1
    while (seconds := _time(work, count)) < TIMING_SECONDS / 4:
        count *= 2
    return max(1, round(count * TIMING_SECONDS / seconds))


def _time(work: Work, repetitions: int) -> float:
    started = time.perf_counter()
    for _ in range(repetitions):
        work()
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """The processor and how many cores there are."""
    return {"cpu": cpu(), "cores": cores()}


def versions() -> dict[str, str | None]:
    """Of what computes; None for what is not installed."""
    return versions_of(("numpy", "scipy", "scikit-learn", "torch")) | {"blas": _blas()}


def environment() -> str:
    """The machine and the versions, in one line."""
    known = ", ".join(f"{name} {number}" for name, number in versions().items() if number is not None)
    return f"{cpu()}, {cores()} cores; {known}"


def _blas() -> str:
    """NumPy's own, with the kernels that it chose for this processor."""
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = next((library for library in found if "numpy" in library["filepath"]), found[0])
    return " ".join(str(own[key]) for key in ("internal_api", "version", "architecture") if own.get(key))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """The first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures where they are asked for.

    Raises:
        OutputError: the file cannot be written.
    """
    with writing(path) as file:
        file.write(json.dumps(figures, indent=2, allow_nan=False).encode() + b"\n")
