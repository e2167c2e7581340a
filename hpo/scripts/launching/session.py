"""Session of the launch: it joins the studies of a script, and runs its calls of ``optimize`` on workers."""

import copy
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import chdir
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo.errors import HpoError, ScriptError, TrialFailureError
from hpo.fleet.status import UNLIMITED
from hpo.fleet.supervisor import SupervisorTimings
from hpo.runner.function_objective import FunctionCall, FunctionObjective
from hpo.runner.worker_loop import WorkerConfig
from hpo.scripts.jobs import ScriptJob
from hpo.scripts.launching.confirmation import candidates, enqueue_repeats, has_read_seed, open_confirmation
from hpo.scripts.launching.fleet import FleetOptions, LaunchOutput, ScriptFleet, Work
from hpo.scripts.records import OptimizeRecord, count_added, read_record, write_added, write_record, write_seen
from hpo.scripts.script import Script
from hpo.scripts.session import (
    OpenStudy,
    OptimizeCall,
    ScriptEnded,
    ScriptSession,
    results_folder,
)
from hpo.search.sampling.reseeding import GIVEN_PARAMS
from hpo.search.sampling.script_sampler import describe, script_sampler
from hpo.storage.database.connection import Database, close
from hpo.storage.database.retry import retry_while_unavailable
from hpo.storage.study import Study, count_finished, is_finished, open_or_create_study
from hpo.storage.trial_store import TRACEBACK, has_only_failures, is_crash
from hpo.tuning.confirmation import confirmation_config, repeat_names, sign_of
from hpo.tuning.tuner import TuningInterruptedError
from hpo.utils.text import count_of

P = ParamSpec("P")
T = TypeVar("T")

# Failed trials before the first success that end a launch.
MAX_FAILURES = 3
UNCONFIRMED = (
    "the result is not confirmed, because the objective does not read the seed of hpo, "
    'trial.user_attrs["seed"]; --confirm 0 hides this line'
)
UNFINISHED = "the confirmation is not finished; the same command goes on"
# The time to retry the opening of a study in a database that was reachable a moment ago.
OPEN_TIMEOUT_S = 4.0


def _retry(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that retries for a few seconds if the database is unavailable."""
    return retry_while_unavailable(function, OPEN_TIMEOUT_S)


class LaunchSession(ScriptSession):
    """Session of a launch.

    Args:
        script: The script.
        database: The database of studies that have no other.
        is_database_given: Whether all studies have this database, whatever the script says.
        fleet: The options of the workers.
        output: The receivers of the messages and of the progress.
        timings: The timings of the supervision.

    Attributes:
        optimized: The studies of the calls of ``optimize``, in their order, with the script's objects.
    """

    def __init__(
        self,
        script: Script,
        database: Database,
        is_database_given: bool,
        fleet: FleetOptions,
        output: LaunchOutput,
        timings: SupervisorTimings | None = None,
    ) -> None:
        note = output.listener_for(script.name).note
        super().__init__(script, database, is_database_given, note)
        self.optimized: dict[str, optuna.Study] = {}
        self._fleet = fleet
        self._output = output
        self._workers = ScriptFleet(fleet, output, timings or SupervisorTimings())

    @property
    def studies(self) -> list[Study]:
        """The studies of the calls of ``optimize`` that the script has not deleted."""
        return [self.opened[name].study for name in self.optimized if name in self.opened]

    def _handle(self, call: OptimizeCall) -> None:
        """Run the trials of a call on workers, and return when they have ended."""
        self._record_views(call.index)
        self._show_all()
        try:
            with chdir(self._folder), call.opened.study.database.translate_errors():
                self._optimize(call)
        except (HpoError, TuningInterruptedError) as error:
            raise ScriptEnded(error) from error

    def _record_views(self, call: int) -> None:
        for opened in self.opened.values():
            if call not in opened.seen:
                opened.seen[call] = len(_retry(opened.study.store.refresh)().trials)
                _retry(write_seen)(opened.study.optuna_study, opened.seen)

    def delete_study(self, **arguments: Any) -> None:
        """Delete a study of an earlier launch, as the script says."""
        name = arguments.get("study_name") or self._script.name
        opened = self.opened.pop(name, None)
        database = self._database_for(arguments.get("storage"))
        with chdir(self._folder), database.translate_errors(), database.creation_lock(), database.opened() as rdb:
            optuna.delete_study(study_name=name, storage=rdb)
            close(rdb)
        if opened is not None:
            opened.study.close()

    def enqueue_trial(self, study: optuna.Study, *arguments: Any, **keywords: Any) -> None:
        """Enqueue a trial, unless an earlier launch has done it."""
        self._once(study, lambda: study.enqueue_trial(*arguments, **keywords))

    def add_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Add a trial, unless an earlier launch has done it."""
        added = copy.copy(trial)
        added.system_attrs = {**trial.system_attrs, GIVEN_PARAMS: list(trial.params)}
        self._once(study, lambda: study.add_trial(added))

    def _once(self, study: optuna.Study, add: Callable[[], None]) -> None:
        opened = self._opened_of(study)
        if opened is None:
            add()
            return
        number, opened.n_added = opened.n_added, opened.n_added + 1
        if number >= count_added(study):
            add()
            write_added(study, number + 1)

    def _open(self, database: Database, name: str, directions: Sequence[StudyDirection]) -> None:
        config = self._config(name)
        try:
            with chdir(self._folder):
                database.check_reachable()
                study = _retry(open_or_create_study)(
                    database,
                    config,
                    self._script.fingerprint,
                    None,
                    directions,
                    allow_changes=self._fleet.allow_changes,
                )
        except HpoError as error:
            raise ScriptEnded(error) from error
        _retry(study.store.close_ended)()
        self._add(name, study, config)

    def _load(self, database: Database, name: str) -> None:
        try:
            with chdir(self._folder):
                database.check_reachable()
                with database.translate_errors(), database.creation_lock(), database.opened() as rdb:
                    # As in plain Python, a KeyError if there is no such study.
                    directions = optuna.load_study(study_name=name, storage=rdb).directions
                    close(rdb)
        except HpoError as error:
            raise ScriptEnded(error) from error
        self._open(database, name, directions)

    def _optimize(self, call: OptimizeCall) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ScriptError(f"{_place(self._script)}: optimize runs in a thread; call it in the main thread")
        study, arguments, number = call.study, call.arguments, call.number
        self.optimized[call.opened.study.name] = study
        store, fleet = call.opened.study.store, self._fleet
        if arguments.n_jobs != 1:
            self._note(f"n_jobs = {arguments.n_jobs} is replaced by --workers {fleet.workers}")
        n_trials = fleet.trials or arguments.n_trials
        if n_trials is None and arguments.timeout is None and fleet.timeout_s is None:
            raise ScriptError(f"{_place(self._script)}: optimize has no n_trials; give --trials or --timeout")
        trials = _retry(lambda: store.trials)()
        record = _retry(read_record)(study, number)
        if record is None:
            record = OptimizeRecord(count_finished(trials))
            _retry(write_record)(study, number, record)
        budget = UNLIMITED if n_trials is None else record.base + n_trials
        if record.is_stopped:
            if fleet.trials is None or budget <= len(trials):
                return
            _retry(write_record)(study, number, replace(record, is_stopped=False))
        budget = _retry(store.raise_budget)(budget)
        if is_finished(trials, budget) or not self._workers.has_time:
            return
        self._run(call, budget)

    def _run(self, call: OptimizeCall, budget: int) -> None:
        study, opened, arguments = call.study, call.opened, call.arguments
        fleet, store = self._fleet, opened.study.store
        self._choose_pruner(study, fleet.pruner)
        seed, space = opened.config.study.seed, self._space()
        sampler = script_sampler(study, is_given=opened.is_sampler_given(study), seed=seed, workers=fleet.workers)
        objective = FunctionObjective(study, opened.storage, arguments.call(seed), sampler, space=space)
        max_failures = MAX_FAILURES + sum(map(is_crash, _retry(lambda: store.trials)()))
        config = WorkerConfig(opened.study.database, opened.config, objective, budget, fleet.limits, fleet.verbose)
        job = replace(self._job(opened, call.index), enqueued=fleet.enqueued, max_failures=max_failures)
        self._output.on_start(self._banner(opened, budget, self._describe(sampler), study), opened.study.database)
        retry = partial(retry_while_unavailable, timeout_s=fleet.limits.storage_timeout)
        while True:
            pool = self._workers.pool(job, opened.study, fleet.workers)
            closing = self._workers.closing(pool, arguments.timeout, lambda: self._close(call))
            poll = partial(_call_all, (closing.poll, self._output.on_poll))
            self._workers.run(Work(opened.study, config, pool, opened.study.name, poll))
            trials = retry(lambda: store.trials)()
            if has_only_failures(trials, max_failures):
                raise _failure(trials)
            record = retry(read_record)(study, call.number)
            is_stopped = record is not None and record.is_stopped
            if is_stopped or is_finished(trials, budget) or not self._workers.has_time:
                return
            # The database has lost commits.
            retry(store.raise_budget)(budget)

    def confirm(self, count: int) -> None:
        """Repeat the best trials of each study whose search has ended.

        Args:
            count: The number of trials to repeat in each study.

        Raises:
            HpoError: if the workers or the database end the confirmation.
            TuningInterruptedError: if a stop signal arrived.
        """
        for study in self.studies if count else ():
            with study.database.translate_errors():
                self._confirm(self.opened[study.name], count)

    def _confirm(self, opened: OpenStudy, count: int) -> None:
        study, timeout_s = opened.study, self._fleet.limits.storage_timeout
        view = retry_while_unavailable(study.store.refresh, timeout_s)()
        # The trials of several objectives have no order.
        if len(study.directions) > 1 or not is_finished(view.trials, view.budget):
            return
        best = retry_while_unavailable(candidates, timeout_s)(study)[:count]
        if not all(has_read_seed(trial, opened.config) for trial in best):
            self._output.listener_for(study.name).note(UNCONFIRMED)
            return
        if best:
            with retry_while_unavailable(open_confirmation, timeout_s)(study, opened.config) as second:
                self._repeat(opened, second, best)

    def _repeat(self, opened: OpenStudy, second: Study, best: Sequence[FrozenTrial]) -> None:
        fleet, title = self._fleet, f"confirmation of {opened.study.name}"
        repeats = retry_while_unavailable(enqueue_repeats, fleet.limits.storage_timeout)(second, opened.config, best)
        budget = _retry(second.store.raise_budget)(len(repeats))
        missing = budget - count_finished(repeats)
        if not missing:
            return
        if not self._workers.has_time:
            self._output.listener_for(title).note(UNFINISHED)
            return
        names = repeat_names(best, repeats, sign_of(second))
        study = self.optimized[opened.study.name]
        objective = FunctionObjective(
            study, opened.storage, FunctionCall(_called_by_workers), study.sampler, space=self._space()
        )
        second_config = confirmation_config(opened.config)
        config = WorkerConfig(second.database, second_config, objective, budget, fleet.limits, fleet.verbose)
        job = replace(self._job(opened, self._call_of(opened, best[0])), study_key=second.key, confirms=True)
        self._output.on_start(f"{title}: {count_of(missing, 'trial')}", second.database)
        pool = self._workers.pool(job, second, min(fleet.workers, missing))
        self._workers.run(Work(second, config, pool, title, self._output.on_poll, lambda _: names))
        if not is_finished(_retry(lambda: second.store.trials)(), budget):
            self._output.listener_for(title).note(UNFINISHED)

    def _call_of(self, opened: OpenStudy, trial: FrozenTrial) -> int:
        """Return the call of ``optimize`` that has run a trial, by its number among all calls."""
        records = [read_record(self.optimized[opened.study.name], number) for number in range(len(opened.calls))]
        earlier = [
            call for call, record in zip(opened.calls, records, strict=True) if record and record.base <= trial.number
        ]
        return max(earlier, default=opened.calls[0])

    def _job(self, opened: OpenStudy, call: int) -> ScriptJob:
        fleet = self._fleet
        return ScriptJob(
            target=self._script.target,
            arguments=self._script.arguments,
            storage=self._database.connection_url,
            is_storage_given=self._is_database_given,
            study=opened.study.name,
            study_key=opened.study.key,
            study_file=None if self._script.study_file is None else str(self._script.study_file.path),
            enqueued=(),
            call=call,
            workers=fleet.workers,
            pruner=fleet.pruner,
            limits=fleet.limits,
            max_failures=None,
            verbose=fleet.verbose,
        )

    def _close(self, call: OptimizeCall) -> None:
        """End a call whose ``timeout`` is over. Running trials finish, as in plain Python."""
        record = read_record(call.study, call.number)
        assert record is not None, "the call has started"
        write_record(call.study, call.number, replace(record, is_stopped=True))
        call.opened.study.store.close_budget()

    def _describe(self, sampler: BaseSampler) -> str:
        config = self._script.study_file
        return f"sampler {config.study.sampler} of hpo" if config is not None and config.space else describe(sampler)

    def _banner(self, opened: OpenStudy, budget: int, sampler: str, study: optuna.Study) -> str:
        folder = results_folder(self._fleet.results, opened.study.name)
        trials = "trials until the time is up" if budget == UNLIMITED else count_of(budget, "trial")
        return "\n".join(
            [
                f"study {opened.study.name}: {trials} in {opened.study.database.shown}",
                f"script {self._script.path}: {sampler}; {describe(study.pruner)}",
                f"output of the workers: {folder / 'worker-*.log'}",
            ]
        )


def _call_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _called_by_workers(_: optuna.Trial) -> float:
    raise AssertionError("only workers call the function")


def _failure(trials: Sequence[FrozenTrial]) -> TrialFailureError:
    failed = [trial for trial in trials if is_crash(trial)]
    last = failed[-1]
    print_traceback(str(last.user_attrs[TRACEBACK]))
    return TrialFailureError(
        f"the first {count_of(len(failed), 'trial')} failed: {last.user_attrs['reason']}; correct the script, then the "
        "same command with --allow-changes goes on"
    )


def print_traceback(text: str) -> None:
    """Print the traceback of a script on stderr."""
    sys.stderr.write(text if text.endswith("\n") else f"{text}\n")


def _place(script: Script) -> str:
    """Return the line of the script that runs now."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # documented
    path = script.path.resolve()
    while frame is not None:
        if Path(frame.f_code.co_filename).resolve() == path:
            return f"{script.path}:{frame.f_lineno}"
        frame = frame.f_back
    return str(script.path)
