"""Everything that a launch does: from a study file to the best parameters."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy.engine import URL

from hpo.config.study import StudyConfig, find_study, load_config
from hpo.data.cache import load_prepared, prepare
from hpo.errors import TrialFailureError
from hpo.models.optional_dependencies import check_installed
from hpo.runner.limits import MEMORY, TIMEOUT, Limits
from hpo.runner.worker_loop import WorkerConfig
from hpo.search.enqueue import Params, load_enqueued, missing, same
from hpo.search.samplers import check_feasible
from hpo.storage import database as storage
from hpo.storage.study import best_of
from hpo.storage.trial_store import REASON
from hpo.tuning.result import export_best, to_json
from hpo.tuning.stages import (
    Confirmation,
    Crew,
    LaunchStoppedError,
    has_ended,
    introduction,
    joined,
    retry_while_unavailable,
)
from hpo.ui import cli
from hpo.ui import dashboard_server as dashboard
from hpo.ui.display import Display, display_for, summary
from hpo.utils.files import writable_folder, write_text

RESULTS = Path("results")


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
    confirm: int
    enqueue: tuple[Path, ...]
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
    spec = load_config(path)
    budget = options.trials or spec.study.trials
    check_installed(spec)
    check_feasible(spec, budget)
    enqueued, ignored = _load_enqueued(options.enqueue, spec)
    output = writable_folder(options.output or RESULTS / spec.study.name)
    url = storage.parse_url(options.storage)
    storage.check_reachable(url)
    listener = None if options.no_dashboard else dashboard.listen(options.host, options.port)
    # Not into a pipe: an error of what comes next is to stand there alone.
    folder = prepare(spec, path, cli.say if console.is_terminal and not options.quiet else lambda _: None)
    data = load_prepared(folder)
    limits = Limits(options.storage_timeout, options.trial_timeout, options.memory_limit)
    config = WorkerConfig(options.storage, spec, folder, budget, limits, options.verbose, enqueued)
    display = display_for(console, spec.study.name, options.quiet)
    with storage.translate_errors(url), joined(url, spec, data.fingerprint) as study:
        for line in [*ignored, *_without_room(enqueued, study.trials, budget)]:
            display.note(line)
        confirmation = Confirmation(study, config, options.confirm, data.fingerprint)
        confirmation_due = confirmation.due  # or an error, before anything is trained
        if not has_ended(study.trials, budget) or confirmation_due:
            if not options.quiet:
                display.note(introduction(spec, budget, url, data))
            try:
                with _dashboard(listener, options, url, display) as tend_dashboard:
                    crew = _crew(options, console, tend_dashboard)
                    if not has_ended(study.trials, budget):
                        crew.train(study, config, spec.study.name)
                    confirmation.train(crew)
            except LaunchStoppedError as stopped:
                display.note(str(stopped))
                return cli.EXIT_INTERRUPTED
        trials, again = retry_while_unavailable(lambda: (study.trials, confirmation.trials), limits.storage_timeout)()
        failures = _failures(trials)
        if failures and best_of(trials) is None:
            raise TrialFailureError(f"{failures}; no trial is complete")
        failures = "; ".join(filter(None, [failures, _failures(again, "confirmation trial")]))
        parameters, _ = retry_while_unavailable(export_best, limits.storage_timeout)(study, spec, folder)
    _hand_over(parameters, output, console, options.quiet)
    if failures:
        raise TrialFailureError(f"{failures}; the other trials are finished")
    return 0


def _load_enqueued(files: Sequence[Path], spec: StudyConfig) -> tuple[tuple[Params, ...], list[str]]:
    """What is to be tried first, each once, and what to say about it."""
    params: dict[Any, Params] = {}
    ignored: list[str] = []
    for path in files:
        loaded, said = load_enqueued(path, spec)
        params.setdefault(same(loaded), loaded)
        ignored += said
    return tuple(params.values()), ignored


def _without_room(enqueued: Sequence[Params], trials: Sequence[FrozenTrial], budget: int) -> list[str]:
    beyond = len(missing(enqueued, trials)) - max(0, budget - len(trials))
    return [f"no trial is left for {beyond} of the parameters to try first; raise --trials"] if beyond > 0 else []


def _crew(options: Options, console: Console, tend_others: Callable[[], None]) -> Crew:
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    workers = options.workers or os.cpu_count() or 1
    return Crew(workers, deadline, lambda title: display_for(console, title, options.quiet), tend_others)


def _failures(trials: Sequence[FrozenTrial], what: str = "trial") -> str:
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    return "; ".join(f"{what} {trial.number} failed: {_explain(trial.user_attrs[REASON])}" for trial in failed)


def _explain(reason: str) -> str:
    flags = {TIMEOUT: "--trial-timeout", MEMORY: "--memory-limit"}
    return f"{reason}, over its {flags[reason]}" if reason in flags else reason


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
    companion = dashboard.DashboardProcess(options.storage, listener)

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
    write_text(output / "best.json", text)
    if not quiet:
        console.print(summary(parameters))
        console.print(f"written to {output / 'best.json'}", markup=False, highlight=False, soft_wrap=True)
    click.echo(text, nl=False)
