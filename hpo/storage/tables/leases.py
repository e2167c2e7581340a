"""Leases: which worker owns which trial, and how often a trial's workers crashed.

Each trial has one row in ``hpo_leases``, which is inserted in the transaction that creates the trial. A worker renews
its lease while it trains the trial. Another worker can claim the trial after the lease has expired, and resumes it from
its checkpoint. Each claim raises ``attempt``, the fence: each write about a trial commits only together with a check
that the attempt is still the writer's. A worker that was frozen past its lease can therefore not overwrite its
successor's work.

Other programs may end or delete a trial, or delete the study. The same check therefore needs a RUNNING trial in the
study with this key, and ``close_ended`` closes the leases of trials that ended elsewhere.
"""

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.sql.dml import ReturningInsert

from hpo.storage.database.connection import StorageTimings
from hpo.storage.tables.optuna_tables import trials
from hpo.storage.tables.schema import HAS_RUNNING_TRIAL, IN_STUDY, DatabaseClock, ServerStart, budgets, has_key, leases

# The limits after which a trial fails instead of being claimed again. Crashes at the same step are caused by the trial.
# Crashes at changing steps may have other causes, but a trial that makes no progress must end, too.
MAX_CRASHES_AT_SAME_STEP = 3
MAX_CRASHES_SINCE_PROGRESS = 25

# A small correction of the clock ends no lease.
_CLOCK_SLACK_S = 1.0

# The reason of a trial that another program ended.
ENDED_OUTSIDE = "ended outside of hpo"

_number: sa.BindParameter[int] = sa.bindparam("lease_number", type_=sa.Integer())
_attempt: sa.BindParameter[int] = sa.bindparam("lease_attempt", type_=sa.Integer())
_owner: sa.BindParameter[str] = sa.bindparam("lease_owner", type_=leases.c.owner.type)
_from_epoch: sa.BindParameter[int] = sa.bindparam("from_epoch", type_=sa.Integer())
_new_epoch: sa.BindParameter[int] = sa.bindparam("new_epoch", type_=sa.Integer())
_at_epoch: sa.BindParameter[int] = sa.bindparam("at_epoch", type_=sa.Integer())
_at_step: sa.BindParameter[int] = sa.bindparam("at_step", type_=sa.Integer())

_EXPIRY = DatabaseClock() + sa.bindparam("lease_s", type_=sa.Double())
# A lease that ends later than a lease of now was written before the clock was set back.
_IS_CURRENT = sa.and_(leases.c.expires >= DatabaseClock(), leases.c.expires <= _EXPIRY + _CLOCK_SLACK_S)


class LeaseLostError(Exception):
    """The trial has another owner, has ended, or was deleted."""


class NumberTakenError(Exception):
    """Another worker has created the trial of this number."""


@dataclass(frozen=True)
class Lease:
    """One attempt's lease of one trial.

    Attributes:
        number: The trial's number.
        trial_id: The trial's id in Optuna's tables.
        attempt: The number of this claim, the fence.
        owner: The worker.
        crashes_at_same_step: Crashes in a row at the position of the last crash.
        crash_epoch: Trained epochs at the last crash.
        crash_step: Steps in the next epoch at the last crash.
        crashes_since_progress: Crashes and expired leases since the last checkpoint of a later epoch.
        epoch: Position of the checkpoint.
        seconds: Training time of all attempts up to the checkpoint.
        checkpoint: State to resume from.
        error: Reason of the last crash.
    """

    number: int
    trial_id: int
    attempt: int
    owner: str
    crashes_at_same_step: int = 0
    crash_epoch: int | None = None
    crash_step: int | None = None
    crashes_since_progress: int = 0
    epoch: int = 0
    seconds: float = 0.0
    checkpoint: bytes | None = None
    error: str | None = None

    @property
    def died_at_start(self) -> bool:
        """Whether the last crash was before the first step after this checkpoint."""
        return (self.crash_epoch, self.crash_step) == (self.epoch, 0)


@dataclass(frozen=True)
class Checkpoint:
    """State of a trial after a step, and the training time up to it."""

    step: int
    seconds: float
    state: bytes


@dataclass(frozen=True)
class InterruptionStats:
    """Number of resumed attempts and of repeated epochs in a study."""

    resumed: int
    epochs_lost: int


class Pause(NamedTuple):
    """Identity of a pause. A trial can pause twice in the same attempt if the database has lost commits in between.

    Attributes:
        attempt: The attempt that paused the trial.
        expires: The end of the lease at the pause, in seconds since 1970 by the database's clock.
    """

    attempt: int
    expires: float


@dataclass(frozen=True)
class ActiveTrial:
    """Progress of an unfinished trial.

    Attributes:
        number: The trial's number.
        epoch: Position of its checkpoint.
        attempt: The number of its last claim.
        owned: Whether a worker holds an unexpired lease.
        promoted: Whether the trial was paused and resumed.
        expires_in_s: The time until the lease expires.
    """

    number: int
    epoch: int
    attempt: int
    owned: bool
    promoted: bool = False
    expires_in_s: float = field(default=0.0, compare=False)


_LEASE_COLUMNS = [leases.c[field].label(field) for field in Lease.__dataclass_fields__ if field in leases.c]


def _insert_or_replace(insert: sqlite.Insert | postgresql.Insert) -> ReturningInsert[Any]:
    """Insert a row. A row with the same number is replaced if its trial was deleted, or is reopened."""
    new = insert.values(expires=_EXPIRY)
    kept = {"study", "number"}
    # Literal columns, because SQLAlchemy does not correlate a subquery with the row of an upsert.
    replaced_id: sa.ColumnElement[int] = sa.literal_column(f"{leases.name}.trial_id")
    replaced_number: sa.ColumnElement[int] = sa.literal_column(f"{leases.name}.number")
    has_trial = sa.exists().where(
        trials.c.trial_id == replaced_id, trials.c.number == replaced_number, has_key(trials.c.study_id)
    )
    return new.on_conflict_do_update(
        index_elements=["study", "number"],
        set_={column.key: new.excluded[column.key] for column in leases.c if column.key not in kept},
        where=sa.or_(
            sa.and_(leases.c.finished, leases.c.trial_id == new.excluded.trial_id),
            ~has_trial,
        ),
    ).returning(leases.c.number)


_INSERTS: dict[str, sqlite.Insert | postgresql.Insert] = {
    "sqlite": sqlite.insert(leases),
    "postgresql": postgresql.insert(leases),
}
_INSERT = {dialect: _insert_or_replace(insert) for dialect, insert in _INSERTS.items()}
_INSERT_NEW = {
    dialect: insert.values(expires=_EXPIRY).on_conflict_do_nothing().returning(leases.c.number)
    for dialect, insert in _INSERTS.items()
}
_DELETE = sa.delete(leases).where(IN_STUDY, leases.c.number == _number)

_IS_OWN = leases.c.owner == _owner
_IS_RELEASED = leases.c.owner.is_(None)
_HAS_EXPIRED = sa.and_(
    ~_IS_CURRENT,
    # No lease could be renewed while the server was down. A start in the future is older than a step of the clock.
    sa.or_(
        ServerStart() + sa.bindparam("restart_grace_s", type_=sa.Double()) < DatabaseClock(),
        ServerStart() > DatabaseClock(),
    ),
)
_CLAIMABLE = (
    sa.select(leases.c.number)
    .where(
        IN_STUDY,
        ~leases.c.finished,
        ~leases.c.paused,
        sa.or_(_IS_RELEASED, _IS_OWN, _HAS_EXPIRED),
        HAS_RUNNING_TRIAL,
    )
    .order_by(sa.case((_IS_OWN, 0), else_=1), leases.c.number)
    .limit(1)
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
_CLAIM = (
    sa.update(leases)
    .where(IN_STUDY, leases.c.number == _CLAIMABLE)
    .values(
        owner=_owner,
        attempt=leases.c.attempt + 1,
        crashes_since_progress=leases.c.crashes_since_progress + sa.case((sa.or_(_IS_RELEASED, _IS_OWN), 0), else_=1),
        expires=_EXPIRY,
    )
    .returning(*_LEASE_COLUMNS)
)

_IS_STILL_PAUSED = sa.and_(
    IN_STUDY, leases.c.number == _number, leases.c.attempt == _attempt, leases.c.paused, HAS_RUNNING_TRIAL
)
_RESUME = (
    sa.update(leases)
    .where(_IS_STILL_PAUSED)
    .values(
        owner=_owner,
        attempt=leases.c.attempt + 1,
        promotions=leases.c.promotions + 1,
        paused=False,
        expires=_EXPIRY,
    )
    .returning(*_LEASE_COLUMNS)
)
_FINISH_PAUSED = sa.update(leases).where(_IS_STILL_PAUSED).values(finished=True, paused=False)
# One query, because each worker that waits for work repeats it. The row of the budget has no trial.
_PAUSED_AND_BUDGET = sa.union_all(
    sa.select(leases.c.trial_id, leases.c.attempt, leases.c.expires).where(
        IN_STUDY, ~leases.c.finished, leases.c.paused
    ),
    sa.select(sa.null(), budgets.c.trials, sa.null()).where(
        budgets.c.study == sa.bindparam("in_study", type_=sa.String())
    ),
)

# The fence.
_IS_HELD = sa.and_(
    IN_STUDY,
    leases.c.number == _number,
    leases.c.attempt == _attempt,
    leases.c.owner == _owner,
    # An earlier checkpoint means that the database has lost commits. Then the reports of some steps are lost, too.
    leases.c.epoch >= _from_epoch,
    ~leases.c.finished,
    HAS_RUNNING_TRIAL,
)
_RENEW = sa.update(leases).where(_IS_HELD).values(expires=_EXPIRY)
_ADVANCE = _RENEW.values(
    epoch=_new_epoch,
    seconds=sa.bindparam("new_seconds", type_=sa.Double()),
    crashes_since_progress=sa.case((leases.c.epoch < _new_epoch, 0), else_=leases.c.crashes_since_progress),
)
_RELEASE = sa.update(leases).where(_IS_HELD).values(owner=None)
_PAUSE = sa.update(leases).where(_IS_HELD).values(owner=None, paused=True)
_FINISH = (
    sa.update(leases)
    .where(_IS_HELD)
    .values(finished=True, owner=None, value=sa.bindparam("final_value", type_=sa.Double()))
)

_CLOSE_ENDED = (
    sa.update(leases)
    .where(IN_STUDY, ~leases.c.finished, ~HAS_RUNNING_TRIAL)
    .values(finished=True, paused=False, owner=None, error=ENDED_OUTSIDE)
    .returning(leases.c.number, leases.c.trial_id)
)

_RELEASE_ALL = (
    sa.update(leases).where(IN_STUDY, _IS_OWN, ~leases.c.finished).values(owner=None).returning(leases.c.number)
)
_ACTIVE = (
    sa.select(
        leases.c.number,
        leases.c.epoch,
        leases.c.attempt,
        sa.and_(leases.c.owner.is_not(None), _IS_CURRENT).label("owned"),
        (leases.c.promotions > 0).label("promoted"),
        (leases.c.expires - DatabaseClock()).label("expires_in_s"),
    )
    .where(IN_STUDY, ~leases.c.finished)
    .order_by(leases.c.number)
)

_RECORD_DEATH = _RELEASE_ALL.values(
    error=sa.bindparam("reason", type_=sa.Text()),
    crashes_since_progress=leases.c.crashes_since_progress + 1,
    epochs_lost=leases.c.epochs_lost + sa.case((leases.c.epoch < _at_epoch, _at_epoch - leases.c.epoch), else_=0),
)
_IS_SAME_STEP = sa.and_(leases.c.crash_epoch == _at_epoch, leases.c.crash_step == _at_step)
_RECORD_CRASH = _RECORD_DEATH.values(
    crashes_at_same_step=sa.case((_IS_SAME_STEP, leases.c.crashes_at_same_step + 1), else_=1),
    crash_epoch=_at_epoch,
    crash_step=_at_step,
)
_ADD_EPOCHS_LOST = (
    sa.update(leases)
    .where(IN_STUDY, leases.c.number == _number, leases.c.attempt > _attempt)
    .values(epochs_lost=leases.c.epochs_lost + sa.bindparam("more", type_=sa.Integer()))
)
_STATS = sa.select(
    sa.func.coalesce(sa.func.sum(leases.c.attempt - 1 - leases.c.promotions), 0),
    sa.func.coalesce(sa.func.sum(leases.c.epochs_lost), 0),
).where(IN_STUDY)


def new_owner() -> str:
    """Return a worker name that is unique on all machines."""
    return f"{socket.gethostname()[:200]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class Leases:
    """The leases of one study. Each method is one statement in the caller's transaction.

    Args:
        study: The study's key in ``hpo_leases``.
        timings: Lease length and restart grace.
    """

    def __init__(self, study: str, timings: StorageTimings) -> None:
        self._study = {"in_study": study}
        self._key = {"study": study}
        self._length = {"lease_s": timings.lease_s}
        self._grace = {"restart_grace_s": timings.restart_grace_s}

    def create(self, connection: Connection, number: int, trial_id: int, owner: str) -> Lease | None:
        """Insert the row of a trial that the same transaction creates.

        Returns:
            The lease, None if a deleted trial of this number has left its row.
        """
        if not self._insert(_INSERT_NEW, connection, number, trial_id, owner):
            return None
        return Lease(number, trial_id, attempt=1, owner=owner)

    def adopt(self, connection: Connection, number: int, trial_id: int, owner: str) -> Lease:
        """Insert the row of a trial that the same transaction adopts.

        Raises:
            NumberTakenError: if another worker has adopted the trial of this number.
        """
        if not self._insert(_INSERT, connection, number, trial_id, owner):
            raise NumberTakenError(number)
        return Lease(number, trial_id, attempt=1, owner=owner)

    def delete(self, connection: Connection, number: int) -> None:
        """Delete the row of a deleted trial."""
        connection.execute(_DELETE, {"lease_number": number} | self._study)

    def claim(self, connection: Connection, owner: str) -> Lease | None:
        """Claim a released trial or one whose lease has expired.

        A lease that the owner holds already comes first, because the reply to an earlier claim may have been lost.

        Returns:
            The lease without its checkpoint, None if there is nothing to claim.
        """
        return self._take(connection, _CLAIM, {"lease_owner": owner} | self._grace)

    def resume(self, connection: Connection, owner: str, number: int, attempt: int) -> Lease | None:
        """Promote a trial that was paused by this attempt.

        Returns:
            The lease without its checkpoint, None if another worker has promoted or pruned the trial.
        """
        its = {"lease_owner": owner, "lease_number": number, "lease_attempt": attempt}
        return self._take(connection, _RESUME, its)

    def renew(self, connection: Connection, lease: Lease) -> None:
        """Renew a lease.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
        """
        self._update_held(connection, _RENEW, lease, self._length)

    def advance(self, connection: Connection, lease: Lease, checkpoint: Checkpoint) -> None:
        """Renew a lease and move it to a checkpoint, which the same transaction writes.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
        """
        moved = {"new_epoch": checkpoint.step, "new_seconds": checkpoint.seconds}
        self._update_held(connection, _ADVANCE, lease, moved | self._length)

    def release(self, connection: Connection, lease: Lease) -> None:
        """Release a trial for an immediate claim.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
        """
        self._update_held(connection, _RELEASE, lease)

    def pause(self, connection: Connection, lease: Lease) -> None:
        """Release a trial until its promotion.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
        """
        self._update_held(connection, _PAUSE, lease)

    def finish(self, connection: Connection, lease: Lease, value: float | None) -> None:
        """Close the row of a trial that the same transaction ends.

        Args:
            connection: The transaction.
            lease: The trial's lease.
            value: The final value of a complete trial.

        Raises:
            LeaseLostError: if the trial has another owner or has ended.
        """
        self._update_held(connection, _FINISH, lease, {"final_value": value})

    def finish_paused(self, connection: Connection, number: int, attempt: int) -> bool:
        """Close the row of a paused trial; return whether this attempt's pause still lasted."""
        its = {"lease_number": number, "lease_attempt": attempt}
        return connection.execute(_FINISH_PAUSED, its | self._study).rowcount == 1

    def close_ended(self, connection: Connection) -> list[tuple[int, int]]:
        """Close the rows of trials that another program ended or deleted; return the trials' numbers and ids."""
        return [(row.number, row.trial_id) for row in connection.execute(_CLOSE_ENDED, self._study)]

    def paused_and_budget(self, connection: Connection) -> tuple[dict[int, Pause], int]:
        """Return the ids of the paused trials with their pauses, and the study's budget."""
        rows = connection.execute(_PAUSED_AND_BUDGET, self._study).all()
        budget = next((trials for trial_id, trials, _ in rows if trial_id is None), 0)
        return {trial_id: Pause(*pause) for trial_id, *pause in rows if trial_id is not None}, budget

    def active_trials(self, connection: Connection) -> list[ActiveTrial]:
        """Return the unfinished trials by their numbers."""
        return [ActiveTrial(**row._mapping) for row in connection.execute(_ACTIVE, self._study | self._length)]

    def release_all(self, connection: Connection, owner: str) -> list[int]:
        """Release all trials of an owner and return their numbers."""
        return list(connection.execute(_RELEASE_ALL, {"lease_owner": owner} | self._study).scalars())

    def check_writable(self, connection: Connection) -> None:
        """Insert and delete a row, to detect a full disk.

        A read succeeds on a full disk, and so does an update that changes nothing.
        """
        self._insert(_INSERT, connection, number=-1, trial_id=-1, owner="")
        self.delete(connection, -1)

    def _insert(
        self, insert: Mapping[str, ReturningInsert[Any]], connection: Connection, number: int, trial_id: int, owner: str
    ) -> bool:
        """Insert a row by the statement of the database; return whether it was written."""
        row: dict[str, object] = {"number": number, "trial_id": trial_id, "owner": owner, "attempt": 1}
        row |= {"crashes_at_same_step": 0, "crashes_since_progress": 0, "promotions": 0}
        row |= {"epoch": 0, "seconds": 0.0, "epochs_lost": 0, "paused": False, "finished": False}
        values = row | self._key | self._study | self._length
        return connection.execute(insert[connection.dialect.name], values).first() is not None

    def _take(self, connection: Connection, update: sa.UpdateBase, values: Mapping[str, Any]) -> Lease | None:
        row = connection.execute(update, {**values, **self._study, **self._length}).one_or_none()
        return None if row is None else Lease(**row._mapping)

    def _update_held(
        self, connection: Connection, update: sa.Update, lease: Lease, values: Mapping[str, Any] | None = None
    ) -> None:
        its: dict[str, Any] = {"lease_number": lease.number, "lease_attempt": lease.attempt, "lease_owner": lease.owner}
        its |= {"from_epoch": lease.epoch}
        if connection.execute(update, {**its, **self._study, **(values or {})}).rowcount != 1:
            raise LeaseLostError(lease.number)


class CrashLog:
    """Crashes of workers and the epochs that they cost, by trial. Each method is one statement.

    Args:
        study: The study's key in ``hpo_leases``.
    """

    def __init__(self, study: str) -> None:
        self._study = {"in_study": study}

    def record_death(self, connection: Connection, owner: str, error: str, epoch: int, step: int | None) -> list[int]:
        """Record a worker's crash, release its trials and return their numbers.

        A trial that crashes its worker does so at the same step each time. Kills from outside hit changing steps.

        Args:
            connection: The transaction.
            owner: The worker.
            error: The reason of the crash.
            epoch: The epochs that the worker had trained.
            step: The steps of the next epoch, None if the trial cannot have caused the crash.
        """
        values = {"lease_owner": owner, "reason": error, "at_epoch": epoch} | self._study
        if step is None:
            return list(connection.execute(_RECORD_DEATH, values).scalars())
        return list(connection.execute(_RECORD_CRASH, values | {"at_step": step}).scalars())

    def add_epochs_lost(self, connection: Connection, lease: Lease, epochs: int) -> None:
        """Add lost epochs, if another worker has claimed the trial since."""
        its = {"lease_number": lease.number, "lease_attempt": lease.attempt, "more": epochs}
        connection.execute(_ADD_EPOCHS_LOST, its | self._study)

    def stats(self, connection: Connection) -> InterruptionStats:
        """Return the study's interruption statistics."""
        resumed, epochs_lost = connection.execute(_STATS, self._study).one()
        return InterruptionStats(int(resumed), int(epochs_lost))
