"""The only access to the trials of a study. Each write about a trial is one transaction with the fence check."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from hpo.storage.database.connection import StorageTimings, autocommit
from hpo.storage.tables import optuna_tables
from hpo.storage.tables.allocation import Allocation
from hpo.storage.tables.checkpoints import Checkpoints
from hpo.storage.tables.leases import (
    ENDED_OUTSIDE,
    ActiveTrial,
    Checkpoint,
    CrashLog,
    InterruptionStats,
    Lease,
    LeaseLostError,
    Leases,
    NumberTakenError,
)
from hpo.storage.tables.optuna_tables import NO_DETAILS, UTC_CLOCK, Details, TrialClock, details_of, studies
from hpo.storage.tables.schema import has_key
from hpo.storage.tables.weight_retention import KEPT_WEIGHTS, WeightRetention
from hpo.storage.trial_cache import TrialCache, TrialView, study_gone_error

# The user attribute of a trial that states why the trial is not complete.
REASON = "reason"

# The start of the reason of a trial that failed by an exception that its script catches.
CAUGHT = "caught "

# The user attribute of a trial with the traceback of the exception that failed it.
TRACEBACK = "traceback"

# PostgreSQL's state for a row whose trial or study was deleted by another program.
_FOREIGN_KEY_VIOLATION = "23503"

# The lock keeps Optuna's clients from creating a trial at the same time.
_LOCK_STUDY = (
    sa.select(studies.c.study_id)
    .where(
        studies.c.study_id == sa.bindparam("study"),
        studies.c.study_name == sa.bindparam("named"),
        has_key(studies.c.study_id),
    )
    .with_for_update(key_share=True)
)

# Steps and values.
Reports = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class TrialOutcome:
    """Final state of a trial.

    Attributes:
        state: COMPLETE, PRUNED or FAIL.
        value: The last value, None if the trial reported none, or if the study has several objectives.
        reason: Why the trial is not complete.
        values: One value per objective, if the study has several.
    """

    state: TrialState
    value: float | None
    reason: str | None = None
    values: tuple[float, ...] = ()

    @property
    def final(self) -> tuple[float, ...]:
        """All values of the trial."""
        return self.values if self.value is None else (self.value,)

    @classmethod
    def pruned(cls, step: int, value: float) -> Self:
        """Return the outcome of a trial that was pruned after this report."""
        return cls(TrialState.PRUNED, value, f"pruned at epoch {step}")

    @classmethod
    def cut_short(cls, value: float | None, reason: str) -> Self:
        """Return the outcome of a trial that cannot continue: PRUNED if it has a value, else FAIL."""
        return cls(TrialState.FAIL if value is None else TrialState.PRUNED, value, reason)


@dataclass(frozen=True)
class Conventions:
    """How a study stores times and orders values.

    Attributes:
        clock: The clock of the trials.
        direction: Whether greater values are better; NOT_SET if the study has several objectives.
    """

    clock: TrialClock = UTC_CLOCK
    direction: StudyDirection = StudyDirection.MAXIMIZE


MAXIMIZING = Conventions()


class TrialStore:
    """The trials of one study.

    Args:
        engine: The engine of Optuna's storage.
        study_id: The study's id in Optuna's tables.
        lease_study: The study's key in hpo's tables.
        name: The study's name.
        timings: Lease length and restart grace.
        kept_weights: Number of complete trials that keep their weights.
        conventions: How the study stores times and orders values.
    """

    def __init__(
        self,
        engine: Engine,
        study_id: int,
        lease_study: str,
        name: str,
        timings: StorageTimings,
        kept_weights: int = KEPT_WEIGHTS,
        conventions: Conventions = MAXIMIZING,
    ) -> None:
        self._engine = engine
        self._autocommit = autocommit(engine)
        self._study_id = study_id
        self._name = name
        self._clock, self._direction = conventions.clock, conventions.direction
        self._key = lease_study
        self._allocation = Allocation(lease_study)
        self._leases = Leases(lease_study, timings)
        self._crashes = CrashLog(lease_study)
        self._checkpoints = Checkpoints(lease_study)
        self._weights = WeightRetention(lease_study, kept_weights)
        self._cache = TrialCache(engine, study_id, lease_study, name, self._leases, self._clock)

    def refresh(self) -> TrialView:
        """Read the changed trials; return all trials and the paused ones.

        Raises:
            StorageError: if the study was deleted.
        """
        return self._cache.refresh()

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by their numbers. The list and the trials are shared, do not change them.

        Raises:
            StorageError: if the study was deleted.
        """
        return self.refresh().trials

    def recount(self) -> None:
        """Count the trials. The next refresh reads all of them again if another program has deleted an old one."""
        self._cache.recount()

    def active_trials(self) -> list[ActiveTrial]:
        """Return the unfinished trials by their numbers."""
        with self._autocommit.connect() as connection:
            return self._leases.active_trials(connection)

    def interruption_stats(self) -> InterruptionStats:
        """Return the number of resumed attempts and of repeated epochs."""
        with self._engine.connect() as connection:
            return self._crashes.stats(connection)

    def weights(self, number: int) -> bytes | None:
        """Return a trial's weights, None if they were not kept."""
        with self._engine.connect() as connection:
            return self._weights.read(connection, number)

    def best_trained(self) -> int | None:
        """Return the best trial that hpo trained to its end, of equal trials the lowest number."""
        with self._autocommit.connect() as connection:
            return self._weights.best_trained(connection)

    def is_trained(self, number: int) -> bool:
        """Return whether hpo trained a trial to its end. Another program may have completed it without weights."""
        with self._autocommit.connect() as connection:
            return self._weights.is_trained(connection, number)

    def retained_trials(self) -> list[int]:
        """Return the trials with weights, the best first and of equal trials the lower number first."""
        with self._autocommit.connect() as connection:
            return self._weights.retained_trials(connection)

    def raise_budget(self, trials: int) -> int:
        """Raise the study's budget to a number of trials, unless it is higher; return the budget."""
        with self._autocommit.begin() as connection:
            return self._allocation.raise_budget(connection, trials)

    def close_budget(self) -> int:
        """Lower the budget to the trials that have started, so that no other trial starts; return it."""
        with self._engine.begin() as connection:
            budget = self._allocation.lock_budget(connection)
            self._lock_study(connection)
            budget = min(budget, optuna_tables.count_started(connection, self._study_id))
            self._allocation.set_budget(connection, budget)
            return budget

    def allocate(self, owner: str) -> Lease | None:
        """Create the next RUNNING trial, without parameters, and its lease.

        Returns:
            The lease, None if the budget is used up.

        Raises:
            StorageError: if the study was deleted or replaced. Nothing was written.
        """
        with self._engine.begin() as connection:
            # No other process allocates a trial until the commit, and no client of Optuna creates one.
            budget = self._allocation.lock_budget(connection)
            self._lock_study(connection)
            number = optuna_tables.next_number(connection, self._study_id)
            if number >= budget:
                return None
            trial_id = optuna_tables.insert_trial(connection, self._study_id, number, self._clock.now())
            lease = self._leases.create(connection, number, trial_id, owner)
            if lease is None:
                # Another program has deleted a trial of this number.
                self._leases.delete(connection, number)
                self._checkpoints.delete(connection, number)
                self._allocation.free(connection, number)
                lease = self._leases.adopt(connection, number, trial_id, owner)
            return lease

    def write_params(
        self, lease: Lease, params: Mapping[str, Any], space: Mapping[str, BaseDistribution], *, distinct: bool = True
    ) -> bool:
        """Write the parameters of a trial.

        Args:
            lease: The trial's lease.
            params: The parameters.
            space: Their distributions.
            distinct: Whether no other trial may have the same parameters.

        Returns:
            Whether they were written. Otherwise another trial has the same parameters.

        Raises:
            LeaseLostError: if the trial has another owner or has ended. Nothing was written.
        """
        with self._fenced(lease) as connection:
            self._leases.renew(connection, lease)
            is_new = self._allocation.take(connection, lease.number, params)
            if is_new or not distinct:
                optuna_tables.write_details(connection, lease.trial_id, details_of(params, space))
        return is_new or not distinct

    def adopt(
        self, trial: FrozenTrial, params: Mapping[str, Any], space: Mapping[str, BaseDistribution], owner: str
    ) -> Lease | None:
        """Start a trial that another program created, and lease it.

        Args:
            trial: A WAITING trial, or a RUNNING trial without a lease.
            params: The parameters that the trial does not have yet.
            space: Their distributions.
            owner: The worker.

        Returns:
            The lease, None if the trial has changed meanwhile.
        """
        try:
            with self._engine.begin() as connection:
                self._lock_study(connection)
                details = details_of(params, space)
                if not optuna_tables.adopt_trial(connection, trial._trial_id, trial.state, details, self._clock.now()):
                    return None
                # On SQLite only now is the file locked.
                self._lock_study(connection)
                return self._leases.adopt(connection, trial.number, trial._trial_id, owner)
        except (NumberTakenError, IntegrityError):
            # Another worker has adopted the trial, or the other program has added a parameter.
            return None

    def fixed_params(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the parameters that another program enqueued for a WAITING trial."""
        with self._autocommit.connect() as connection:
            return optuna_tables.fixed_params(connection, trial._trial_id)

    def close_ended(self) -> list[int]:
        """Close the leases of trials that another program ended or deleted; return the trials' numbers."""
        with self._engine.begin() as connection:
            closed = self._leases.close_ended(connection)
            for number, trial_id in closed:
                self._checkpoints.delete(connection, number)
                optuna_tables.explain_end(connection, trial_id, REASON, ENDED_OUTSIDE)
        return [number for number, _ in closed]

    def claim(self, owner: str) -> Lease | None:
        """Claim a released trial or one whose lease has expired; None if there is none."""
        return self._take(lambda connection: self._leases.claim(connection, owner))

    def resume(self, owner: str, number: int, attempt: int) -> Lease | None:
        """Promote a trial that was paused by this attempt; None if another worker was faster."""
        return self._take(lambda connection: self._leases.resume(connection, owner, number, attempt))

    def heartbeat(self, lease: Lease) -> None:
        """Renew a lease.

        Raises:
            LeaseLostError: if the trial has another owner or has ended. Nothing was written.
        """
        with self._autocommit.begin() as connection:
            self._leases.renew(connection, lease)

    def report(
        self,
        lease: Lease,
        reports: Reports,
        checkpoint: Checkpoint | None = None,
        details: Details = NO_DETAILS,
    ) -> None:
        """Renew a lease, and write intermediate values, details and a checkpoint.

        Args:
            lease: The trial's lease.
            reports: Steps and values.
            checkpoint: A checkpoint that is not older than the reports and details.
            details: Parameters and attributes.

        Raises:
            LeaseLostError: if the trial has another owner or has ended. Nothing was written.
        """
        if not reports and checkpoint is None and not details:
            self.heartbeat(lease)
            return
        with self._fenced(lease) as connection:
            self._renew(connection, lease, checkpoint)
            _write(connection, lease, reports, details)

    def pause(self, lease: Lease, reports: Reports, checkpoint: Checkpoint, details: Details = NO_DETAILS) -> None:
        """Pause a trial at a checkpoint until its promotion.

        Raises:
            LeaseLostError: if the trial has another owner or has ended. Nothing was written.
        """
        with self._fenced(lease) as connection:
            self._leases.pause(connection, self._renew(connection, lease, checkpoint))
            _write(connection, lease, reports, details)

    def release(
        self,
        lease: Lease,
        reports: Reports,
        checkpoint: Checkpoint | None = None,
        details: Details = NO_DETAILS,
    ) -> None:
        """Release a trial for an immediate claim, from this checkpoint or the last one.

        Raises:
            LeaseLostError: if the trial has another owner or has ended. Nothing was written.
        """
        with self._fenced(lease) as connection:
            self._leases.release(connection, self._renew(connection, lease, checkpoint))
            _write(connection, lease, reports, details)

    def finish(
        self,
        lease: Lease,
        outcome: TrialOutcome,
        reports: Reports = (),
        weights: bytes | None = None,
        details: Details = NO_DETAILS,
    ) -> None:
        """End a trial and write its last intermediate values and details.

        The weights are kept if the trial is complete and one of the best.

        Raises:
            LeaseLostError: if the trial has another owner or has ended. Nothing was written.
        """
        score = self._score(outcome)
        with self._fenced(lease) as connection:
            self._leases.finish(connection, lease, score)
            self._checkpoints.delete(connection, lease.number)
            # A trial without weights takes none from the others. This saves three statements of a user's objective.
            if score is not None and weights is not None:
                self._weights.write(connection, lease.number, weights)
            _write(connection, lease, reports, details)
            if not self._end_trial(connection, lease.trial_id, outcome):
                raise LeaseLostError(lease.number)

    def prune_paused(self, view: TrialView) -> None:
        """Prune the paused trials of a view, except trials that were promoted since."""
        for number, attempt in view.paused.items():
            outcome = _outcome_of_paused(view.trials[number])
            with self._engine.begin() as connection:
                if self._leases.finish_paused(connection, number, attempt):
                    self._checkpoints.delete(connection, number)
                    self._end_trial(connection, view.trials[number]._trial_id, outcome)

    def record_death(self, owner: str, error: str, epoch: int, step: int | None = 0) -> list[int]:
        """Record a worker's crash, release its trials and return their numbers.

        Args:
            owner: The worker.
            error: The reason of the crash.
            epoch: The epochs that the worker had trained.
            step: The steps of the next epoch, None if the trial cannot have caused the crash.
        """
        with self._engine.begin() as connection:
            return self._crashes.record_death(connection, owner, error, epoch, step)

    def release_all(self, owner: str) -> list[int]:
        """Release the trials of a stopped worker and return their numbers."""
        with self._engine.begin() as connection:
            return self._leases.release_all(connection, owner)

    def add_epochs_lost(self, lease: Lease, epochs: int) -> None:
        """Add lost epochs, if another worker has claimed the trial since."""
        with self._engine.begin() as connection:
            self._crashes.add_epochs_lost(connection, lease, epochs)

    def check_writable(self) -> None:
        """Write to the database and undo it, to detect a full disk."""
        with self._engine.begin() as connection:
            self._leases.check_writable(connection)

    @contextmanager
    def _fenced(self, lease: Lease) -> Iterator[Connection]:
        """Begin a transaction about a leased trial."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError as error:
            if getattr(error.orig, "sqlstate", None) != _FOREIGN_KEY_VIOLATION:
                raise
            # The trial was deleted after the fence check.
            raise LeaseLostError(lease.number) from error

    def _lock_study(self, connection: Connection) -> None:
        its = {"study": self._study_id, "in_study": self._key, "named": self._name}
        if connection.execute(_LOCK_STUDY, its).first() is None:
            raise study_gone_error()

    def _take(self, claim: Callable[[Connection], Lease | None]) -> Lease | None:
        with self._autocommit.begin() as connection:
            lease = claim(connection)
        if lease is None:
            return None
        with self._autocommit.connect() as connection:
            return replace(lease, checkpoint=self._checkpoints.read(connection, lease.number))

    def _renew(self, connection: Connection, lease: Lease, checkpoint: Checkpoint | None) -> Lease:
        """Renew a lease and write a checkpoint; return the lease at its checkpoint."""
        if checkpoint is None:
            self._leases.renew(connection, lease)
            return lease
        self._leases.advance(connection, lease, checkpoint)
        self._checkpoints.write(connection, lease.number, checkpoint.state)
        return replace(lease, epoch=checkpoint.step)

    def _end_trial(self, connection: Connection, trial_id: int, outcome: TrialOutcome) -> bool:
        attributes = {} if outcome.reason is None else {REASON: outcome.reason}
        now = self._clock.now()
        return optuna_tables.end_trial(connection, trial_id, outcome.state, outcome.final, attributes, now)

    def _score(self, outcome: TrialOutcome) -> float | None:
        """Return a number that is greater for a better complete trial, None if the trials have no order."""
        if outcome.state != TrialState.COMPLETE or outcome.value is None:
            return None
        return -outcome.value if self._direction == StudyDirection.MINIMIZE else outcome.value


def _write(connection: Connection, lease: Lease, reports: Reports, details: Details) -> None:
    optuna_tables.write_details(connection, lease.trial_id, details)
    optuna_tables.report(connection, lease.trial_id, reports)


def failure_reason(trial: FrozenTrial) -> str | None:
    """Return why a trial failed; None if it did not fail, or if another program ended it."""
    return str(trial.user_attrs[REASON]) if trial.state == TrialState.FAIL and not is_ended_outside(trial) else None


def has_only_failures(trials: Sequence[FrozenTrial], limit: int | None) -> bool:
    """Return whether at least ``limit`` trials failed by an exception and none has succeeded; None for no limit."""
    if limit is None or any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials):
        return False
    return sum(is_crash(trial) for trial in trials) >= limit


def is_crash(trial: FrozenTrial) -> bool:
    """Return whether an exception failed the trial that the script does not catch."""
    return TRACEBACK in trial.user_attrs and not str(trial.user_attrs.get(REASON, "")).startswith(CAUGHT)


def is_ended_outside(trial: FrozenTrial) -> bool:
    """Return whether another program ended the trial as FAIL or PRUNED. Only hpo gives a reason to each such trial."""
    return (
        trial.state in (TrialState.FAIL, TrialState.PRUNED)
        and trial.user_attrs.get(REASON, ENDED_OUTSIDE) == ENDED_OUTSIDE
    )


def _outcome_of_paused(trial: FrozenTrial) -> TrialOutcome:
    if trial.last_step is None:
        # Another program has deleted its reports.
        return TrialOutcome(TrialState.PRUNED, None, "paused without a report")
    return TrialOutcome.pruned(trial.last_step, trial.intermediate_values[trial.last_step])
