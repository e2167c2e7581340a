"""``python -m benchmarks.search``: compute of each search method until a net has the report's accuracy.

Studies of ``studies/cifar10.toml`` are replayed in virtual time on a surrogate of learning curves that were recorded on
the real images. Compute is counted in multiply-adds, so that it grows with the hidden size and with the epochs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import joblib
import numpy as np
import optuna

from benchmarks.curves import RECORDED, Curves, Surrogate
from benchmarks.measuring import environment, json_option, machine, print_table, versions, write_json
from benchmarks.replay import HpoSearch, OptunaSearch, Progress, Search, StopOnlySearch, VirtualStudy
from hpo.config.loader import find_study, load_config
from hpo.config.study import StudyConfig
from hpo.models.nets.hyperparameters import max_epochs

# The report's validation accuracy.
TARGET = 0.551
SAMPLERS = ("tpe", "random", "random-grid", "qmc", "cmaes")
PRUNERS = ("asha", "hyperband", "median", "none")
# Multiply-adds at which the best accuracy is printed.
COMPUTES = (3e12, 10e12, 30e12, 100e12)
OURS, REPORT = "tpe + asha", "random-grid + none"
STOCK_HYPERBAND, STOCK_MEDIAN = "Optuna's TPE + Hyperband", "Optuna's TPE + median"
STOP_ONLY = "tpe + asha that only stops"


def searches(config: StudyConfig) -> dict[str, Callable[[StudyConfig], Search]]:
    """Return factories of all search methods by their names."""
    longest = max_epochs(config)
    ours = {f"{sampler} + {pruner}": partial(_ours, sampler, pruner) for sampler, pruner in product(SAMPLERS, PRUNERS)}
    return {
        **ours,
        STOP_ONLY: StopOnlySearch,
        STOCK_HYPERBAND: lambda config: OptunaSearch(config, optuna.pruners.HyperbandPruner(1, longest, 3)),
        STOCK_MEDIAN: lambda config: OptunaSearch(config, optuna.pruners.MedianPruner()),
    }


def _ours(sampler: str, pruner: str, config: StudyConfig) -> Search:
    return HpoSearch(_changed(config, sampler=sampler, pruner=pruner))


def _changed(config: StudyConfig, **settings: Any) -> StudyConfig:
    study = type(config.study).model_validate(config.study.model_dump() | settings)
    return config.model_copy(update={"study": study})


@dataclass(frozen=True)
class Result:
    """Result of one study.

    Attributes:
        compute: The multiply-adds until the target; infinite if the study does not reach it.
        seconds: The virtual time until the target; infinite if the study does not reach it.
        best: The best accuracy at each of ``COMPUTES``.
    """

    compute: float
    seconds: float
    best: list[float]


def replay(name: str, config: StudyConfig, surrogate: Surrogate, seed: int, workers: int) -> Result:
    """Replay one study until the target and the last of ``COMPUTES``."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seeded = _changed(config, seed=seed)
    study = VirtualStudy(searches(config)[name](seeded), surrogate, seeded, workers)

    def is_done(progress: Progress) -> bool:
        return progress.compute > COMPUTES[-1] and bool(progress.best) and progress.best[-1][2] >= TARGET

    progress = study.run(is_done)
    compute, seconds = progress.cost_of(TARGET) or (np.inf, np.inf)
    return Result(compute, seconds, [progress.best_within(spent) for spent in COMPUTES])


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile.

    Each is one of the values, because some values can be infinite.
    """
    return [float(value) for value in np.quantile(values, [0.25, 0.5, 0.75], method="nearest")]


def ratio(over: Sequence[Result], under: Sequence[Result]) -> dict[str, Any]:
    """Return the ratio of the median computes.

    The quartiles are of the ratios of all pairs of studies.
    """
    a, b = ([result.compute for result in results] for results in (over, under))
    low, _, high = quartiles([_over(x, y) for x, y in product(a, b)])
    of_medians = _over(quartiles(a)[1], quartiles(b)[1])
    return {"ratio": _finite(of_medians), "low": _finite(low), "high": _finite(high), "n": len(a)}


def _over(one: float, other: float) -> float:
    """Return the ratio of two computes; 1 if both are infinite."""
    return 1.0 if one == other else one / other


@click.command("python -m benchmarks.search")
@click.option("--seeds", type=click.IntRange(1), default=20, show_default=True, help="Studies per search method.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Virtual workers of a study.")
@click.option("--only", multiple=True, help="Search method by its name in the table; repeatable.  [default: all]")
@click.option(
    "--curves", type=click.Path(path_type=Path, dir_okay=False), default=RECORDED, help="File of recorded curves."
)
@json_option
def main(seeds: int, workers: int, only: tuple[str, ...], curves: Path, output: Path | None) -> None:
    """Replay studies of studies/cifar10.toml with each sampler and pruner."""
    config = load_config(find_study("cifar10"))
    surrogate = Surrogate(Curves.load(curves))
    names = list(only) or list(searches(config))
    if unknown := set(names) - set(searches(config)):
        raise click.UsageError(f"no {', '.join(sorted(unknown))}; there are {', '.join(searches(config))}")
    tasks = [(name, config, surrogate, seed, workers) for name in names for seed in range(seeds)]
    replayed = joblib.Parallel(-1)(joblib.delayed(replay)(*task) for task in tasks)
    results = {name: replayed[index * seeds : (index + 1) * seeds] for index, name in enumerate(names)}
    click.echo(f"{environment()}\n{seeds} studies of each, {workers} virtual workers; median (lower-upper quartile)")
    print_table(_table(results))
    if output is not None:
        write_json(output, _figures(results, workers))


def _table(results: dict[str, list[Result]]) -> list[list[str]]:
    heading = ["", f"Tmadd to {TARGET}", "minutes", "reached", *(f"best at {c / 1e12:.0f}" for c in COMPUTES)]
    return [heading, *([name, *_row(each)] for name, each in results.items())]


def _row(results: list[Result]) -> list[str]:
    reached = sum(np.isfinite(result.compute) for result in results)
    return [
        _shown([result.compute / 1e12 for result in results], ".1f"),
        _shown([result.seconds / 60 for result in results], ".1f"),
        f"{reached}/{len(results)}",
        *(_shown(list(column), ".3f") for column in zip(*(result.best for result in results), strict=True)),
    ]


def _shown(values: Sequence[float], form: str) -> str:
    low, median, high = (format(value, form) for value in quartiles(values))
    return f"{median} ({low}-{high})"


def _figures(results: dict[str, list[Result]], workers: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"machine": machine(), "versions": versions(), "workers": workers, "target": TARGET}
    for key, peer in (
        ("random_grid", REPORT),
        ("stock_hyperband", STOCK_HYPERBAND),
        ("stock_median", STOCK_MEDIAN),
        ("stop_only", STOP_ONLY),
    ):
        if peer in results and OURS in results:
            figures[f"compute_{key}_over_ours"] = ratio(results[peer], results[OURS])
    figures["studies"] = {name: _figures_of(each) for name, each in results.items()}
    return figures


def _figures_of(results: list[Result]) -> dict[str, Any]:
    return {
        "n": len(results),
        "compute": [_finite(value) for value in quartiles([result.compute for result in results])],
        "seconds": [_finite(value) for value in quartiles([result.seconds for result in results])],
        "best": {
            f"{compute:.0e}": quartiles([result.best[index] for result in results])
            for index, compute in enumerate(COMPUTES)
        },
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


if __name__ == "__main__":
    main()
