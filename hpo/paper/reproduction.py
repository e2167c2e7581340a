"""The reproduce command after its options are parsed."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hpo.paper.experiments import RUN
from hpo.paper.names import NEVER_CUT
from hpo.paper.runner import ExperimentRunner
from hpo.paper.table import Row, render
from hpo.runner.limits import Limits
from hpo.storage.database.connection import Database
from hpo.tuning.tuner import TuningInterruptedError
from hpo.ui.cli import print_copy
from hpo.ui.display import display_for
from hpo.ui.exit_codes import EXIT_INTERRUPTED
from hpo.ui.logs import LOGGER, configure_logging, stderr_console
from hpo.utils.files import check_writable, create_folder_of, file_in, write_text
from hpo.utils.system import cores


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of the reproduce command."""

    only: Sequence[str]
    quick: bool
    workers: int | None
    storage: str
    storage_timeout: float
    output: Path
    quiet: bool
    verbose: bool


def run(options: ReproduceOptions) -> int:
    """Run the experiments, print their table and return the exit code.

    Raises:
        HpoError: if the user has to fix an option, the data, the database or a trial.
    """
    started_at = time.monotonic()
    console = stderr_console()
    configure_logging(console, verbose=options.verbose, quiet=options.quiet)
    output = check_writable(file_in(options.output, "reproduction.md"))
    database = Database.parse(options.storage)
    database.check_reachable()
    workers = options.workers or cores()
    log = (lambda _: None) if options.quiet else LOGGER.info
    runner = ExperimentRunner(
        database=database,
        workers=workers,
        limits=Limits(options.storage_timeout),
        listener_for=partial(display_for, console, quiet=options.quiet),
        quick=options.quick,
        verbose=options.verbose,
        log=log,
    )
    try:
        rows = _rows(options, runner)
    except TuningInterruptedError as interrupted:
        LOGGER.info("%s", interrupted)
        return EXIT_INTERRUPTED
    text = render(rows, quick=options.quick, workers=workers, seconds=time.monotonic() - started_at)
    create_folder_of(output)
    write_text(output, text)
    print_copy(text, output)
    log(f"written to {output}")
    return 0


def _rows(options: ReproduceOptions, runner: ExperimentRunner) -> list[Row]:
    rows: list[Row] = []
    for name, experiment in RUN.items():
        if not options.only or name in options.only:
            cut = options.quick and name not in NEVER_CUT
            rows += _without_comparison(experiment(runner)) if cut else experiment(runner)
    return rows


def _without_comparison(rows: Iterable[Row]) -> Iterable[Row]:
    return (replace(row, remark="cut down: it shows that all works, and is not to be compared") for row in rows)
