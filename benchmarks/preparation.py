"""``python -m benchmarks.preparation``: time and memory of the preparation of a mixed table of 100,000 x 50.

The same table is read by ``pandas.read_csv`` and encoded by a ``ColumnTransformer`` of scikit-learn with the same
encoders, fitted to the training rows, as a script would do it. hpo also recognizes the kinds of the columns, scales,
and writes the arrays to disk. Each measurement is a fresh process, because the peak of a process never falls. Both
alternate. The CPU time depends less on the load of the machine than the elapsed time.
"""

import importlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd

from benchmarks.measuring import environment, json_option, machine, print_table, ratio, spread, versions, write_json
from hpo.config.study import StudyConfig

ROWS, SEED = 100_000, 0
MAX_TIME, MAX_MEMORY = "1.5", "3.0"

_IMPORTS = (
    "hpo.data.tables.source",
    "hpo.data.tables.encoder",
    "pyarrow.compute",
    "skops.io",
    "sklearn.compose",
    "sklearn.frozen",
    "sklearn.impute",
    "sklearn.model_selection",
    "sklearn.preprocessing",
)


class Measurement(NamedTuple):
    """Seconds, seconds of the processor, and megabytes of the peak memory above that of the imports."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def write_table(path: Path, rows: int) -> float:
    """Write the table; return the megabytes of its data frame."""
    rng = np.random.default_rng(SEED)
    columns: dict[str, Any] = {}
    for i in range(30):
        numbers = (rng.normal(size=rows) * 10.0 ** rng.integers(-2, 3)).round(4)
        columns[f"number {i}"] = np.where(rng.random(rows) < 0.05, np.nan, numbers) if i < 10 else numbers
    for i in range(4):
        columns[f"integer {i}"] = rng.integers(0, 1000, rows)
    for i in range(9):
        columns[f"category {i}"] = rng.choice([f"level {j}" for j in range(3 + 2 * i)], rows)
    columns["city"] = rng.choice([f"city {j}" for j in range(500)], rows)
    columns["zip"] = rng.choice([f"Z{j:05d}" for j in range(5000)], rows)
    columns["member"] = rng.choice(["yes", "no"], rows)
    columns["flag"] = rng.choice([True, False], rows)
    start = pd.Timestamp("2015-01-01")
    columns["day"] = (start + pd.to_timedelta(rng.integers(0, 3000, rows), "D")).strftime("%Y-%m-%d")
    columns["time"] = (start + pd.to_timedelta(rng.integers(0, 10**8, rows), "s")).strftime("%Y-%m-%d %H:%M:%S")
    columns["label"] = rng.choice(["a", "b", "c"], rows)
    pd.DataFrame(columns).to_csv(path, index=False)
    return float(pd.read_csv(path).memory_usage(deep=True).sum() / 1e6)


def prepare_by_hpo(path: Path, folder: Path) -> None:
    """Prepare the table as a launch does."""
    from hpo.data.prepared.cache import prepare

    study = {"name": "s", "seed": SEED}
    prepare(StudyConfig.model_validate({"study": study, "data": {"dataset": str(path)}, "path": folder / "study.toml"}))


def prepare_by_hand(path: Path, n_train: int) -> None:
    """Read and encode the table with pandas and scikit-learn."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import OneHotEncoder, TargetEncoder

    frame = pd.read_csv(path)
    y = frame.pop("label")
    for name in ("day", "time"):
        times = pd.to_datetime(frame.pop(name)).dt
        for part in ("year", "month", "day", "hour"):
            frame[f"{name} {part}"] = getattr(times, part)
    numbers = list(frame.select_dtypes("number"))
    many = ["city", "zip"]
    few = [name for name in frame if name not in numbers and name not in many]
    transformer = ColumnTransformer(
        [
            ("numbers", SimpleImputer(strategy="median", add_indicator=True), numbers),
            ("few", OneHotEncoder(min_frequency=10, handle_unknown="infrequent_if_exist"), few),
            ("many", TargetEncoder(cv=KFold(5, shuffle=True, random_state=SEED)), many),
        ]
    )
    train = frame.iloc[:n_train]
    transformer.fit(train, y.iloc[:n_train])
    transformer.transform(frame)


def _measure_here(kind: str, path: Path, folder: Path, rows: int) -> Measurement:
    """Measure one preparation in this process."""
    # The imports are no part of the preparation.
    for name in _IMPORTS:
        importlib.import_module(name)
    before, start, cpu_start = _peak_mb(), time.perf_counter(), time.process_time()
    if kind == "hpo":
        prepare_by_hpo(path, folder)
    else:
        prepare_by_hand(path, round(0.7 * rows))
    return Measurement(time.perf_counter() - start, time.process_time() - cpu_start, _peak_mb() - before)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(kind: str, path: Path, rows: int) -> Measurement:
    """Measure one preparation in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        call = f"from benchmarks.preparation import run_one; run_one({kind!r}, {str(path)!r}, {folder!r}, {rows})"
        done = subprocess.run(
            [sys.executable, "-c", call],
            env=os.environ | {"HPO_DATA_DIR": folder},
            capture_output=True,
            text=True,
            check=True,
        )
    return Measurement(*map(float, done.stdout.split()))


def run_one(kind: str, path: str, folder: str, rows: int) -> None:
    """Print the figures of one preparation."""
    click.echo(" ".join(map(str, _measure_here(kind, Path(path), Path(folder), rows))))


@click.command("python -m benchmarks.preparation")
@click.option("--rounds", default=7, show_default=True, help="Measurements of each preparation.")
@click.option("--rows", default=ROWS, show_default=True, help="Rows of the table.")
@json_option
def main(rounds: int, rows: int, output: Path | None) -> None:
    """Compare the preparation of a table with pandas and scikit-learn alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        table_mb = write_table(path, rows)
        measured: dict[str, list[Measurement]] = {"hpo": [], "reference": []}
        for number in range(rounds):
            for kind in sorted(measured, reverse=bool(number % 2)):
                measured[kind].append(measure(kind, path, rows))
    seconds, cpu_seconds, peaks = (
        {kind: [one[field] for one in values] for kind, values in measured.items()} for field in range(3)
    )
    time_ratio, cpu_ratio = (ratio(both["hpo"], both["reference"]) for both in (seconds, cpu_seconds))
    memory_ratio = spread([peak / table_mb for peak in peaks["hpo"]])
    shown = [["", "hpo", "pandas and scikit-learn", "ratio", "target"]]
    shown.append(["seconds", *(str(spread(seconds[kind])) for kind in measured), str(time_ratio), MAX_TIME])
    shown.append(["CPU seconds", *(str(spread(cpu_seconds[kind])) for kind in measured), str(cpu_ratio), ""])
    shown.append(["peak / table", str(memory_ratio), _over(peaks["reference"], table_mb), "", MAX_MEMORY])
    click.echo(
        f"{rows} rows, {table_mb:.0f} MB as a data frame, n = {rounds}; {environment()}, pandas {pd.__version__}"
    )
    print_table(shown)
    if output:
        ratios = {"time": time_ratio, "cpu_time": cpu_ratio, "memory": memory_ratio}
        figures = {"rows": rows, "table_mb": table_mb, **{name: asdict(value) for name, value in ratios.items()}}
        write_json(output, {"machine": machine(), "versions": versions(), **figures})


def _over(peaks: list[float], table_mb: float) -> str:
    return str(spread([peak / table_mb for peak in peaks]))


if __name__ == "__main__":
    main()
