"""Cost of a trial of a user's objective that takes no time: three parameters and five reports.

A worker of hpo in this process is compared with Optuna's own loop, ``Study.optimize`` on an ``RDBStorage``, with the
same sampler, in copies of the same database with 100 finished trials. Optuna is measured with hpo's settings of the
database (SQLite: write-ahead log, ``synchronous=NORMAL``) and with its own (SQLite: rollback journal,
``synchronous=FULL``). The CPU time is that of all threads of this process, user and system, without PostgreSQL's
server.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import click
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.engine import make_url

from benchmarks.filled import Server
from benchmarks.measuring import Spread, print_table, ratio, spread
from hpo.config.study import ObjectiveConfig, StudyConfig, StudyTable
from hpo.runner.function_objective import FunctionCall, FunctionObjective
from hpo.runner.limits import Limits
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import WorkerConfig, WorkerLoop
from hpo.search.pruning.pruners import NoPruner
from hpo.search.sampling.reseeding import reseeded
from hpo.storage.database.connection import Database, close
from hpo.storage.study import load_study, open_or_create_study
from hpo.storage.tables.leases import new_owner

NAME = "script"
FINISHED = 100
WARM_TRIALS = 5
STORAGE_TIMEOUT_S = 60.0
# A trial of hpo costs at most this share of a trial of Optuna with the same settings.
TARGET = 1 / 3

CONFIG = StudyConfig(study=StudyTable(name=NAME, trials=FINISHED), objective=ObjectiveConfig(call="script.py"))
SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "random": lambda: RandomSampler(seed=1),
    "TPE": lambda: TPESampler(seed=1),
}


def report_only(trial: optuna.Trial) -> float:
    """Suggest three parameters and report five values."""
    value = _suggest(trial)
    for step in range(1, 6):
        trial.report(value / step, step)
    return value


def report_and_ask(trial: optuna.Trial) -> float:
    """Suggest three parameters, report five values, and ask the median pruner after each."""
    value = _suggest(trial)
    for step in range(1, 6):
        trial.report(value / step, step)
        # Each trial has five reports, so that the work is the same.
        trial.should_prune()
    return value


def _suggest(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -5, 5)
    rate = trial.suggest_float("rate", 1e-4, 1, log=True)
    return x**2 + rate + trial.suggest_int("layers", 1, 9)


OBJECTIVES = {"reports": report_only, "reports and should_prune": report_and_ask}
# The sampler and the objective.
CASES = tuple(product(SAMPLERS, OBJECTIVES))


@dataclass(frozen=True)
class Costs:
    """Milliseconds of a trial by round: elapsed, and CPU."""

    elapsed: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, run: "Run", count: int) -> None:
        """Measure the run of some trials."""
        elapsed, cpu = time.perf_counter(), time.process_time()
        run(count)
        self.cpu.append(1e3 * (time.process_time() - cpu) / count)
        self.elapsed.append(1e3 * (time.perf_counter() - elapsed) / count)


# The costs of each runner.
CaseCosts = dict[str, Costs]
# The costs of all cases in a storage.
ScriptCosts = dict[tuple[str, str], CaseCosts]


def measure_scripts(server: Server, rounds: int, count: int) -> ScriptCosts:
    """Measure all cases in one storage, in rounds of some trials."""
    base = _filled_database(server)
    found: ScriptCosts = {case: {name: Costs() for name in RUNNERS} for case in CASES}
    for number in range(rounds):
        for case in CASES:
            for name in list(RUNNERS)[:: -1 if number % 2 else 1]:
                sampler, objective = SAMPLERS[case[0]](), OBJECTIVES[case[1]]
                with RUNNERS[name](server.new_database(like=base), sampler, objective) as run:
                    run(WARM_TRIALS)
                    found[case][name].add(run, count)
    return found


def _filled_database(server: Server) -> str:
    url = server.new_database()
    with open_or_create_study(Database.parse(url), CONFIG, "", None, [StudyDirection.MINIMIZE]):
        pass
    with _worker(url, RandomSampler(seed=1), report_only) as run:
        run(FINISHED)
    return url


# Runs some more trials.
Run = Callable[[int], object]
Function = Callable[[optuna.Trial], float]
Runner = Callable[[str, BaseSampler, Function], AbstractContextManager[Run]]


@contextmanager
def _worker(url: str, sampler: BaseSampler, function: Function) -> Iterator[Run]:
    database = Database.parse(url)
    with load_study(database, CONFIG) as study:
        storage = study.leased_storage()
        own = optuna.load_study(study_name=NAME, storage=storage, sampler=sampler)
        call = FunctionCall(function)
        objective = FunctionObjective(own, storage, call, reseeded(sampler, 0, workers=1))

        def run(count: int) -> None:
            budget = len(study.trials) + count
            limits = Limits(STORAGE_TIMEOUT_S)
            config = WorkerConfig(database, CONFIG, objective, budget, limits, verbose=False, pruner=NoPruner())
            WorkerLoop(study, config, new_owner(), threading.Event(), SharedProgress()).run()

        yield run


@contextmanager
def _optuna(rdb: RDBStorage, sampler: BaseSampler, function: Function) -> Iterator[Run]:
    try:
        study = optuna.load_study(study_name=NAME, storage=rdb, sampler=sampler)
        yield lambda count: study.optimize(function, n_trials=count)
    finally:
        close(rdb)


def _open_with_defaults(url: str) -> RDBStorage:
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return RDBStorage(parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
    # The mode is stored in the file.
    with closing(sqlite3.connect(str(parsed.database))) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return RDBStorage(url)


KINDS = ("elapsed", "cpu")
HPO, OPTUNA, DEFAULTS = "hpo", "Optuna", "Optuna's settings"
RUNNERS: dict[str, Runner] = {
    HPO: _worker,
    OPTUNA: lambda url, *others: _optuna(Database.parse(url).open(), *others),
    DEFAULTS: lambda url, *others: _optuna(_open_with_defaults(url), *others),
}


def scripts_as_json(cases: ScriptCosts) -> list[dict[str, Any]]:
    """Return the costs of a storage by case, as medians of the rounds, and their ratios."""
    return [
        {
            "sampler": sampler,
            "objective": objective,
            "ms": {name: {kind: asdict(spread(getattr(its, kind))) for kind in KINDS} for name, its in costs.items()},
            "ratio": {kind: asdict(_ratio(costs, kind, OPTUNA)) for kind in KINDS},
        }
        for (sampler, objective), costs in cases.items()
    ]


def _ratio(costs: CaseCosts, kind: str, over: str) -> Spread:
    return ratio(getattr(costs[HPO], kind), getattr(costs[over], kind))


def show_scripts(found: Mapping[str, ScriptCosts], rounds: int, count: int) -> None:
    """Print the costs and their ratios by storage."""
    rows = [["storage", "sampler", "objective", "", "hpo", "Optuna", "hpo / Optuna", "hpo / Optuna's settings"]]
    for storage, cases in found.items():
        for (sampler, objective), costs in cases.items():
            for kind in KINDS:
                times = (spread(getattr(costs[name], kind)) for name in (HPO, OPTUNA))
                ratios = (_ratio(costs, kind, over) for over in (OPTUNA, DEFAULTS))
                rows.append([storage, sampler, objective, kind, *map(str, (*times, *ratios))])
    click.echo(f"\nms of a trial of a user's objective: medians of {rounds} rounds of {count} trials")
    print_table(rows)
