"""The launch command after its options are parsed."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hpo.config.loader import find_study, load_config
from hpo.errors import MissingDataError, TrialFailureError
from hpo.fleet.local_pool import check_memory_limit
from hpo.models.predictor import Predictor
from hpo.runner.limits import Limits
from hpo.storage.database.connection import Database
from hpo.tuning.result import to_json
from hpo.tuning.tuner import Tuner, TuningInterruptedError, load_enqueued_files
from hpo.ui.cli import RESULT_NAME, RESULTS, print_copy
from hpo.ui.dashboard_server import Dashboard, LaunchDashboard, NoDashboard
from hpo.ui.display import display_for, summary
from hpo.ui.exit_codes import EXIT_INTERRUPTED
from hpo.ui.logs import LOGGER, configure_logging, stderr_console
from hpo.utils.files import check_writable, create_folder_of, file_in, write_text
from hpo.utils.system import cores
from hpo.utils.text import count_of


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of the launch command for study files and for scripts."""

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
    allow_host: tuple[str, ...]
    no_dashboard: bool
    quiet: bool
    verbose: bool

    @property
    def limits(self) -> Limits:
        """The limits of each trial."""
        return Limits(self.storage_timeout, self.trial_timeout, self.memory_limit)


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(CommonOptions):
    """Options of the launch command for a study file."""

    study: str
    allow_import: tuple[str, ...]
    refit: bool


class Launch:
    """One run of the launch command.

    Raises:
        HpoError: if the user has to fix an option, the study or the output folder.
    """

    def __init__(self, options: LaunchOptions) -> None:
        self._options = options
        self._console = stderr_console()
        configure_logging(self._console, verbose=options.verbose, quiet=options.quiet)
        config = load_config(find_study(options.study), options.allow_import)
        enqueued, warnings = load_enqueued_files(options.enqueue, config)
        listener_for = partial(display_for, self._console, quiet=options.quiet)
        self._database = Database.parse(options.storage)
        self._note = listener_for(config.study.name).note
        self._dashboard: Dashboard = NoDashboard()
        self._tuner = Tuner(
            config=config,
            database=self._database,
            workers=options.workers or cores(),
            listener_for=listener_for,
            limits=options.limits,
            budget=options.trials,
            timeout_s=options.timeout,
            confirm=options.confirm,
            refit=options.refit,
            enqueued=enqueued,
            warnings=warnings,
            verbose=options.verbose,
            announce=self._announce,
            on_start=self._start,
            on_poll=self._poll,
        )
        self._output = check_writable(_output_file(options.output or RESULTS / config.study.name))

    def run(self) -> int:
        """Tune the study, print its result and return the exit code."""
        # A refusal leaves no study.
        if self._options.memory_limit is not None:
            check_memory_limit(self._options.memory_limit)
        self._dashboard = self._create_dashboard()
        try:
            with self._dashboard:
                result = self._tuner.run()
        except TuningInterruptedError as interrupted:
            self._note(str(interrupted))
            return EXIT_INTERRUPTED
        self._print(result.parameters)
        if self._options.refit and result.predictor is not None:
            self._write_predictor(result.predictor)
        if result.missing_data:
            raise MissingDataError(f"{result.missing_data} to export the other metrics with: python -m hpo.export")
        if result.failures:
            unfinished = result.parameters["trials"]["unfinished"]
            others = f"{count_of(unfinished, 'trial')} unfinished" if unfinished else "the other trials are finished"
            raise TrialFailureError(f"{result.failures}; {others}")
        return 0

    def _write_predictor(self, predictor: Predictor) -> None:
        path = self._output.with_suffix(".npz")
        predictor.save(path)
        if not self._options.quiet:
            self._note(f"the predictor of all rows but the test rows is written to {path}")

    def _announce(self, message: str) -> None:
        # Without a terminal, stderr holds nothing but the error if the preparation fails.
        if self._console.is_terminal and not self._options.quiet:
            LOGGER.info(message)

    def _create_dashboard(self) -> Dashboard:
        options = self._options
        if options.no_dashboard:
            return NoDashboard()
        return LaunchDashboard(self._database, options.host, options.port, self._note, options.allow_host)

    def _start(self, banner: str) -> None:
        # A launch that was refused has left no folder.
        create_folder_of(self._output)
        if not self._options.quiet:
            self._note(banner)
        self._dashboard.start()

    def _poll(self) -> None:
        self._dashboard.poll()

    def _print(self, parameters: dict[str, Any]) -> None:
        text = to_json(parameters)
        create_folder_of(self._output)
        write_text(self._output, text)
        if not self._options.quiet:
            self._console.print(summary(parameters))
            self._note(f"written to {self._output}")
        print_copy(text, self._output)


def _output_file(output: Path) -> Path:
    """Return the file of the result: the given file, or best.json in the given folder.

    A path that does not exist is a folder unless it ends with .json.
    """
    is_file = output.suffix == ".json" or output.exists()
    return file_in(output, RESULT_NAME) if is_file else output / RESULT_NAME


def run(options: LaunchOptions) -> int:
    """Run a study to the end of its budget and return the exit code."""
    return Launch(options).run()
