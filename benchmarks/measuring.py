"""Measurement and output of the benchmarks: medians with their spread, and the machine."""

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from threadpoolctl import threadpool_info

from hpo.utils.files import atomic_write
from hpo.utils.system import cores, cpu
from hpo.utils.system import versions as versions_of

# Shorter work is repeated until a timing takes this long.
TIMING_S = 0.1

Work = Callable[[], object]

json_option = click.option(
    "--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures to a file."
)


def has_mapped_data(pid: int) -> bool:
    """Return whether a process runs and has mapped the prepared data, as each worker does."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "train_X.npy" in Path(f"/proc/{pid}/maps").read_text()
    return False


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of some measurements."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of measurements."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def time_alternately(works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Time several pieces of work in turn.

    Returns:
        For each round, the seconds of one call of each, as a mean over its repetitions. A load that slows the machine
        for longer than a round slows all of them, so compare timings of the same round.
    """
    repetitions = {name: _repetitions(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        # Every second round runs backwards, so that the predecessor of a piece of work changes.
        for name in list(works)[:: -1 if number % 2 else 1]:
            seconds[name].append(_time(works[name], repetitions[name]) / repetitions[name])
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Return the spread of the ratios of measurements from the same rounds."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def _repetitions(work: Work) -> int:
    """Return the number of calls that take about ``TIMING_S``. The calls warm up caches and buffers."""
    count = 1
    while (seconds := _time(work, count)) < TIMING_S / 4:
        count *= 2
    return max(1, round(count * TIMING_S / seconds))


def _time(work: Work, repetitions: int) -> float:
    started = time.perf_counter()
    for _ in range(repetitions):
        work()
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """Return the processor and the number of cores."""
    return {"cpu": cpu(), "cores": cores()}


def versions() -> dict[str, str | None]:
    """Return the versions of the numerical libraries; None if a library is not installed."""
    return versions_of(("numpy", "scipy", "scikit-learn", "torch")) | {"blas": _blas()}


def environment() -> str:
    """Return the machine and the versions in one line."""
    known = ", ".join(f"{name} {number}" for name, number in versions().items() if number is not None)
    return f"{cpu()}, {cores()} cores; {known}"


def _blas() -> str:
    """Return NumPy's BLAS library and the kernels that it chose for this processor."""
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = next((library for library in found if "numpy" in library["filepath"]), found[0])
    return " ".join(str(own[key]) for key in ("internal_api", "version", "architecture") if own.get(key))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Its first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Write figures to a JSON file.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as file:
        file.write(json.dumps(figures, indent=2, allow_nan=False).encode() + b"\n")
