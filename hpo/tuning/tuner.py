"""The path from a study config to a result: search, confirmation, export."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from optuna.trial import FrozenTrial

from hpo.config.study import StudyConfig
from hpo.data.prepared.cache import PreparedData, prepare
from hpo.errors import MissingDataError, StorageError
from hpo.fleet.local_pool import forked_pool
from hpo.fleet.pool import WorkerPool
from hpo.fleet.status import NO_NAMES, ProgressListener, display_name
from hpo.fleet.supervisor import Supervisor, SupervisorTimings
from hpo.models.kinds.registry import model_of
from hpo.models.predictor import Predictor
from hpo.runner.limits import Limits
from hpo.runner.training_objective import TrainingObjective, check_study, study_direction
from hpo.runner.worker_loop import WorkerConfig
from hpo.search.enqueue import Params, load_enqueued, params_key, pending
from hpo.search.scheduler import min_complete_of
from hpo.search.study_space import study_space
from hpo.storage.database.connection import Database
from hpo.storage.database.retry import DATABASE_ERRORS, BackgroundQuery, retry_while_unavailable
from hpo.storage.study import Study, best_trial, is_finished, load_study, open_or_create_study
from hpo.storage.tables.leases import ENDED_OUTSIDE
from hpo.storage.trial_store import TrialStore, is_ended_outside
from hpo.tuning.banner import banner_lines
from hpo.tuning.confirmation import Confirmation, Training, repeat_names, sign_of
from hpo.tuning.outcomes import COMPLETED_OUTSIDE, describe_failures, describe_unfinished
from hpo.tuning.result import export_best, export_recorded
from hpo.utils.text import count_of

P = ParamSpec("P")
T = TypeVar("T")

# Share of the timeout after which the best trials are promoted, so that the launch has a complete trial at its end.
CLOSING_SHARE = 0.5

PoolFactory = Callable[[WorkerConfig, int, TrialStore], WorkerPool]


class TuningInterruptedError(Exception):
    """A stop signal ended the tuning; the message is the progress of the study."""


@dataclass(frozen=True)
class TunerTimings:
    """Timeouts of a tuner.

    Attributes:
        open_timeout_s: The time to retry the opening of a study in a database that was reachable a moment ago.
        progress_timeout_s: The time that the database has to report the progress after an interrupt.
        supervisor: The timings of the supervision, with the clock of the deadline.
    """

    open_timeout_s: float = 4.0
    progress_timeout_s: float = 1.0
    supervisor: SupervisorTimings = field(default_factory=SupervisorTimings)


@dataclass(frozen=True)
class TuningResult:
    """Result of a study.

    Attributes:
        parameters: The exported parameters of the best trial, the JSON object of a launch.
        predictor: The predictor of the best trial, None without data.
        trials: All trials of the search.
        failures: A description of the failed trials, empty if none failed.
        missing_data: The data that were removed in the meantime, empty if none. Only recorded metrics are known then.
    """

    parameters: dict[str, Any]
    predictor: Predictor | None
    trials: list[FrozenTrial]
    failures: str
    missing_data: str = ""


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """Tuning of one study.

    Raises:
        StudyFileError: if the study cannot be trained with this config, or on this machine.

    Attributes:
        config: The study file.
        database: The database of the study.
        workers: The number of workers.
        listener_for: Function that returns the progress listener for the title of a study.
        budget: The total number of trials; None for the number in the config.
        timeout_s: The time after which the training stops; None for no limit.
        limits: The limits of each trial.
        confirm: The number of the best trials to confirm.
        refit: Whether the best trial is trained once more, on the training and validation rows.
        enqueued: The parameters to try first.
        warnings: Messages about the enqueued parameters.
        verbose: Whether the exits of workers have a traceback.
        announce: The receiver of messages about the preparation of the data.
        on_start: Called before any training, with a banner of the study.
        on_poll: Called regularly during the training.
        pool_for: Function that creates the worker pool from a worker config, the number of workers and the trials.
        timings: The timeouts.
    """

    config: StudyConfig
    database: Database
    workers: int
    listener_for: Callable[[str], ProgressListener]
    limits: Limits
    budget: int | None = None
    timeout_s: float | None = None
    confirm: int = 0
    refit: bool = False
    enqueued: tuple[Params, ...] = ()
    warnings: Sequence[str] = ()
    verbose: bool = False
    announce: Callable[[str], None] = _ignore
    on_start: Callable[[str], None] = _ignore
    on_poll: Callable[[], None] = lambda: None
    pool_for: PoolFactory = forked_pool
    timings: TunerTimings = field(default_factory=TunerTimings)

    def __post_init__(self) -> None:
        check_study(self.config, self._budget)

    def run(self) -> TuningResult:
        """Search, confirm and export; resume if the study exists.

        Raises:
            HpoError: if the user has to fix the study, the data, the database or a trial.
            TuningInterruptedError: if a stop signal arrived.
        """
        self.database.check_reachable()
        data = self._prepare()
        worker_config = self._worker_config(self.config, data)
        with self.database.translate_errors(), self._open(worker_config, data) as study:
            self._retry(study.store.close_ended)()
            budget = self._retry(study.store.raise_budget)(self._budget)
            worker_config = replace(worker_config, budget=budget)
            self._note_warnings(study, budget)
            confirmation = Confirmation(
                study, worker_config, self.confirm, lambda config: self._worker_config(config, data)
            )
            self._train(study, worker_config, confirmation, data)
            return self._result(study, confirmation, data)

    def _retry(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return a function that retries for a few seconds if the database is unavailable."""
        return retry_while_unavailable(function, self.timings.open_timeout_s)

    @property
    def _budget(self) -> int:
        return self.budget or self.config.study.trials

    def _prepare(self) -> PreparedData:
        try:
            return prepare(self.config, self.announce)
        except MissingDataError as error:
            advice = "; without the data, a result can be exported: python -m hpo.export" * self._has_result()
            raise MissingDataError(f"{error}{advice}") from None

    def _has_result(self) -> bool:
        """Return whether the database has a trial of this study that can be exported."""
        try:
            with self.database.reading() as readable, load_study(readable, self.config) as study:
                return study.store.best_trained() is not None
        except StorageError:
            return False

    def _worker_config(self, config: StudyConfig, data: PreparedData) -> WorkerConfig:
        return WorkerConfig(
            database=self.database,
            config=config,
            objective=TrainingObjective.from_config(config, data),
            budget=self._budget,
            limits=self.limits,
            verbose=self.verbose,
            enqueued=self.enqueued,
            min_complete=min_complete_of(self.confirm),
        )

    def _open(self, worker_config: WorkerConfig, data: PreparedData) -> Study:
        objective = worker_config.objective
        directions = [study_direction(self.config, data.task.name)]
        return self._retry(open_or_create_study)(
            self.database, self.config, objective.fingerprint, objective.metric, directions
        )

    def _note_warnings(self, study: Study, budget: int) -> None:
        listener = self.listener_for(self.config.study.name)
        if budget > self._budget:
            listener.note(
                f"the study has a budget of {count_of(budget, 'trial')} from an earlier launch; a budget of "
                f"{self._budget} is less and changes nothing"
            )
        for warning in self.warnings:
            listener.note(warning)
        trials = self._retry(lambda: study.trials)()
        beyond = len(pending(self.enqueued, trials)) - max(0, budget - len(trials))
        if beyond > 0:
            listener.note(f"no trial is left for {beyond} of the parameters to try first; raise --trials")

    def _train(self, study: Study, worker_config: WorkerConfig, confirmation: Confirmation, data: PreparedData) -> None:
        # A confirmation study that is in the way is an error before anything is trained.
        is_confirmation_needed = self._retry(lambda: confirmation.is_needed)()
        budget = worker_config.budget
        is_searched = is_finished(self._retry(lambda: study.trials)(), budget)
        if is_searched and not is_confirmation_needed:
            return
        self.on_start(self._banner(data, budget))
        timeout_s = float("inf") if self.timeout_s is None else self.timeout_s
        start_s = self.timings.supervisor.clock()
        trainer = _Trainer(self, start_s + timeout_s)
        if self.timeout_s is not None:
            worker_config = replace(worker_config, closing_at_s=start_s + CLOSING_SHARE * self.timeout_s)
        retry = partial(retry_while_unavailable, timeout_s=self.limits.storage_timeout)
        # A database that loses commits during the confirmation has lost a part of the search, too.
        while not is_finished(retry(lambda: study.trials)(), budget) or retry(lambda: confirmation.is_needed)():
            if not is_finished(retry(lambda: study.trials)(), budget):
                trainer.train(Training(study, worker_config, self.config.study.name))
            confirmation.run(trainer)
            # A trial that another program deleted long after its end is missed by the refreshes.
            retry(study.store.recount)()
            if not trainer.has_time:
                break
        if not is_finished(retry(lambda: study.trials)(), budget):
            note = _progress(study, budget, self.timings.progress_timeout_s)
            self.listener_for(self.config.study.name).note(note)
        elif retry(lambda: confirmation.is_needed)():
            note = "the confirmation is not finished; the same command goes on"
            self.listener_for(self.config.study.name).note(note)

    def _banner(self, data: PreparedData, budget: int) -> str:
        study = f"study {self.config.study.name}: {count_of(budget, 'trial')} in {self.database.shown}"
        return "\n".join([study, *banner_lines(self.config, data)])

    def _result(self, study: Study, confirmation: Confirmation, data: PreparedData) -> TuningResult:
        timeout_s = self.limits.storage_timeout
        trials, repeats = retry_while_unavailable(lambda: (study.trials, confirmation.trials), timeout_s)()
        names = repeat_names(trials, repeats, sign_of(study))
        best_trained = retry_while_unavailable(study.store.best_trained, timeout_s)()
        untrained = _untrained_note(trials, best_trained, sign_of(study))
        for note in filter(
            None, [untrained, _outside_note(trials), _outside_note(repeats, "confirmation trial", names)]
        ):
            self.listener_for(self.config.study.name).note(note)
        described = [describe_failures(trials), describe_failures(repeats, "confirmation trial", names)]
        failures = "; ".join(filter(None, described))
        export = retry_while_unavailable(partial(export_best, refit=self.refit), timeout_s)
        try:
            parameters, predictor = export(study, self.config, data)
        except MissingDataError as error:
            recorded = retry_while_unavailable(export_recorded, timeout_s)(study, self.config)
            return TuningResult(recorded, None, trials, failures, str(error))
        return TuningResult(parameters, predictor, trials, failures)


@dataclass(frozen=True)
class _Trainer:
    """Training of the studies of one tuner until its deadline."""

    tuner: Tuner
    deadline_s: float

    @property
    def has_time(self) -> bool:
        return self.tuner.timings.supervisor.clock() < self.deadline_s

    def train(self, training: Training) -> None:
        tuner, study, config, title = self.tuner, training.study, training.config, training.title
        workers = tuner.workers if training.max_workers is None else min(tuner.workers, training.max_workers)
        retry_while_unavailable(study.store.raise_budget, config.limits.storage_timeout)(config.budget)
        supervisor = Supervisor(
            study,
            tuner.pool_for(replace(config, study_key=study.key), workers, study.store),
            config,
            tuner.listener_for(title),
            tuner.on_poll,
            replace(tuner.timings.supervisor, deadline_s=self.deadline_s),
            training.trial_names,
        )
        if not supervisor.run():
            progress = _progress(study, config.budget, tuner.timings.progress_timeout_s)
            raise TuningInterruptedError(progress if title == tuner.config.study.name else f"{title}: {progress}")


def load_enqueued_files(paths: Sequence[Path], config: StudyConfig) -> tuple[tuple[Params, ...], list[str]]:
    """Load the parameters to try first; return each set of parameters once, and warnings.

    Raises:
        EnqueueError: if a file cannot be read, or its parameters are not in the space.
    """
    params: dict[Any, Params] = {}
    warnings: list[str] = []
    for path in paths:
        loaded, messages = load_enqueued(path, config, study_space(config), lambda p: _settings(config, p))
        params.setdefault(params_key(loaded), loaded)
        warnings += messages
    return tuple(params.values()), warnings


def _settings(config: StudyConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    return model_of(config, params).settings


def _outside_note(
    trials: Sequence[FrozenTrial], noun: str = "trial", names: Mapping[int, str] = NO_NAMES
) -> str | None:
    """Return a message about the trials that another program ended without success, None without such a trial."""
    ended = [display_name(trial.number, names) for trial in trials if is_ended_outside(trial)]
    return f"{count_of(len(ended), noun)} {ENDED_OUTSIDE}: {', '.join(ended)}" if ended else None


def _untrained_note(trials: Sequence[FrozenTrial], best_trained: int | None, sign: int) -> str | None:
    """Return a message if the trial of the best value has no weights, None otherwise."""
    best = best_trial(trials, sign)
    if best is None or best_trained in (None, best.number):
        return None
    return (
        f"trial {best.number} has the best value, {best.value:.4g}, but was {COMPLETED_OUTSIDE}, so it cannot be "
        f"exported; trial {best_trained} is the best that hpo trained"
    )


def _progress(study: Study, budget: int, timeout_s: float) -> str:
    try:
        view = BackgroundQuery(study.store.refresh).result(timeout_s)
    except DATABASE_ERRORS:
        return "the same command goes on"
    return f"{describe_unfinished(view.trials, budget, len(view.paused))}; the same command goes on"
