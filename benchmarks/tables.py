"""``python -m benchmarks.tables``: hpo, scikit-learn's defaults and a plain Optuna script on public tables.

All contestants see the same rows: hpo draws the test split by the seed. The defaults and the Optuna script are fitted
to all other rows. hpo chooses by its validation rows, and its launch runs as a command with two workers. The Optuna
script gets the same wall time on two processes as the slowest launch of the same table and seed.

The JSON file keeps each result, so that a command with the same file continues where another has ended.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd

from benchmarks.measuring import environment, machine, versions, write_json
from benchmarks.table_data import LABEL, TABLES, Table
from benchmarks.table_models import make, names
from hpo.config.loader import load_config
from hpo.data.division.splits import SplitIndices, draw_splits, encode_labels
from hpo.data.sources import find_source

WORKERS = 2
OURS = ("hpo mlp", "hpo boosting", "hpo both")
OPTUNA = "optuna"
DEFAULTS = ("linear", "forest", "boosting", "svm", "mlp")
CONTESTANTS = (*OURS, OPTUNA, *DEFAULTS)

# More trials than any launch reaches in its time.
_TRIALS = 100_000

Record = dict[str, Any]


class Limits(NamedTuple):
    """Limits of a launch: seconds, times the patience of the table, and trials."""

    seconds: float
    trials: int


@dataclass(frozen=True)
class Cell:
    """Table and seed: the same rows for all contestants."""

    table: Table
    seed: int
    folder: Path

    @cached_property
    def csv(self) -> Path:
        """File of the table."""
        path = self.folder / f"{self.table.name}.csv"
        return path if path.exists() else self.table.write(self.folder)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Rows of the table."""
        return pd.read_csv(self.csv)

    @cached_property
    def splits(self) -> SplitIndices:
        """Rows of each split of a launch."""
        config = load_config(self.study_file("hpo mlp"))
        dataset = find_source(config).load()
        return draw_splits(config, dataset, encode_labels(config, dataset)).folds[0]

    @property
    def train_rows(self) -> "np.ndarray[Any, Any]":
        """Rows of all splits but the test split."""
        return np.concatenate([self.splits.train, self.splits.validation])

    def study_file(self, contestant: str) -> Path:
        """Write the study file of a launch; return its path."""
        tables: dict[str, dict[str, Any]] = {
            "study": {"name": self.table.name, "seed": self.seed, "pruner": self.table.pruner},
            "data": {"dataset": str(self.csv), "label": LABEL, "task": self.table.task, **self.table.data},
            **_models(contestant, self.table),
        }
        path = self.folder / f"{contestant.replace(' ', '-')}.toml"
        lines = [[f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in keys.items())] for name, keys in tables.items()]
        path.write_text("\n".join(line for table in lines for line in table) + "\n")
        return path


def _models(contestant: str, table: Table) -> dict[str, dict[str, Any]]:
    """Return [model] and [space] of a launch."""
    suffix = "Classifier" if table.task == "classification" else "Regressor"
    boosting = {"estimator": f"sklearn.ensemble.HistGradientBoosting{suffix}"}
    match contestant:
        case "hpo boosting":
            return {"model": {"kind": "sklearn", **boosting}, "space": {"preset": "tabular"}}
        case "hpo both":
            models = {"kind": ["mlp", "boosting"], "boosting": boosting}
            return {"model": models, "space": {"preset": "tabular", "mlp": dict(table.net)}}
    return {"space": {"preset": "tabular", **table.net}}


def _toml(value: Any) -> str:
    """Return a value of a study file, as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def launch(cell: Cell, contestant: str, seconds: float, trials: int) -> Record:
    """Run a launch of hpo in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=cell.folder) as folder:
        command = [sys.executable, "-m", "hpo.launch", str(cell.study_file(contestant)), "--workers", str(WORKERS)]
        command += ["--timeout", f"{seconds}s", "--storage", f"sqlite:///{folder}/hpo.db", "--output", folder]
        command += ["--refit"] if cell.table.refit else []
        best = _run([*command, "--trials", str(trials), "--confirm", "0", "--no-dashboard", "--quiet"])
    if "error" in best:
        return {"value": None, "error": best["error"]}
    metric = cell.table.metric
    tested = best["refit"] if cell.table.refit else best
    return {
        "value": tested["metrics"][f"test_{metric}"],
        "validation": best["metrics"][f"validation_{metric}"],
        "trials": best["trials"]["complete"],
        "parameters": best["params"],
    }


def optuna_script(cell: Cell, seconds: float) -> Record:
    """Run the plain Optuna script for some seconds."""
    with tempfile.TemporaryDirectory(dir=cell.folder) as folder:
        rows = Path(folder, "rows.npy")
        np.save(rows, cell.train_rows)
        command = [sys.executable, "-m", "benchmarks.table_optuna", str(cell.csv), str(rows)]
        arguments = ["--task", cell.table.task, "--seed", str(cell.seed), "--seconds", f"{seconds:.1f}"]
        return {"value": None} | _run([*command, *arguments])


def default(cell: Cell, name: str) -> Record:
    """Fit scikit-learn's default of a model to all rows but the test rows."""
    train, test = cell.rows.iloc[cell.train_rows], cell.rows.iloc[cell.splits.test]
    model = make(name, cell.table.task, cell.seed)
    with warnings.catch_warnings():
        # The defaults of the MLP stop before they converge.
        warnings.simplefilter("ignore")
        model.fit(train.drop(columns=LABEL), train[LABEL])
    return {"value": float(model.score(test.drop(columns=LABEL), test[LABEL]))}


def _run(command: Sequence[str]) -> Record:
    """Return the JSON of a command, or the last line of its error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: Record = {"error": done.stderr.strip().splitlines()[-1]} if done.returncode else json.loads(done.stdout)
    return found


def measure(cell: Cell, contestant: str, limits: Limits, known: Sequence[Record]) -> Record:
    """Return the test metric of a contestant, and its wall time.

    Args:
        cell: Table and seed.
        contestant: Name of the contestant.
        limits: Limits of a launch.
        known: Records of the same cell. The Optuna script gets their longest wall time.
    """
    started, seconds = time.monotonic(), limits.seconds * cell.table.patience
    if contestant in OURS:
        record = launch(cell, contestant, seconds, limits.trials)
    elif contestant == OPTUNA:
        walls = [record["wall_s"] for record in known if record["contestant"] in OURS]
        record = optuna_script(cell, max(walls, default=seconds))
    else:
        record = default(cell, contestant)
    return {
        "table": cell.table.name,
        "seed": cell.seed,
        "contestant": contestant,
        "metric": cell.table.metric,
        "seconds": seconds if contestant not in DEFAULTS else None,
        "wall_s": round(time.monotonic() - started, 2),
        **record,
    }


@click.command("python -m benchmarks.tables")
@click.option("--tables", default=",".join(TABLES), show_default=True, help="Tables, separated by commas.")
@click.option("--contestants", default=",".join(CONTESTANTS), show_default=True, help="Names, separated by commas.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Number of seeds, from 0.")
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=5, show_default=True, help="Timeout of a launch.")
@click.option("--trials", type=click.IntRange(1), default=_TRIALS, help="Largest number of trials of a launch.")
@click.option(
    "--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Keep the results, and skip known ones."
)
def main(
    tables: str, contestants: str, seeds: int, first_seed: int, seconds: float, trials: int, output: Path | None
) -> None:
    """Compare hpo with scikit-learn's defaults and a plain Optuna script.

    A larger table gets two to eight times the seconds.
    """
    chosen_tables = _choose(tables, TABLES)
    chosen = _choose(contestants, CONTESTANTS)
    records = json.loads(output.read_text())["records"] if output is not None and output.exists() else []
    with tempfile.TemporaryDirectory(prefix="hpo-tables-") as folder:
        for name in chosen_tables:
            for seed in range(first_seed, first_seed + seeds):
                cell = Cell(TABLES[name], seed, Path(folder))
                for record in _measure_missing(cell, chosen, Limits(seconds, trials), records):
                    records.append(record)
                    click.echo(_progress(record), err=True)
                    if output is not None:
                        write_json(output, {"machine": machine(), "versions": versions(), "records": records})
    click.echo(environment())
    shown = [record for record in records if record["table"] in chosen_tables and record["contestant"] in chosen]
    click.echo(markdown(shown))


def _choose(names_: str, known: Sequence[str] | dict[str, Any] | Any) -> list[str]:
    chosen = [name.strip() for name in names_.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise click.UsageError(f"no {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in chosen]


def _measure_missing(cell: Cell, contestants: Sequence[str], limits: Limits, records: list[Record]) -> Iterator[Record]:
    """Measure the contestants of a cell that the records lack."""
    for contestant in contestants:
        known = [record for record in records if (record["table"], record["seed"]) == (cell.table.name, cell.seed)]
        if contestant in DEFAULTS and contestant not in names(len(cell.rows)):
            continue
        if not any(record["contestant"] == contestant for record in known):
            yield measure(cell, contestant, limits, known)


def _progress(record: Record) -> str:
    value = record.get("error", "no trial") if record["value"] is None else f"{record['value']:.4f}"
    trials = f", {record['trials']} trials" if "trials" in record else ""
    return (
        f"{record['table']} seed {record['seed']}: {record['contestant']} {value} in {record['wall_s']:.1f} s{trials}"
    )


@dataclass(frozen=True)
class Score:
    """Mean and standard error of the test metric over the seeds."""

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score":
        """Return the score of the values of some seeds."""
        n = len(values)
        return cls(statistics.fmean(values), statistics.stdev(values) / math.sqrt(n) if n > 1 else 0.0, n)


def scores(records: Sequence[Record]) -> dict[str, dict[str, Score]]:
    """Return the score of each contestant by table."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record["value"] is not None:
            values.setdefault(record["table"], {}).setdefault(record["contestant"], []).append(record["value"])
    return {table: {name: Score.of(found) for name, found in row.items()} for table, row in values.items()}


def markdown(records: Sequence[Record]) -> str:
    """Return a table in Markdown: the best mean in bold, and in italics the means within a standard error of it."""
    found = scores(records)
    present = [name for name in CONTESTANTS if any(name in row for row in found.values())]
    lines = ["| table (metric) | " + " | ".join(present) + " |", "| --- |" + " --- |" * len(present)]
    for table, row in found.items():
        best = max(row.values(), key=lambda score: score.mean)
        cells = [_cell(row[name], best) if name in row else "-" for name in present]
        lines.append(f"| {table} ({TABLES[table].metric}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(score: Score, best: Score) -> str:
    text = f"{score.mean:.3f} " + (f"± {score.error:.3f}" if score.n > 1 else "(1 seed)")
    if score.mean == best.mean:
        return f"**{text}**"
    return f"*{text}*" if score.mean + max(score.error, best.error) >= best.mean else text


if __name__ == "__main__":
    main()
