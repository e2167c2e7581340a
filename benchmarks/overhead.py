"""``python -m benchmarks.overhead``: what a trial costs besides its training, on CIFAR-10, in CPU time.

A worker in this process, as a launch has them, trains real trials after 100 finished ones, in SQLite and in PostgreSQL.
The training takes down the CPU time of its own thread: an epoch, an accuracy, the making of the net. Whatever else this
process does until the trial has ended, in all of its threads, is the overhead: the claim, the proposal, reports, the
pruner, checkpoints. The looks at the limits between two steps count as training, and are shown by themselves. What a
worker does once is left out (three trials without training come first), and so is what PostgreSQL's server does.

How the overhead grows is measured with trials whose epochs take no time, after 100 and after 10,000 finished ones, in
copies of the same databases; and beside them what Optuna's own loop of ask, report, should_prune and tell takes.
"""

import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from unittest.mock import patch

import click
import numpy as np
import optuna
from optuna.trial import TrialState
from threadpoolctl import threadpool_limits

from benchmarks.accounting import PARTS, Spent, accounted
from benchmarks.filled import Server, SqliteFiles, filled_database, plausible_accuracy
from benchmarks.measuring import (
    Spread,
    environment,
    json_option,
    machine,
    print_table,
    ratio,
    spread,
    versions,
    write_json,
)
from benchmarks.postgres import running_postgres
from hpo.config.study import Hyperparameters, StudyConfig, find_study, load_config
from hpo.data.cache import PreparedData, Split, load_prepared, prepare
from hpo.errors import HpoError
from hpo.models.mlp import Array
from hpo.models.trainer import Epoch, Trainer
from hpo.runner import trial_runner as attempt
from hpo.runner.limits import Limits
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import Worker, WorkerConfig
from hpo.search.pruners import first_rung, report_epochs
from hpo.search.space import distributions
from hpo.storage import database as storage
from hpo.storage import leases
from hpo.storage.study import Study, load_study

STUDY = "cifar10"
FEW, MANY = 100, 10_000  # trials that are finished before
WARM_TRIALS = 3
FEATURES, CLASSES = 197, 10  # of the net that a trial without training leaves
STORAGE_SECONDS = 60.0
TARGETS = {"cpu_ms_per_trial": 15, "share": 0.01, "growth_10000_over_100": 2}
STORAGES = ("sqlite", "postgresql")
PACKAGES = ("optuna", "sqlalchemy", "psycopg")

T = TypeVar("T")


class Instant(Trainer):
    """A training whose epochs take no time; its accuracies are plausible."""

    def __init__(self, train: Split, classes: int, hyperparameters: Hyperparameters, seed: tuple[int, int]) -> None:
        self._hyperparameters = hyperparameters
        self._luck = np.random.default_rng(seed).random()
        self.epoch = 0

    def epochs(self, after_step: Callable[[], None] = lambda: None) -> Iterator[Epoch]:
        """Count them."""
        while self.epoch < self._hyperparameters.epochs:
            self.epoch += 1
            yield Epoch(self.epoch, 0.0)

    def accuracy(self, split: Split) -> float:
        """Of the epoch that was counted last."""
        return plausible_accuracy(self._hyperparameters.learning_rate, self.epoch, self._luck)

    def weights(self) -> list[tuple[Array, Array]]:
        """Zeros, as many as a net of that size has."""
        sizes = [FEATURES, *self._hyperparameters.hidden_sizes, CLASSES]
        return [
            (np.zeros((inputs, units), np.float32), np.zeros(units, np.float32)) for inputs, units in pairwise(sizes)
        ]

    def save(self) -> bytes:
        """Nothing: it takes less time than a trial has before its first checkpoint."""
        return b""


def work(study: Study, spec: StudyConfig, data: PreparedData, count: int) -> None:
    """Let a worker train so many more trials."""
    config = WorkerConfig("", spec, Path(), len(study.trials) + count, Limits(STORAGE_SECONDS), verbose=False)
    Worker(study, data, config, leases.new_owner(), threading.Event(), SharedProgress()).run()


def work_instantly(study: Study, spec: StudyConfig, count: int) -> float:
    """The same with trials without training; returns the CPU milliseconds of one."""
    no_data = cast(PreparedData, SimpleNamespace(train=None, validation=None, classes=range(CLASSES)))
    with patch.object(attempt, "Trainer", Instant):
        started = time.process_time()
        work(study, spec, no_data, count)
        return 1e3 * (time.process_time() - started) / count


@contextlib.contextmanager
def warm_study(url: str, spec: StudyConfig) -> Iterator[Study]:
    """The study in this database, and some trials more."""
    with load_study(storage.parse_url(url), spec) as study:
        work_instantly(study, spec, WARM_TRIALS)
        yield study


def measure_real(url: str, spec: StudyConfig, data: PreparedData, count: int) -> list[Spent]:
    """What real trials take."""
    with warm_study(url, spec) as study, accounted() as spent:
        work(study, spec, data, count)
    return spent


def measure_instant(url: str, spec: StudyConfig, count: int) -> float:
    """CPU milliseconds of a trial without training."""
    with warm_study(url, spec) as study:
        return work_instantly(study, spec, count)


def measure_stock(url: str, spec: StudyConfig, count: int) -> float:
    """CPU milliseconds of such a trial by Optuna's own loop, with its default sampler and its default pruner.

    The pruner judges no trial before the first rung: our trials report as often.
    """
    rdb = optuna.storages.RDBStorage(storage.parse_url(url).render_as_string(hide_password=False))
    study = optuna.load_study(
        study_name=spec.study.name,
        storage=rdb,
        sampler=optuna.samplers.TPESampler(seed=spec.study.seed),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=first_rung(spec.max_epochs)),
    )
    for _ in range(WARM_TRIALS):
        _run_stock_trial(study, spec)
    started = time.process_time()
    for _ in range(count):
        _run_stock_trial(study, spec)
    seconds = time.process_time() - started
    storage.close(rdb)
    return 1e3 * seconds / count


def _run_stock_trial(study: optuna.Study, spec: StudyConfig) -> None:
    trial = study.ask(distributions(spec))
    luck = np.random.default_rng(trial.number).random()
    last = trial.params["epochs"]
    for epoch in sorted(epoch for epoch in report_epochs(spec.max_epochs) | {last} if epoch <= last):
        accuracy = plausible_accuracy(trial.params["learning_rate"], epoch, luck)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, accuracy)


@dataclass(frozen=True)
class Figures:
    """Of one storage: the real trials, and CPU milliseconds of a trial without training, round by round."""

    real: list[Spent]
    few: list[float]
    many: list[float]
    stock: list[float]

    @property
    def cpu_ms_per_trial(self) -> float | None:
        """The mean overhead of the real trials."""
        return statistics.fmean(one.overhead for one in self.real) if self.real else None

    @property
    def cpu_ms_without_checkpoints(self) -> float | None:
        """The same without taking and writing checkpoints, of which a long trial has more."""
        return statistics.fmean(one.overhead - one.checkpoints for one in self.real) if self.real else None

    @property
    def share(self) -> float | None:
        """Of the overhead, in the CPU time of all real trials."""
        overhead = sum(one.overhead for one in self.real)
        return overhead / (overhead + sum(one.training for one in self.real)) if self.real else None

    @property
    def growth(self) -> Spread:
        """What a trial takes after many, in units of what it takes after few."""
        return ratio(self.many, self.few)

    def spreads(self) -> dict[str, Spread]:
        """Of all that was measured more than once."""
        return {
            **({"cpu_ms_per_trial": spread([one.overhead for one in self.real])} if self.real else {}),
            "instant_cpu_ms_per_trial": spread(self.few),
            "instant_cpu_ms_per_trial_after_many": spread(self.many),
            "growth": self.growth,
            "stock_cpu_ms_per_trial": spread(self.stock),
        }


@dataclass(frozen=True)
class Amount:
    """How much is measured: real trials; rounds, each with so many trials without training; finished ones before."""

    trials: int
    rounds: int
    instant: int
    many: int


def measure(server: Server, spec: StudyConfig, data: PreparedData | None, amount: Amount) -> Figures:
    """All figures of one storage."""
    few, many = (filled_database(server, spec, count) for count in (FEW, amount.many))
    real = [] if data is None else measure_real(server.new_database(like=few), spec, data, amount.trials)
    works: dict[str, Callable[[], float]] = {
        "few": lambda: measure_instant(server.new_database(like=few), spec, amount.instant),
        "many": lambda: measure_instant(server.new_database(like=many), spec, amount.instant),
        "stock": lambda: measure_stock(server.new_database(like=few), spec, amount.instant),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(amount.rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            found[name].append(works[name]())
    return Figures(real, **found)


def _mean(values: Sequence[float]) -> str:
    # Trials are of very different lengths: a median would be that of the short ones.
    return f"{statistics.fmean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _show_part(part: str, figures: Figures) -> str:
    milliseconds = sum(trial.parts[part] for trial in figures.real)
    calls, trials = sum(trial.counts[part] for trial in figures.real), len(figures.real)
    return f"{milliseconds / trials:.2f} = {calls / trials:.1f} x {milliseconds / max(1, calls):.2f}"


def _between_steps(figures: Figures) -> float:
    return sum(one.between_steps for one in figures.real) / sum(one.training for one in figures.real)


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, Server]]:
    """Where databases can be made: SQLite files, and a PostgreSQL of its own where it is installed."""
    found: dict[str, Server] = {"sqlite": SqliteFiles(folder)}
    with contextlib.ExitStack() as stack:
        try:
            found["postgresql"] = stack.enter_context(running_postgres())
        except HpoError as error:
            click.echo(f"SQLite alone: {error}")
        yield found


REAL_ROWS: dict[str, Callable[[Figures], str]] = {
    "epochs of each": lambda one: " ".join(str(trial.epochs) for trial in one.real),
    "overhead, ms a trial": lambda one: _mean([trial.overhead for trial in one.real]),
    "  target: under": lambda _: str(TARGETS["cpu_ms_per_trial"]),
    "  without checkpoints": lambda one: _mean([trial.overhead - trial.checkpoints for trial in one.real]),
    **{f"  {part}": partial(_show_part, part) for part in PARTS},
    "  the rest": lambda one: _mean([trial.overhead - sum(trial.parts.values()) for trial in one.real]),
    "share of the CPU time": lambda one: f"{one.share:.3%}",
    "  target: under ": lambda _: f"{TARGETS['share']:.0%}",
    "looks at limits between steps": lambda one: f"{_between_steps(one):.3%}",
}
INSTANT_ROWS: dict[str, Callable[[Figures], str]] = {
    "ms a trial": lambda one: str(spread(one.few)),
    "after many": lambda one: str(spread(one.many)),
    "growth": lambda one: str(one.growth),
    "  target: under": lambda _: str(TARGETS["growth_10000_over_100"]),
    "Optuna's own loop, ms a trial": lambda one: str(spread(one.stock)),
}


def show(found: Mapping[str, Figures], amount: Amount) -> None:
    """Two tables with a column for each storage: real trials, and those without training."""
    if amount.trials:
        click.echo(f"\n{amount.trials} trials after {FEW} finished ones: means (lowest-highest)")
        _show_table(found, REAL_ROWS)
    click.echo(
        f"\n{amount.instant} trials without training after {FEW} finished ones, and after {amount.many}: "
        f"medians of {amount.rounds} rounds (lowest-highest)"
    )
    _show_table(found, INSTANT_ROWS)


def _show_table(found: Mapping[str, Figures], rows: Mapping[str, Callable[[Figures], str]]) -> None:
    print_table([["", *found]] + [[label, *map(cell, found.values())] for label, cell in rows.items()])


def as_json(found: Mapping[str, Figures], amount: Amount) -> dict[str, Any]:
    """The figures by storage, None where there are none, and then what they are of.

    Those of real trials, which are of very different lengths, are means; the others are medians of the rounds.
    """

    def by_storage(figure: Callable[[Figures], T]) -> dict[str, T | None]:
        return {name: figure(found[name]) if name in found else None for name in STORAGES}

    shares = [one.share for one in found.values() if one.share is not None]
    return {
        "cpu_ms_per_trial": by_storage(lambda one: one.cpu_ms_per_trial),
        "cpu_ms_per_trial_without_checkpoints": by_storage(lambda one: one.cpu_ms_without_checkpoints),
        "share": max(shares, default=None),
        "growth_10000_over_100": found["sqlite"].growth.median,
        "stock_cpu_ms_per_trial": by_storage(lambda one: spread(one.stock).median),
        "instant_cpu_ms_per_trial": by_storage(lambda one: spread(one.few).median),
        "spread": by_storage(lambda one: {name: asdict(figure) for name, figure in one.spreads().items()}),
        "trials": by_storage(lambda one: [asdict(trial) for trial in one.real]),
        "finished": [FEW, amount.many],
        "machine": machine(),
        "versions": versions() | {name: version(name) for name in PACKAGES},
    }


def prepared_data(spec: StudyConfig, path: Path, amount: Amount) -> PreparedData | None:
    """What real trials are trained on; None where there are to be none.

    Raises:
        HpoError: CIFAR-10 is not there.
    """
    return load_prepared(prepare(spec, path)) if amount.trials else None


@click.command("python -m benchmarks.overhead", context_settings={"show_default": True})
@click.option("--trials", type=click.IntRange(0), default=6, help="Real trials in each storage.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Of trials without training.")
@click.option("--instant", type=click.IntRange(1), default=60, help="Trials without training in a round.")
@click.option("--many", type=click.IntRange(FEW), default=MANY, help=f"Finished trials that are compared to {FEW}.")
@json_option
def main(trials: int, rounds: int, instant: int, many: int, output: Path | None) -> None:
    """Measure what a trial costs besides its training on CIFAR-10, in CPU time, in SQLite and in PostgreSQL."""
    amount = Amount(trials, rounds, instant, many)
    path = find_study(STUDY)
    spec = load_config(path)
    try:
        data = prepared_data(spec, path, amount)
        with tempfile.TemporaryDirectory(prefix="hpo-overhead-") as folder, servers(Path(folder)) as places:
            click.echo(environment())
            found = measure_by_one_thread(places, spec, data, amount)
        show(found, amount)
        if output is not None:
            write_json(output, as_json(found, amount))
    except HpoError as error:
        raise click.ClickException(str(error)) from None


def measure_by_one_thread(
    places: Mapping[str, Server], spec: StudyConfig, data: PreparedData | None, amount: Amount
) -> dict[str, Figures]:
    """All figures of all storages, with one thread of BLAS as in a launch."""
    import scipy.linalg  # noqa: F401  # its BLAS would not be limited if it were loaded later

    with threadpool_limits(1):
        return {name: measure(server, spec, data, amount) for name, server in places.items()}


if __name__ == "__main__":
    main()
