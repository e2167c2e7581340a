"""Everything that a reproduction of the report does: from its experiments to the table."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from hpo.paper.experiments import EXPERIMENTS, WHOLE, Row
from hpo.paper.runner import Lab
from hpo.runner.limits import Limits
from hpo.storage import database as storage
from hpo.tuning.stages import Crew, LaunchStoppedError
from hpo.ui import cli
from hpo.ui.display import clock, display_for
from hpo.utils.files import writable_folder, write_text
from hpo.utils.system import cores, cpu, versions

PACKAGES = ("hpo", "numpy", "scikit-learn", "optuna", "torch")

_HEADING = Row("experiment", "the report", "ours", "how it was run", "difference, and the likely reason")


@dataclass(frozen=True)
class Options:
    """The command line."""

    only: Sequence[str]
    quick: bool
    workers: int | None
    storage: str
    storage_timeout: float
    output: Path
    quiet: bool
    verbose: bool


def run(options: Options) -> int:
    """Run the experiments, write the table and print it; returns the exit code.

    Raises:
        HpoError: something that the user can mend.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    writable_folder(options.output.parent)
    storage.check_reachable(storage.parse_url(options.storage))
    crew = Crew(
        options.workers or cores(), None, lambda title: display_for(console, title, options.quiet), lambda: None
    )
    say = (lambda _: None) if options.quiet else cli.say
    lab = Lab(crew, options.storage, Limits(options.storage_timeout), options.quick, options.verbose, say)
    rows: list[Row] = []
    try:
        for name, experiment in EXPERIMENTS.items():
            if not options.only or name in options.only:
                rows += _not_compared(experiment(lab)) if options.quick and name not in WHOLE else experiment(lab)
    except LaunchStoppedError as stopped:
        cli.say(str(stopped))
        return cli.EXIT_INTERRUPTED
    circumstances = _circumstances(options.quick, crew.workers, time.monotonic() - started)
    text = "\n".join(["# The report, reproduced", "", *_table(rows), "", *circumstances, ""])
    write_text(options.output, text)
    click.echo(text, nl=False)
    say(f"written to {options.output}")
    return 0


def _not_compared(rows: Iterable[Row]) -> Iterable[Row]:
    return (replace(row, remark="cut down: it shows that all works, and is not to be compared") for row in rows)


def _table(rows: Iterable[Row]) -> Iterable[str]:
    """In Markdown."""
    lines = [_HEADING, Row(*["---"] * len(astuple(_HEADING))), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in astuple(row))} |" for row in lines]


def _circumstances(quick: bool, workers: int, seconds: float) -> Iterable[str]:
    installed = ", ".join(f"{name} {number}" for name, number in versions(PACKAGES).items() if number is not None)
    command = "python -m hpo.reproduce" + " --quick" * quick
    yield f"Made with `{command}`. Every figure is of one run. Validation and test have 1,000 images each:"
    yield "one standard error of 0.55 is 0.016."
    yield ""
    yield f"On {datetime.now(UTC):%Y-%m-%d}: {cpu()}, {cores()} cores, {workers} workers; {installed}."
    yield f"This run took {clock(seconds)}; what was trained before was not trained again, its times are of then."
