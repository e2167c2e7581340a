"""Everything that a launch does: from a study file to the best parameters."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy.engine import URL

from hpo import cli, dashboard, storage
from hpo.data import Prepared, load_prepared, prepare
from hpo.display import Display, display_for, summary
from hpo.errors import TrialFailureError
from hpo.export import export_best, to_json, write_json
from hpo.files import writable_folder
from hpo.fleet import Fleet
from hpo.limits import MEMORY, TIMEOUT, Limits
from hpo.sampling import check_feasible
from hpo.spec import find_study, load_spec
from hpo.study import Study, best_of, join_study
from hpo.supervisor import Supervisor
from hpo.trials import REASON
from hpo.worker import WorkerConfig

RESULTS = Path("results")
JOIN_SECONDS = 4.0  # that a launch goes on trying to join a study in a database that it has just reached
ANSWER_SECONDS = 1.0  # that an interrupted launch waits for what it says last

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The command line."""

    study: str
    workers: int | None
    trials: int | None
    timeout: float | None
    storage: str
    storage_timeout: float
    trial_timeout: float | None
    memory_limit: int | None
    output: Path | None
    host: str
    port: int
    no_dashboard: bool
    quiet: bool
    verbose: bool


def run(options: Options) -> int:
    """Everything that a launch does; returns the exit code.

    Raises:
        HpoError: something that the user can mend.
    """
    console = Console(stderr=True)
    path = find_study(options.study)
    spec = load_spec(path)
    budget = options.trials or spec.study.trials
    check_feasible(spec, budget)
    output = writable_folder(options.output or RESULTS / spec.study.name)
    url = storage.parse_url(options.storage)
    storage.check_reachable(url)
    listener = None if options.no_dashboard else dashboard.listen(options.host, options.port)
    # Not into a pipe: an error of what comes next is to stand there alone.
    folder = prepare(spec, path, cli.say if console.is_terminal and not options.quiet else lambda _: None)
    data = load_prepared(folder)
    limits = Limits(options.storage_timeout, options.trial_timeout, options.memory_limit)
    config = WorkerConfig(options.storage, spec, folder, budget, limits, options.verbose)
    display = display_for(console, spec.study.name, options.quiet)
    with storage.explained(url), _patiently(join_study, JOIN_SECONDS)(url, spec, data.fingerprint) as study:
        if not _at_end(study.trials, budget):
            if not options.quiet:
                display.note(_introduce(spec.study.name, budget, url, data))
            fleet = Fleet(config, options.workers or os.cpu_count() or 1, study.leases)
            with _dashboard(listener, options, url, display) as tend_dashboard:
                supervisor = Supervisor(study, fleet, config, options.timeout, display, tend_dashboard)
                to_the_end = supervisor.run()
            if not to_the_end:
                display.note(_where_it_stands(study, budget))
                return cli.EXIT_INTERRUPTED
        trials = _patiently(lambda: study.trials, limits.storage_timeout)()
        failures = _failures(trials)
        if failures and best_of(trials) is None:
            raise TrialFailureError(f"{failures}; no trial is complete")
        parameters, _ = _patiently(export_best, limits.storage_timeout)(study, spec, folder)
    _hand_over(parameters, output, console, options.quiet)
    if failures:
        raise TrialFailureError(f"{failures}; the other trials are finished")
    return 0


def _patiently(function: Callable[P, T], timeout: float) -> Callable[P, T]:
    return storage.patiently(function, timeout, stop=threading.Event())


def _where_it_stands(study: Study, budget: int) -> str:
    try:
        finished = storage.Question(lambda: _count_finished(study.trials)).answer(ANSWER_SECONDS)
    except storage.DATABASE_ERRORS:
        return "the same command goes on"
    return f"{finished} of {budget} trials are finished; the same command goes on"


def _failures(trials: list[FrozenTrial]) -> str:
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    return "; ".join(f"trial {trial.number} failed: {_explain(trial.user_attrs[REASON])}" for trial in failed)


def _explain(reason: str) -> str:
    flags = {TIMEOUT: "--trial-timeout", MEMORY: "--memory-limit"}
    return f"{reason}, over its {flags[reason]}" if reason in flags else reason


def _introduce(name: str, budget: int, url: URL, data: Prepared) -> str:
    sizes = f"{data.sizes.train}/{data.sizes.validation}/{data.sizes.test} rows"
    pca = f", PCA at {data.pca:.0%} of the variance keeps {data.components}" if data.pca else ""
    return (
        f"study {name}: {budget} trials in {storage.show_url(url)}\n"
        f"data {data.name}: {sizes}, {data.features} features{pca}"
    )


@contextmanager
def _dashboard(
    listener: socket.socket | None, options: Options, url: URL, display: Display
) -> Iterator[Callable[[], None]]:
    """Within: the dashboard is served; what is yielded sees to it that it stays so."""
    if listener is None:
        yield lambda: None
        return
    if dashboard.port_of(listener) != options.port:
        display.note(f"port {options.port} is taken")
    display.note(f"dashboard: {dashboard.address(listener)}")
    companion = dashboard.Companion(options.storage, listener)

    def tend() -> None:
        if companion.tend():
            display.note("the dashboard died; another takes its place")

    with listener:
        try:
            yield tend
        finally:
            companion.stop()
            display.note(f"look again with: python -m hpo.dashboard --storage {storage.show_url(url)}")


def _hand_over(parameters: dict[str, Any], output: Path, console: Console, quiet: bool) -> None:
    text = to_json(parameters)
    write_json(output / "best.json", text)
    if not quiet:
        console.print(summary(parameters))
        console.print(f"written to {output / 'best.json'}", markup=False, highlight=False, soft_wrap=True)
    click.echo(text, nl=False)


def _at_end(trials: list[FrozenTrial], budget: int) -> bool:
    return len(trials) >= budget and _count_finished(trials) == len(trials)


def _count_finished(trials: list[FrozenTrial]) -> int:
    return sum(trial.state.is_finished() for trial in trials)
