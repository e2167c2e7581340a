"""The launch command for a script or a function."""

import contextlib
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.config.study import StudyConfig
from hpo.errors import EnqueueError, HpoError, OutputError, ScriptError, ScriptFailedError, TrialFailureError
from hpo.fleet.gpus import assign_gpus
from hpo.fleet.status import NO_NAMES
from hpo.scripts.interception import Interception
from hpo.scripts.launching.confirmation import find_confirmation, names_of_repeats
from hpo.scripts.launching.fleet import FleetOptions, LaunchOutput
from hpo.scripts.launching.result import study_result, summary_lines
from hpo.scripts.launching.session import LaunchSession, print_traceback
from hpo.scripts.script import Script
from hpo.scripts.session import ScriptEnded, results_folder
from hpo.search.enqueue import load_enqueued
from hpo.search.space import build_space
from hpo.storage.database.connection import Database
from hpo.storage.study import Study
from hpo.storage.trial_store import is_crash
from hpo.tuning.launching import CommonOptions
from hpo.tuning.outcomes import describe_failures
from hpo.tuning.result import to_json
from hpo.tuning.tuner import TuningInterruptedError
from hpo.ui.cli import RESULT_NAME, RESULTS, print_copy, print_error
from hpo.ui.dashboard_server import LaunchDashboard
from hpo.ui.display import display_for
from hpo.ui.exit_codes import EXIT_INTERRUPTED
from hpo.ui.logs import configure_logging, stderr_console
from hpo.utils.files import check_writable, create_folder_of, write_text
from hpo.utils.streams import let_reader_leave
from hpo.utils.system import cores


@dataclass(frozen=True, kw_only=True)
class ScriptOptions(CommonOptions):
    """Options of the launch command for a script.

    Attributes:
        is_storage_given: Whether ``storage`` replaces the databases of the script.
    """

    target: str
    arguments: tuple[str, ...]
    is_storage_given: bool
    direction: tuple[str, ...]
    pruner: str | None
    gpus: str
    allow_changes: bool


class ScriptLaunch:
    """One run of the launch command for a script or a function.

    Raises:
        HpoError: if the user has to correct an option, the script or the output folder.
    """

    def __init__(self, options: ScriptOptions, study_file: StudyConfig | None = None) -> None:
        self._options = options
        self._results = options.output or RESULTS
        self._console = stderr_console()
        configure_logging(self._console, verbose=options.verbose, quiet=options.quiet)
        self._script = Script(options.target, options.arguments, study_file)
        # A script that cannot be read is an error before anything else.
        self._script.read()
        enqueued = self._load_enqueued()
        self._database = Database.parse(options.storage)
        self._listener_for = partial(display_for, self._console, quiet=options.quiet)
        self._note = self._listener_for(self._script.name).note
        self._stack = ExitStack()
        self._dashboards: dict[str, LaunchDashboard] = {}
        fleet = FleetOptions(
            workers=options.workers or cores(),
            trials=options.trials,
            timeout_s=options.timeout,
            limits=options.limits,
            pruner=options.pruner,
            gpus=assign_gpus(options.gpus),
            allow_changes=options.allow_changes,
            enqueued=enqueued,
            results=self._results,
            verbose=options.verbose,
        )
        check_writable(results_folder(self._results, self._script.name) / RESULT_NAME)
        output = LaunchOutput(self._listener_for, self._start, self._poll, self._show)
        self._session = LaunchSession(self._script, self._database, options.is_storage_given, fleet, output)

    def _load_enqueued(self) -> tuple[dict[str, Any], ...]:
        """Load the parameters to try first.

        Raises:
            EnqueueError: if the space is not known, or a file cannot be read.
        """
        paths, config = self._options.enqueue, self._script.study_file
        if not paths:
            return ()
        if config is None or not config.space:
            raise EnqueueError("--enqueue: needs a study file with a [space]; a script calls study.enqueue_trial")
        space = build_space(config)
        return tuple(load_enqueued(path, config, space, dict)[0] for path in paths)

    def run(self) -> int:
        """Run the script, write the results of its studies and return the exit code."""
        with self._stack, contextlib.closing(self._session):
            try:
                code = self._run_script()
                self._session.confirm(self._options.confirm)
            except (ScriptFailedError, OutputError):
                # The trials before an exception of the script, or before stdout failed, have a result.
                with contextlib.suppress(TrialFailureError):
                    self._write_results()
                raise
            except TuningInterruptedError as interrupted:
                self._note(str(interrupted))
                return EXIT_INTERRUPTED
            if not self._session.optimized:
                if code:
                    return code
                raise ScriptError(
                    f"{self._script.path}: the script has not called optimize of a study that it created or loaded by "
                    "optuna; call study.optimize, or give one function as file.py:function"
                )
            failures = self._write_results()
        if failures and not code:
            raise TrialFailureError(failures)
        return code

    def _run_script(self) -> int:
        """Run the script or the function; return the exit code that the script asks for."""
        try:
            if self._script.is_function:
                self._run_function()
            else:
                # What the script prints is no reason to lose its result.
                let_reader_leave()
                with Interception(self._session):
                    self._script.run()
        except ScriptEnded as ended:
            if ended.cause is not None:
                raise ended.cause from None
        except SystemExit as exited:
            return _exit_code(exited)
        except HpoError:
            raise
        except Exception as error:
            print_traceback(_own_traceback(error, self._script.path))
            raise ScriptFailedError(
                f"{self._script.path}: {type(error).__name__}: {error}; correct the script, then the same command with "
                "--allow-changes goes on"
            ) from error
        return 0

    def _run_function(self) -> None:
        function = self._script.load_function()
        config = self._script.study_file
        own = "minimize" if config is None or config.objective is None else config.objective.direction
        study = self._session.create_study(directions=self._options.direction or (own,))
        self._session.optimize(study, function, n_trials=None if config is None else config.study.trials)

    def _write_results(self) -> str:
        """Write the result of each study; return a description of the trials that crashed."""
        crashes = []
        for study in self._session.studies:
            self._write_result(study)
            crashes += self._describe_crashes(study.trials)
            if self._options.confirm and (second := find_confirmation(study)) is not None:
                crashes += self._describe_crashes(second.trials, "confirmation trial", names_of_repeats(study, second))
        return "; ".join(crashes)

    def _write_result(self, study: Study) -> None:
        result = study_result(study)
        path = results_folder(self._results, study.name) / RESULT_NAME
        create_folder_of(path)
        write_text(path, text := to_json(result))
        if not self._options.quiet:
            for line in summary_lines(result):
                self._console.print(line, markup=False, soft_wrap=True)
            self._note(f"written to {path}")
        if self._script.is_function:
            # A script has stdout for itself.
            print_copy(text, path)

    def _describe_crashes(
        self, trials: Sequence[FrozenTrial], noun: str = "trial", names: Mapping[int, str] = NO_NAMES
    ) -> list[str]:
        """Return a description of the trials that an exception failed; note failures that the script expects."""
        crashed = [trial for trial in trials if is_crash(trial)]
        expected = [trial for trial in trials if not is_crash(trial)]
        if note := describe_failures(expected, noun, names):
            self._note(note)
        return list(filter(None, [describe_failures(crashed, noun, names)]))

    def _start(self, banner: str, database: Database) -> None:
        if not self._options.quiet:
            self._note(banner)
        options = self._options
        if options.no_dashboard or self._dashboards:
            return
        dashboard = LaunchDashboard(database, options.host, options.port, self._note, options.allow_host)
        self._dashboards[database.shown] = self._stack.enter_context(dashboard)
        dashboard.start()

    def _poll(self) -> None:
        for dashboard in self._dashboards.values():
            dashboard.poll()

    def _show(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _exit_code(exited: SystemExit) -> int:
    """Return the exit code of a script, and print its message on stderr, as Python does."""
    if exited.code is None:
        return 0
    if isinstance(exited.code, int):
        return exited.code
    print_error(str(exited.code))
    return 1


def _own_traceback(error: Exception, path: Path) -> str:
    """Return the traceback of a script without the frames of hpo above it."""
    frames = error.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename).resolve() != path.resolve():
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))


def run(options: ScriptOptions, study_file: StudyConfig | None = None) -> int:
    """Run a script or a function and return the exit code.

    Args:
        options: The options of the command.
        study_file: The study file that names the function, None without one.
    """
    return ScriptLaunch(options, study_file).run()
