"""``python -m benchmarks.overhead``: CPU time of a trial on CIFAR-10 besides its training.

A worker in this process runs real trials after 100 finished ones, in SQLite and in PostgreSQL. The training is the CPU
time of the objective: epochs, scores, the creation of the net. The overhead is all other CPU time of this process until
the trial has ended, in all threads: the claim, the proposal, reports, the pruner, checkpoints. The ticks between two
steps count as training, and are shown apart. The start of a worker is left out (three trials without training come
first), and so is PostgreSQL's server.

The growth of the overhead is measured with trials whose epochs take no time, after 100 and after 10,000 finished ones,
in copies of the same databases. Optuna's own loop of ask, report, should_prune and tell is measured in comparison.

The trials of a user's objective are measured by ``benchmarks.script_trials``.
"""

import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

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
from benchmarks.script_trials import ScriptCosts, measure_scripts, scripts_as_json, show_scripts
from hpo.config.loader import find_study, load_config
from hpo.config.study import StudyConfig
from hpo.data.prepared.cache import PreparedData, prepare
from hpo.errors import HpoError
from hpo.models.fitted import FittedNet, pack_model
from hpo.models.nets.hyperparameters import FLOAT_HYPERPARAMETERS, hyperparameters_of, max_epochs
from hpo.runner.limits import Limits
from hpo.runner.objective import Objective, Trial
from hpo.runner.training_objective import TrainingObjective
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import WorkerConfig, WorkerLoop
from hpo.search.pruning.asha import rungs
from hpo.search.pruning.pruners import report_steps
from hpo.search.space import build_space
from hpo.storage.database.connection import Database, close
from hpo.storage.study import Study, load_study
from hpo.storage.tables.leases import new_owner

STUDY = "cifar10"
# Numbers of finished trials before the measured ones.
FEW, MANY = 100, 10_000
WARM_TRIALS = 3
# The sizes of the net that a trial without training returns.
FEATURES, CLASSES = 197, 10
STORAGE_TIMEOUT_S = 60.0
TARGETS = {"cpu_ms_per_trial": 15, "share": 0.01, "growth_10000_over_100": 2}
STORAGES = ("sqlite", "postgresql")
PACKAGES = ("optuna", "sqlalchemy", "psycopg")

T = TypeVar("T")


class InstantObjective(TrainingObjective):
    """Objective whose epochs take no time; its accuracies are plausible."""

    def __init__(self, config: StudyConfig) -> None:
        super().__init__(config, Path(), fingerprint="")
        self._hidden_sizes: tuple[int, ...] = ()

    def __call__(self, trial: Trial) -> float:
        """Count the epochs of a trial, and report their accuracies."""
        hyperparameters = hyperparameters_of(self._config, trial.params)
        self._hidden_sizes = hyperparameters.hidden_sizes
        reports = self._reports_of(trial)
        luck = np.random.default_rng((self._config.study.seed, trial.number)).random()
        for epoch in range(1, hyperparameters.epochs):
            if epoch in reports:
                trial.report(plausible_accuracy(hyperparameters.learning_rate, epoch, luck), epoch)
            trial.save_checkpoint(bytes, epoch)
        value = plausible_accuracy(hyperparameters.learning_rate, hyperparameters.epochs, luck)
        trial.report(value, hyperparameters.epochs)
        return value

    def artifact(self) -> bytes:
        """Return zeros, as many as a net of that size has."""
        sizes = [FEATURES, *self._hidden_sizes, CLASSES]
        return pack_model(
            FittedNet(
                [
                    (np.zeros((inputs, units), np.float32), np.zeros(units, np.float32))
                    for inputs, units in pairwise(sizes)
                ]
            )
        )


def work(study: Study, config: StudyConfig, objective: Objective, count: int) -> None:
    """Run additional trials with one worker."""
    limits = Limits(STORAGE_TIMEOUT_S)
    worker = WorkerConfig(study.database, config, objective, len(study.trials) + count, limits, verbose=False)
    WorkerLoop(study, worker, new_owner(), threading.Event(), SharedProgress()).run()


def work_instantly(study: Study, config: StudyConfig, count: int) -> float:
    """Run trials without training; return the CPU milliseconds of one."""
    started = time.process_time()
    work(study, config, InstantObjective(config), count)
    return 1e3 * (time.process_time() - started) / count


@contextlib.contextmanager
def warm_study(url: str, config: StudyConfig) -> Iterator[Study]:
    """Provide the study of a database, after a few trials without training."""
    with load_study(Database.parse(url), config) as study:
        work_instantly(study, config, WARM_TRIALS)
        yield study


def measure_real(url: str, config: StudyConfig, data: PreparedData, count: int) -> list[Spent]:
    """Return the CPU time of real trials."""
    objective = TrainingObjective.from_config(config, data)
    objective.setup()
    with warm_study(url, config) as study, accounted() as spent:
        work(study, config, objective, count)
    return spent


def measure_instant(url: str, config: StudyConfig, count: int) -> float:
    """Return the CPU milliseconds of a trial without training."""
    with warm_study(url, config) as study:
        return work_instantly(study, config, count)


def measure_stock(url: str, config: StudyConfig, count: int) -> float:
    """Return the CPU milliseconds of a trial in Optuna's own loop, with its default sampler and its default pruner.

    The trials report as often as hpo's trials, and the pruner decides from the first rung on, as hpo's pruners do.
    """
    rdb = Database.parse(url).open()
    study = optuna.load_study(
        study_name=config.study.name,
        storage=rdb,
        sampler=optuna.samplers.TPESampler(seed=config.study.seed),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=rungs(max_epochs(config))[0]),
    )
    for _ in range(WARM_TRIALS):
        _run_stock_trial(study, config)
    started = time.process_time()
    for _ in range(count):
        _run_stock_trial(study, config)
    seconds = time.process_time() - started
    close(rdb)
    return 1e3 * seconds / count


def _run_stock_trial(study: optuna.Study, config: StudyConfig) -> None:
    trial = study.ask(dict(build_space(config, FLOAT_HYPERPARAMETERS)))
    luck = np.random.default_rng(trial.number).random()
    last = trial.params["epochs"]
    for epoch in sorted(epoch for epoch in report_steps(max_epochs(config)) | {last} if epoch <= last):
        accuracy = plausible_accuracy(trial.params["learning_rate"], epoch, luck)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, accuracy)


@dataclass(frozen=True)
class Figures:
    """Figures of one storage: the real trials, and CPU milliseconds of a trial without training by round.

    ``scripts`` has the trials of a user's objective.
    """

    real: list[Spent]
    few: list[float]
    many: list[float]
    stock: list[float]
    scripts: ScriptCosts = field(default_factory=dict)

    @property
    def cpu_ms_per_trial(self) -> float | None:
        """Mean overhead of the real trials."""
        return statistics.fmean(one.overhead for one in self.real) if self.real else None

    @property
    def cpu_ms_without_checkpoints(self) -> float | None:
        """Mean overhead without checkpoints, of which a long trial has more."""
        return statistics.fmean(one.overhead - one.checkpoints for one in self.real) if self.real else None

    @property
    def share(self) -> float | None:
        """Share of the overhead in the CPU time of all real trials."""
        overhead = sum(one.overhead for one in self.real)
        return overhead / (overhead + sum(one.training for one in self.real)) if self.real else None

    @property
    def growth(self) -> Spread:
        """CPU time of a trial after many trials, relative to that after few."""
        return ratio(self.many, self.few)

    def spreads(self) -> dict[str, Spread]:
        """Return the spreads of all repeated measurements."""
        return {
            **({"cpu_ms_per_trial": spread([one.overhead for one in self.real])} if self.real else {}),
            "instant_cpu_ms_per_trial": spread(self.few),
            "instant_cpu_ms_per_trial_after_many": spread(self.many),
            "growth": self.growth,
            "stock_cpu_ms_per_trial": spread(self.stock),
        }


@dataclass(frozen=True)
class Amount:
    """Amount of work.

    Attributes:
        trials: Real trials.
        rounds: Rounds of trials without training.
        instant: Trials without training in a round.
        many: Finished trials that are compared to few.
        script_rounds: Rounds of trials of a user's objective.
        script_trials: Trials of a user's objective in a round.
    """

    trials: int
    rounds: int
    instant: int
    many: int
    script_rounds: int
    script_trials: int


def measure(server: Server, config: StudyConfig, data: PreparedData | None, amount: Amount) -> Figures:
    """Measure all figures of one storage."""
    few, many = (filled_database(server, config, count) for count in (FEW, amount.many))
    real = [] if data is None else measure_real(server.new_database(like=few), config, data, amount.trials)
    works: dict[str, Callable[[], float]] = {
        "few": lambda: measure_instant(server.new_database(like=few), config, amount.instant),
        "many": lambda: measure_instant(server.new_database(like=many), config, amount.instant),
        "stock": lambda: measure_stock(server.new_database(like=few), config, amount.instant),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(amount.rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            found[name].append(works[name]())
    scripts = measure_scripts(server, amount.script_rounds, amount.script_trials) if amount.script_rounds else {}
    return Figures(real, **found, scripts=scripts)


def _mean(values: Sequence[float]) -> str:
    # A median would be that of the short trials, because the lengths differ much.
    return f"{statistics.fmean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _show_part(part: str, figures: Figures) -> str:
    milliseconds = sum(trial.parts[part] for trial in figures.real)
    calls, trials = sum(trial.counts[part] for trial in figures.real), len(figures.real)
    return f"{milliseconds / trials:.2f} = {calls / trials:.1f} x {milliseconds / max(1, calls):.2f}"


def _between_steps(figures: Figures) -> float:
    return sum(one.between_steps for one in figures.real) / sum(one.training for one in figures.real)


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, Server]]:
    """Provide SQLite files, and a PostgreSQL server if it is installed."""
    found: dict[str, Server] = {"sqlite": SqliteFiles(folder)}
    with contextlib.ExitStack() as stack:
        try:
            found["postgresql"] = stack.enter_context(running_postgres())
        except HpoError as error:
            click.echo(f"only SQLite: {error}")
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
    "ticks between steps": lambda one: f"{_between_steps(one):.3%}",
}
INSTANT_ROWS: dict[str, Callable[[Figures], str]] = {
    "ms a trial": lambda one: str(spread(one.few)),
    "after many": lambda one: str(spread(one.many)),
    "growth": lambda one: str(one.growth),
    "  target: under": lambda _: str(TARGETS["growth_10000_over_100"]),
    "Optuna's own loop, ms a trial": lambda one: str(spread(one.stock)),
}


def show(found: Mapping[str, Figures], amount: Amount) -> None:
    """Print a table of the real trials and one of the trials without training."""
    if amount.trials:
        click.echo(f"\n{amount.trials} trials after {FEW} finished ones: means (lowest-highest)")
        _show_table(found, REAL_ROWS)
    click.echo(
        f"\n{amount.instant} trials without training after {FEW} finished ones, and after {amount.many}: "
        f"medians of {amount.rounds} rounds (lowest-highest)"
    )
    _show_table(found, INSTANT_ROWS)
    if amount.script_rounds:
        show_scripts({name: one.scripts for name, one in found.items()}, amount.script_rounds, amount.script_trials)


def _show_table(found: Mapping[str, Figures], rows: Mapping[str, Callable[[Figures], str]]) -> None:
    print_table([["", *found]] + [[label, *map(cell, found.values())] for label, cell in rows.items()])


def as_json(found: Mapping[str, Figures], amount: Amount) -> dict[str, Any]:
    """Return the figures by storage, None if there are none, and their circumstances.

    Figures of real trials are means, because the lengths differ much. Other figures are medians of the rounds.
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
        "scripts": by_storage(lambda one: scripts_as_json(one.scripts)),
        "finished": [FEW, amount.many],
        "machine": machine(),
        "versions": versions() | {name: version(name) for name in PACKAGES},
    }


def prepared_data(config: StudyConfig, amount: Amount) -> PreparedData | None:
    """Return the data of real trials, None without real trials.

    Raises:
        HpoError: if CIFAR-10 is missing.
    """
    return prepare(config) if amount.trials else None


@click.command("python -m benchmarks.overhead", context_settings={"show_default": True})
@click.option("--trials", type=click.IntRange(0), default=6, help="Real trials in each storage.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Rounds of trials without training.")
@click.option("--instant", type=click.IntRange(1), default=60, help="Trials without training in a round.")
@click.option("--many", type=click.IntRange(FEW), default=MANY, help=f"Finished trials that are compared to {FEW}.")
@click.option("--script-rounds", type=click.IntRange(0), default=5, help="Rounds of trials of a user's objective.")
@click.option("--script-trials", type=click.IntRange(1), default=40, help="Trials of a user's objective in a round.")
@json_option
def main(output: Path | None, **amounts: int) -> None:
    """Measure the CPU time of a trial on CIFAR-10 besides its training, in SQLite and in PostgreSQL."""
    amount = Amount(**amounts)
    config = load_config(find_study(STUDY))
    try:
        data = prepared_data(config, amount)
        with tempfile.TemporaryDirectory(prefix="hpo-overhead-") as folder, servers(Path(folder)) as places:
            click.echo(environment())
            found = measure_with_one_thread(places, config, data, amount)
        show(found, amount)
        if output is not None:
            write_json(output, as_json(found, amount))
    except HpoError as error:
        raise click.ClickException(str(error)) from None


def measure_with_one_thread(
    places: Mapping[str, Server], config: StudyConfig, data: PreparedData | None, amount: Amount
) -> dict[str, Figures]:
    """Measure all storages, with one thread of BLAS as in a launch."""
    # The BLAS of a library that is loaded later would not be limited.
    import scipy.linalg  # noqa: F401

    with threadpool_limits(1):
        return {name: measure(server, config, data, amount) for name, server in places.items()}


if __name__ == "__main__":
    main()
