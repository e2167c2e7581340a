"""Who owns which trial: one row for each trial of a study, beside Optuna's tables in the same database.

A worker that creates a trial inserts its row in the same transaction. While it trains it renews the lease; a lease
that ran out can be claimed by any other worker, which goes on from the checkpoint. Every claim raises ``attempt``,
the fence: whatever a worker writes about a trial is committed only together with a check that the attempt is
still its own, so one that was frozen past its lease cannot change what its successor did.
"""

import os
import socket
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from hpo.errors import StorageError
from hpo.storage.database import show_url, single

LEASE_SECONDS = 10.0
RESTART_GRACE_SECONDS = LEASE_SECONDS  # that owners have to renew their leases once the database is up again
MAX_FAILURES = 3  # attempts in a row that died at the same step: the trial's own fault
MAX_DEATHS = 25  # attempts that died anywhere without getting any further: whoever's fault it is
KEPT_WEIGHTS = 10  # complete trials, the best ones: any of them can be the winner in the end

_metadata = sa.MetaData()
_leases = sa.Table(
    "hpo_leases",
    _metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    # Attempts in a row that died after these epochs, and these steps of the next one.
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("crash_epoch", sa.Integer),
    sa.Column("crash_step", sa.Integer),
    # Attempts that died since the checkpoint's epoch last rose.
    sa.Column("deaths", sa.Integer, nullable=False),
    # Waits to be promoted, and how often it has been.
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("promotions", sa.Integer, nullable=False),
    # NULL when the trial was let go on purpose, is paused or has ended.
    sa.Column("owner", sa.String(255)),
    # Seconds since 1970 by the database's clock.
    sa.Column("expires", sa.Double, nullable=False),
    # Of the checkpoint: its epoch, and the time that was trained up to it by all attempts.
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    # Epochs that were trained and had to be repeated.
    sa.Column("epochs_lost", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Column("value", sa.Double),
    # Kept for the best trials alone.
    sa.Column("weights", sa.LargeBinary),
    # A claim looks for what is not finished, an end for what is better.
    sa.Index("hpo_leases_finished", "study", "finished", "value"),
)
# Beside the leases: SQLite writes all of a row, however little of it has changed.
_checkpoints = sa.Table(
    "hpo_checkpoints",
    _metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("state", sa.LargeBinary, nullable=False),
)


def _overwrite(insert: sqlite.Insert | postgresql.Insert) -> sa.Insert:
    return insert.on_conflict_do_update(index_elements=["study", "number"], set_={"state": insert.excluded.state})


_WRITE_STATE = {
    "sqlite": _overwrite(sqlite.insert(_checkpoints)),
    "postgresql": _overwrite(postgresql.insert(_checkpoints)),
}
_IS_THIS = sa.and_(_checkpoints.c.study == sa.bindparam("study"), _checkpoints.c.number == sa.bindparam("number"))
_READ_STATE = sa.select(_checkpoints.c.state).where(_IS_THIS)
_DROP_STATE = sa.delete(_checkpoints).where(_IS_THIS)


class _DatabaseClock(FunctionElement[float]):
    """Seconds since 1970, by the clock that all machines share."""

    type = sa.Double()
    inherit_cache = True


@compiles(_DatabaseClock, "sqlite")
def _sqlite_clock(*_: object, **__: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_DatabaseClock, "postgresql")
def _postgresql_clock(*_: object, **__: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


class _ServerStart(FunctionElement[float]):
    """Seconds since 1970 when the database's server started: while it was down nobody could renew a lease."""

    type = sa.Double()
    inherit_cache = True


@compiles(_ServerStart, "sqlite")
def _sqlite_start(*_: object, **__: object) -> str:
    return "0.0"


@compiles(_ServerStart, "postgresql")
def _postgresql_start(*_: object, **__: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) AS DOUBLE PRECISION)"


class LeaseLostError(Exception):
    """The trial has another owner by now, or has ended."""


class NumberTakenError(Exception):
    """Another worker created the trial of this number first."""


@dataclass(frozen=True)
class Lease:
    """One worker's hold on one trial."""

    number: int
    trial_id: int
    attempt: int
    owner: str
    failures: int = 0
    crash_epoch: int | None = None
    crash_step: int | None = None
    deaths: int = 0
    epoch: int = 0
    seconds: float = 0.0
    checkpoint: bytes | None = None
    error: str | None = None

    @property
    def died_at_start(self) -> bool:
        """Whether the last attempt died before it had made a step from this checkpoint."""
        return (self.crash_epoch, self.crash_step) == (self.epoch, 0)


_OF_A_LEASE = [_leases.c[field] for field in Lease.__dataclass_fields__ if field in _leases.c]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after an epoch, and the seconds that were trained up to it."""

    epoch: int
    seconds: float
    state: bytes


@dataclass(frozen=True)
class InterruptionStats:
    """What interruptions have cost a study: how often a trial was taken up again, and epochs trained in vain."""

    resumed: int
    epochs_lost: int


@dataclass(frozen=True)
class Progress:
    """How far an unfinished trial has come; ``owned`` while somebody trains it, ``promoted`` if it was ever paused and
    has gone on.
    """

    number: int
    epoch: int
    attempt: int
    owned: bool
    promoted: bool = False


def new_owner() -> str:
    """A name that no other worker, here or elsewhere, has ever had."""
    return f"{socket.gethostname()[:200]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def create_table(engine: Engine) -> None:
    """Create the table where it is missing; call it under ``storage.creation_lock``.

    Raises:
        StorageError: it is there, but another version of this program made it.
    """
    _metadata.create_all(engine)
    check_version(engine)


def check_version(engine: Engine) -> None:
    """See that the table is this version's.

    Raises:
        StorageError: another version of this program made it.
    """
    if {column["name"] for column in sa.inspect(engine).get_columns(_leases.name)} != set(_leases.columns.keys()):
        raise StorageError(f"{show_url(engine.url)} was used by another version of hpo; use another --storage")


class Leases:
    """The leases of one study, and the only writer of its trials' existence and end."""

    def __init__(self, engine: Engine, study: str) -> None:
        self._engine = engine
        self._single = single(engine)
        self._study = study

    def claim(self, owner: str) -> Lease | None:
        """Take over a trial whose lease ran out or was given back; None where there is none.

        One that is held under this name already comes first: the answer to an earlier claim was lost.
        """
        return self._take(self._take_one, {"claimant": owner})

    def promote(self, owner: str, number: int, attempt: int) -> Lease | None:
        """Take up a trial that has been paused since this attempt; None where somebody else was faster."""
        return self._take(self._take_paused, {"claimant": owner, "its_number": number, "its_attempt": attempt})

    def _take(self, update: sa.UpdateBase, values: dict[str, Any]) -> Lease | None:
        with self._single.begin() as connection:
            row = connection.execute(update, values).one_or_none()
        if row is None:
            return None
        with self._single.connect() as connection:
            state = connection.execute(_READ_STATE, self._key(row.number)).scalar_one_or_none()
        return Lease(**row._mapping, checkpoint=state)

    @cached_property
    def _take_one(self) -> sa.UpdateBase:
        claimant = sa.bindparam("claimant", type_=_leases.c.owner.type)
        ours = _leases.c.owner == claimant
        lapsed = sa.and_(
            _leases.c.expires < _DatabaseClock(),
            _ServerStart() + sa.literal(RESTART_GRACE_SECONDS) < _DatabaseClock(),
        )
        free = sa.or_(_leases.c.owner.is_(None), ours, lapsed)
        candidate = (
            sa.select(_leases.c.number)
            .where(self._mine(), ~_leases.c.finished, ~_leases.c.paused, free)
            .order_by(sa.case((ours, 0), else_=1), _leases.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        died = sa.case((sa.or_(_leases.c.owner.is_(None), ours), 0), else_=1)
        return (
            sa.update(_leases)
            .where(self._mine(), _leases.c.number == candidate)
            .values(
                owner=claimant,
                attempt=_leases.c.attempt + 1,
                deaths=_leases.c.deaths + died,
                expires=_DatabaseClock() + LEASE_SECONDS,
            )
            .returning(*_OF_A_LEASE)
        )

    @cached_property
    def _take_paused(self) -> sa.UpdateBase:
        return (
            self._still_paused()
            .values(
                owner=sa.bindparam("claimant", type_=_leases.c.owner.type),
                attempt=_leases.c.attempt + 1,
                promotions=_leases.c.promotions + 1,
                paused=False,
                expires=_DatabaseClock() + LEASE_SECONDS,
            )
            .returning(*_OF_A_LEASE)
        )

    def record_death(self, owner: str, error: str, epoch: int, step: int | None = 0) -> list[int]:
        """Let go what a worker held that died; returns the numbers of its trials.

        A trial that kills its worker does so at the same step each time; one that outside hands kill does not.

        Args:
            owner: The worker.
            error: What it died of.
            epoch: The epochs that it had trained.
            step: The steps that it had made of the next one; None where its end says nothing about the trial.
        """
        lost = sa.case((_leases.c.epoch < epoch, sa.literal(epoch) - _leases.c.epoch), else_=0)
        values: dict[str, Any] = {
            "error": error,
            "deaths": _leases.c.deaths + 1,
            "epochs_lost": _leases.c.epochs_lost + lost,
        }
        if step is not None:
            again = sa.and_(_leases.c.crash_epoch == epoch, _leases.c.crash_step == step)
            failures = sa.case((again, _leases.c.failures + 1), else_=1)
            values |= {"failures": failures, "crash_epoch": epoch, "crash_step": step}
        return self._let_go(owner, values)

    def retire(self, owner: str) -> list[int]:
        """Let go what a worker held that was ended on purpose; returns the numbers of its trials."""
        return self._let_go(owner, {})

    def add_epochs_lost(self, lease: Lease, epochs: int) -> None:
        """Count epochs that were trained in vain, if somebody else took the trial over meanwhile."""
        taken = sa.and_(self._mine(), _leases.c.number == lease.number, _leases.c.attempt > lease.attempt)
        more = {"epochs_lost": _leases.c.epochs_lost + epochs}
        with self._engine.begin() as connection:
            connection.execute(sa.update(_leases).where(taken).values(more))

    def check_writable(self) -> None:
        """Write, and take it back: a database whose disk is full can still be read, and even told what it has."""
        nobody = self._new_row(number=-1, trial_id=-1, owner="")
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_leases).values(nobody))
            connection.execute(sa.delete(_leases).where(self._mine(), _leases.c.number == -1))

    def interruption_stats(self) -> InterruptionStats:
        """What interruptions have cost so far."""
        query = sa.select(
            sa.func.coalesce(sa.func.sum(_leases.c.attempt - 1 - _leases.c.promotions), 0),
            sa.func.coalesce(sa.func.sum(_leases.c.epochs_lost), 0),
        ).where(self._mine())
        with self._engine.connect() as connection:
            resumed, epochs_lost = connection.execute(query).one()
        return InterruptionStats(int(resumed), int(epochs_lost))

    def unfinished(self) -> list[Progress]:
        """The trials that were created and have not ended, in the order of their numbers."""
        owned = sa.and_(_leases.c.owner.is_not(None), _leases.c.expires >= _DatabaseClock())
        query = (
            sa.select(
                _leases.c.number,
                _leases.c.epoch,
                _leases.c.attempt,
                owned.label("owned"),
                (_leases.c.promotions > 0).label("promoted"),
            )
            .where(self._mine(), ~_leases.c.finished)
            .order_by(_leases.c.number)
        )
        with self._engine.connect() as connection:
            return [Progress(**row._mapping) for row in connection.execute(query)]

    def weights(self, number: int) -> bytes | None:
        """The weights of a complete trial, if it is one of the best."""
        query = sa.select(_leases.c.weights).where(self._mine(), _leases.c.number == number)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none()

    def kept(self) -> list[int]:
        """The trials whose weights are kept, the best first; of equal ones, the first."""
        with self._single.connect() as connection:
            return list(connection.execute(self._best.where(_leases.c.weights.is_not(None))).scalars())

    def open(self, connection: Connection, number: int, trial_id: int, owner: str) -> Lease:
        """Insert the row of a trial that is created in the same transaction.

        Raises:
            NumberTakenError: another worker was faster.
        """
        try:
            connection.execute(sa.insert(_leases).values(self._new_row(number, trial_id, owner)))
        except IntegrityError as error:
            raise NumberTakenError(number) from error
        return Lease(number, trial_id, attempt=1, owner=owner)

    def hold(self, connection: Connection, lease: Lease, checkpoint: Checkpoint | None = None) -> None:
        """Renew the lease in a transaction in which its trial is written, and write its newest checkpoint.

        Raises:
            LeaseLostError: somebody else took the trial over.
        """
        if checkpoint is None:
            self._update_held(connection, lease, self._renewal)
            return
        moved = {"epoch": checkpoint.epoch, "seconds": checkpoint.seconds, "new": checkpoint.epoch}
        self._update_held(connection, lease, self._checkpointing, moved)
        state = self._key(lease.number) | {"state": checkpoint.state}
        connection.execute(_WRITE_STATE[connection.dialect.name], state)

    def release(self, connection: Connection, lease: Lease) -> None:
        """Let the trial go, for anybody to take up at once.

        Raises:
            LeaseLostError: somebody else took the trial over.
        """
        self._update_held(connection, lease, self._release)

    def pause(self, connection: Connection, lease: Lease) -> None:
        """Let the trial go, to be taken up again when it is promoted.

        Raises:
            LeaseLostError: somebody else took the trial over.
        """
        self._update_held(connection, lease, self._pausing)

    def paused(self, connection: Connection) -> dict[int, int]:
        """The ids of the trials that are paused, and the attempts since which they are."""
        return {row.trial_id: row.attempt for row in connection.execute(self._those_paused)}

    def close_paused(self, connection: Connection, number: int, attempt: int) -> bool:
        """End a trial that has been paused since this attempt; returns whether it still was."""
        its = {"its_number": number, "its_attempt": attempt}
        if connection.execute(self._end_paused, its).rowcount != 1:
            return False
        connection.execute(_DROP_STATE, self._key(number))
        return True

    def close(
        self, connection: Connection, lease: Lease, value: float | None = None, weights: bytes | None = None
    ) -> None:
        """End the lease in the transaction in which its trial ends.

        The weights are kept if it is one of the best; those of the one that is not any more are dropped.

        Raises:
            LeaseLostError: the lease is not held.
        """
        self._update_held(connection, lease, self._end, {"value": value})
        connection.execute(_DROP_STATE, self._key(lease.number))
        if value is not None and lease.number in connection.execute(self._best).scalars():
            row = sa.and_(self._mine(), _leases.c.number == lease.number)
            connection.execute(sa.update(_leases).where(row).values(weights=weights))
            connection.execute(self._drop_weights)

    def _let_go(self, owner: str, values: dict[str, Any]) -> list[int]:
        held = sa.and_(self._mine(), _leases.c.owner == owner, ~_leases.c.finished)
        release = sa.update(_leases).where(held).values(values | {"owner": None}).returning(_leases.c.number)
        with self._engine.begin() as connection:
            return list(connection.execute(release).scalars())

    @cached_property
    def _best(self) -> sa.Select[Any]:
        complete = sa.and_(self._mine(), _leases.c.finished, _leases.c.value.is_not(None))
        ordered = sa.select(_leases.c.number).where(complete).order_by(_leases.c.value.desc(), _leases.c.number)
        return ordered.limit(KEPT_WEIGHTS)

    @cached_property
    def _drop_weights(self) -> sa.Update:
        behind = sa.and_(_leases.c.weights.is_not(None), _leases.c.number.not_in(self._best))
        return sa.update(_leases).where(self._mine(), behind).values(weights=None)

    def _new_row(self, number: int, trial_id: int, owner: str) -> dict[str, Any]:
        zeros = dict.fromkeys(("failures", "deaths", "epoch", "seconds", "epochs_lost", "promotions"), 0)
        row = {"study": self._study, "number": number, "trial_id": trial_id, "owner": owner, "attempt": 1, **zeros}
        return row | {"expires": _DatabaseClock() + LEASE_SECONDS, "paused": False, "finished": False}

    def _key(self, number: int) -> dict[str, Any]:
        return {"study": self._study, "number": number}

    def _mine(self) -> sa.ColumnElement[bool]:
        return _leases.c.study == self._study

    @cached_property
    def _renewal(self) -> sa.Update:
        return self._held().values(expires=_DatabaseClock() + LEASE_SECONDS)

    @cached_property
    def _checkpointing(self) -> sa.Update:
        further = sa.case((_leases.c.epoch < sa.bindparam("new"), 0), else_=_leases.c.deaths)
        return self._renewal.values(
            epoch=sa.bindparam("epoch"),
            seconds=sa.bindparam("seconds"),
            deaths=further,
        )

    @cached_property
    def _release(self) -> sa.Update:
        return self._held().values(owner=None)

    @cached_property
    def _pausing(self) -> sa.Update:
        return self._held().values(owner=None, paused=True)

    @cached_property
    def _those_paused(self) -> sa.Select[tuple[int, int]]:
        return sa.select(_leases.c.trial_id, _leases.c.attempt).where(
            self._mine(), ~_leases.c.finished, _leases.c.paused
        )

    @cached_property
    def _end_paused(self) -> sa.Update:
        return self._still_paused().values(finished=True, paused=False)

    def _still_paused(self) -> sa.Update:
        """An update of the lease of a number, if it is paused since an attempt."""
        return sa.update(_leases).where(
            self._mine(),
            _leases.c.number == sa.bindparam("its_number"),
            _leases.c.attempt == sa.bindparam("its_attempt"),
            _leases.c.paused,
        )

    @cached_property
    def _end(self) -> sa.Update:
        return self._held().values(finished=True, owner=None, value=sa.bindparam("value"))

    def _held(self) -> sa.Update:
        """An update of the lease that ``_update_held`` names, if it is held."""
        return sa.update(_leases).where(
            self._mine(),
            _leases.c.number == sa.bindparam("its_number"),
            _leases.c.attempt == sa.bindparam("its_attempt"),
            _leases.c.owner == sa.bindparam("its_owner", type_=_leases.c.owner.type),
            ~_leases.c.finished,
        )

    def _update_held(
        self, connection: Connection, lease: Lease, update: sa.Update, values: dict[str, Any] | None = None
    ) -> None:
        its = {"its_number": lease.number, "its_attempt": lease.attempt, "its_owner": lease.owner}
        if connection.execute(update, its | (values or {})).rowcount != 1:
            raise LeaseLostError(lease.number)
