"""Lease laws: for any order of operations, the database equals a simple model."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from factories import HOUR_S, PARAMS, SPACE, make_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event

from hpo.storage.database.connection import StorageTimings
from hpo.storage.tables.leases import (
    ENDED_OUTSIDE,
    ActiveTrial,
    Checkpoint,
    InterruptionStats,
    Lease,
    LeaseLostError,
)
from hpo.storage.tables.schema import DatabaseClock, leases
from hpo.storage.trial_cache import TrialView
from hpo.storage.trial_store import TrialOutcome

TRIALS = 5
KEPT_WEIGHTS = 2
# No lease expires by itself, however slow the machine is.
TIMINGS = StorageTimings(lease_s=HOUR_S, restart_grace_s=0.0)
WRITES = {"heartbeat", "checkpoint", "report", "release", "pause", "finish"}

names = itertools.count()
owners = st.sampled_from(["worker_a", "worker_b", "worker_c"])
epochs = st.integers(0, 3)
steps = st.sampled_from([0, 0, 1, None])
complete = st.tuples(st.just(TrialState.COMPLETE), st.sampled_from([-0.75, 0.25]))
endings = complete | complete | st.sampled_from([(TrialState.PRUNED, 0.5), (TrialState.FAIL, None)])
# Held leases are preferred, because most leases are lost after a few operations.
any_lease = st.runner().flatmap(lambda laws: st.sampled_from(laws.held or laws.given) | st.sampled_from(laws.given))
operations = st.one_of(
    st.tuples(st.just("create"), owners),
    *[st.tuples(st.just("claim"), owners)] * 3,
    st.tuples(st.just("heartbeat"), any_lease),
    *[st.tuples(st.just("checkpoint"), any_lease, epochs)] * 2,
    st.tuples(st.just("report"), any_lease, epochs),
    st.tuples(st.just("release"), any_lease, epochs | st.none()),
    *[st.tuples(st.just("pause"), any_lease, epochs)] * 2,
    *[st.tuples(st.just("resume"), owners, any_lease, st.sampled_from([0, 0, 0, -1, 1]))] * 3,
    st.tuples(st.just("prune_paused"), any_lease, st.sampled_from([0, 0, -1, 1])),
    *[st.tuples(st.just("finish"), any_lease, endings)] * 3,
    *[st.tuples(st.just("record_death"), any_lease, epochs, steps)] * 2,
    st.tuples(st.just("release_all"), any_lease),
    st.tuples(st.just("expire"), any_lease),
    st.tuples(st.just("set_clock_back"), any_lease),
    st.tuples(st.just("check_writable")),
    # Another program.
    st.tuples(st.just("end_outside"), any_lease, endings),
    *[st.tuples(st.just("close_ended"))] * 2,
    st.tuples(st.just("ask"), st.sampled_from([TrialState.RUNNING, TrialState.WAITING])),
    *[st.tuples(st.just("adopt"), owners)] * 2,
)


@dataclass
class ModelTrial:
    """Expected state of a trial."""

    attempt: int = 1
    holder: str | None = None
    expired: bool = False
    paused: bool = False
    promotions: int = 0
    checkpoint: Checkpoint | None = None
    crash_positions: list[tuple[int, int]] = field(default_factory=list)
    crashes_since_progress: int = 0
    error: str | None = None
    reported: dict[int, float] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    # Another program created the trial, and no worker has adopted it.
    foreign: bool = False
    # Another program ended the trial.
    ended_outside: bool = False
    # The lease of an ended trial is still open.
    open_lease: bool = False

    @property
    def finished(self) -> bool:
        return self.state != TrialState.RUNNING or self.foreign

    @property
    def closed(self) -> bool:
        return self.finished and not self.open_lease

    @property
    def epoch(self) -> int:
        return self.checkpoint.step if self.checkpoint else 0

    def renew(self, checkpoint: Checkpoint | None = None) -> None:
        self.expired = False
        if checkpoint is not None:
            self.crashes_since_progress = 0 if checkpoint.step > self.epoch else self.crashes_since_progress
            self.checkpoint = checkpoint

    @property
    def crashes_at_same_step(self) -> int:
        """The crashes in a row at the last crash's position, without deaths that have no position."""
        newest_first = reversed(self.crash_positions)
        return len(list(itertools.takewhile(lambda position: position == self.crash_positions[-1], newest_first)))


class LeaseLaws(RuleBasedStateMachine):
    """Owners that create, claim, lose and finish trials. Some write after they have lost their lease."""

    def __init__(self, rdb: RDBStorage) -> None:
        super().__init__()
        self.rdb = rdb
        self.name = f"study {next(names)}"
        self.store = make_store(rdb, self.name, TIMINGS, KEPT_WEIGHTS)
        self.store.raise_budget(TRIALS)
        self.study_id = rdb.get_study_id_from_name(self.name)
        self.trials: list[ModelTrial] = []
        self.given: list[Lease] = []
        self.moments = itertools.count(1)
        self.epochs_lost = 0

    def teardown(self) -> None:
        # The cache reads a paused trial again only after its lease has changed.
        self.close_ended()
        self.check()

    @property
    def held(self) -> list[Lease]:
        return [lease for lease in self.given if self.holds(lease)]

    def holds(self, lease: Lease) -> bool:
        trial = self.trials[lease.number]
        is_owner = (trial.holder, trial.attempt) == (lease.owner, lease.attempt)
        return not trial.finished and is_owner and trial.epoch >= lease.epoch

    @contextmanager
    def fenced(self, lease: Lease) -> Iterator[ModelTrial]:
        """Yield the trial of a held lease. For a lost lease, expect the write to fail."""
        if self.holds(lease):
            yield self.trials[lease.number]
        else:
            with pytest.raises(LeaseLostError):
                yield ModelTrial()

    def end_outside(self, lease: Lease, ending: tuple[TrialState, float | None]) -> None:
        trial = self.trials[lease.number]
        state, value = ending
        if not trial.finished:
            self.rdb.set_trial_state_values(lease.trial_id, state, None if value is None else [value])
            trial.state, trial.value, trial.ended_outside, trial.open_lease = state, value, True, True

    def close_ended(self) -> None:
        closed = [number for number, trial in enumerate(self.trials) if trial.open_lease]
        assert sorted(self.store.close_ended()) == closed
        for trial in (self.trials[number] for number in closed):
            trial.open_lease = trial.paused = False
            trial.holder = trial.checkpoint = None
            trial.error = ENDED_OUTSIDE

    def ask(self, state: TrialState) -> None:
        if len(self.trials) < TRIALS:
            template = None if state == TrialState.RUNNING else optuna.trial.create_trial(state=state)
            self.rdb.create_new_trial(self.study_id, template_trial=template)
            self.trials.append(ModelTrial(attempt=0, state=state, foreign=True))

    def adopt(self, owner: str) -> None:
        number = next((number for number, trial in enumerate(self.trials) if trial.foreign), None)
        if number is None:
            return
        trial = self.store.trials[number]
        lease = self.store.adopt(trial, PARAMS, SPACE, owner)
        assert lease is not None
        assert (lease.number, lease.attempt) == (number, 1)
        assert self.store.adopt(trial, PARAMS, SPACE, "late") is None
        self.trials[number] = ModelTrial(holder=owner)
        self.given.append(lease)

    def new_checkpoint(self, epoch: int) -> Checkpoint:
        moment = next(self.moments)
        return Checkpoint(epoch, float(moment), b"state %d" % moment)

    @initialize()
    def create_first_trial(self) -> None:
        self.create("worker_a")

    # One rule for all operations, because an example with several rules leaves some of them out.
    @rule(operation=operations, cut=st.integers(0, 5))
    def operate(self, operation: tuple[Any, ...], cut: int) -> None:
        name, *arguments = operation
        if cut == 5 and self.is_cuttable(name) and self.holds(arguments[0]):
            with self.commits_failing(), pytest.raises(ConnectionError):
                getattr(self, name)(*arguments)
        else:
            getattr(self, name)(*arguments)

    def is_cuttable(self, name: str) -> bool:
        """Return whether a failing commit undoes the operation. PostgreSQL needs no commit for a heartbeat."""
        return name in WRITES and (name != "heartbeat" or self.rdb.engine.dialect.name == "sqlite")

    def create(self, owner: str) -> None:
        number = len(self.trials)
        lease = self.store.allocate(owner)
        if number == TRIALS:
            assert lease is None
        else:
            assert lease is not None
            assert (lease.number, lease.attempt, lease.owner) == (number, 1, owner)
            self.trials.append(ModelTrial(holder=owner))
            self.given.append(lease)

    def claim(self, owner: str) -> None:
        own = [number for number in self.held_by(owner) if not self.trials[number].finished]
        claimable = [
            number
            for number, trial in enumerate(self.trials)
            if not trial.finished and not trial.paused and (trial.holder is None or trial.expired)
        ]
        lease = self.store.claim(owner)
        if not own and not claimable:
            assert lease is None
            return
        assert lease is not None
        assert lease.number == (own or claimable)[0]
        trial = self.trials[lease.number]
        trial.crashes_since_progress += trial.holder not in (None, owner)
        self.take(lease, owner)

    def take(self, lease: Lease, owner: str) -> None:
        """Check a lease that this owner has claimed."""
        trial = self.trials[lease.number]
        trial.attempt += 1
        trial.holder, trial.expired = owner, False
        checkpoint = trial.checkpoint or Checkpoint(0, 0.0, None)
        assert lease == Lease(
            lease.number,
            self.rdb.get_trial_id_from_study_id_trial_number(self.study_id, lease.number),
            trial.attempt,
            owner,
            trial.crashes_at_same_step,
            *(trial.crash_positions[-1] if trial.crash_positions else (None, None)),
            trial.crashes_since_progress,
            checkpoint.step,
            checkpoint.seconds,
            checkpoint.state,
            trial.error,
        )
        assert lease.died_at_start == (trial.crash_positions[-1:] == [(trial.epoch, 0)])
        self.given.append(lease)

    def resume(self, owner: str, of: Lease, offset: int) -> None:
        trial = self.trials[of.number]
        lease = self.store.resume(owner, of.number, trial.attempt + offset)
        if offset or not trial.paused or trial.finished:
            assert lease is None
            return
        assert lease is not None
        assert lease.number == of.number
        trial.paused = False
        trial.promotions += 1
        self.take(lease, owner)

    def pause(self, lease: Lease, epoch: int) -> None:
        checkpoint = self.new_checkpoint(epoch)
        value = self.new_value()
        with self.fenced(lease) as trial:
            self.store.pause(lease, [(epoch, value)], checkpoint)
            trial.renew(checkpoint)
            trial.holder, trial.paused = None, True
            trial.reported[epoch] = value

    def prune_paused(self, of: Lease, offset: int) -> None:
        trial = self.trials[of.number]
        last = optuna.trial.create_trial(state=TrialState.RUNNING, intermediate_values={1: -0.5})
        last._trial_id = of.trial_id
        self.store.prune_paused(TrialView([last] * TRIALS, {of.number: trial.attempt + offset}))
        if trial.paused and not offset and not trial.finished:
            trial.state, trial.value = TrialState.PRUNED, -0.5
            trial.paused, trial.checkpoint = False, None

    def heartbeat(self, lease: Lease) -> None:
        with self.fenced(lease) as trial:
            self.store.heartbeat(lease)
            trial.renew()

    def checkpoint(self, lease: Lease, epoch: int) -> None:
        checkpoint = self.new_checkpoint(epoch)
        with self.fenced(lease) as trial:
            self.store.report(lease, [], checkpoint)
            trial.renew(checkpoint)

    def release(self, lease: Lease, epoch: int | None) -> None:
        checkpoint = None if epoch is None else self.new_checkpoint(epoch)
        with self.fenced(lease) as trial:
            self.store.release(lease, [], checkpoint)
            trial.renew(checkpoint)
            trial.holder = None

    def report(self, lease: Lease, epoch: int) -> None:
        value = self.new_value()
        with self.fenced(lease) as trial:
            self.store.report(lease, [(epoch, value)])
            trial.renew()
            trial.reported[epoch] = value

    def new_value(self) -> float:
        return 1 / next(self.moments) - 0.5

    def finish(self, lease: Lease, ending: tuple[TrialState, float | None]) -> None:
        with self.fenced(lease) as trial:
            self.store.finish(lease, TrialOutcome(*ending), weights=b"weights of %d" % lease.number)
            trial.state, trial.value = ending
            trial.holder = trial.checkpoint = None

    def record_death(self, lease: Lease, epoch: int, step: int | None) -> None:
        held = self.held_by(lease.owner)
        error = f"crash {next(self.moments)}"
        assert sorted(self.store.record_death(lease.owner, error, epoch, step)) == held
        for trial in (self.trials[number] for number in held):
            trial.holder, trial.error = None, error
            trial.crashes_since_progress += 1
            if step is not None:
                trial.crash_positions.append((epoch, step))
            self.epochs_lost += max(0, epoch - trial.epoch)

    def release_all(self, lease: Lease) -> None:
        held = self.held_by(lease.owner)
        assert sorted(self.store.release_all(lease.owner)) == held
        for number in held:
            self.trials[number].holder = None

    def expire(self, lease: Lease) -> None:
        self.move_expiry(lease, -2 * HOUR_S)

    def set_clock_back(self, lease: Lease) -> None:
        """Let a lease end as much later as if the clock had been set back since."""
        self.move_expiry(lease, 5 * HOUR_S)

    def move_expiry(self, lease: Lease, seconds: float) -> None:
        with self.rdb.engine.begin() as connection:
            connection.exec_driver_sql(
                f"UPDATE hpo_leases SET expires = expires + {seconds} "
                f"WHERE study = '{self.name}' AND number = {lease.number}"
            )
        # Several steps may compensate each other.
        with self.rdb.engine.connect() as connection:
            (remaining_s,) = connection.execute(
                sa.select(leases.c.expires - DatabaseClock()).where(
                    leases.c.study == self.name, leases.c.number == lease.number
                )
            ).one()
        self.trials[lease.number].expired = not -HOUR_S / 2 < remaining_s < 3 * HOUR_S / 2

    def check_writable(self) -> None:
        self.store.check_writable()

    @property
    def retained(self) -> list[int]:
        """The best complete trials, as many as keep their weights."""
        complete = [
            number
            for number, trial in enumerate(self.trials)
            if trial.state == TrialState.COMPLETE and not trial.ended_outside
        ]
        return sorted(complete, key=lambda number: (-self.trials[number].value, number))[:KEPT_WEIGHTS]

    def held_by(self, owner: str) -> list[int]:
        return [number for number, trial in enumerate(self.trials) if trial.holder == owner]

    @contextmanager
    def commits_failing(self) -> Iterator[None]:
        def fail(*_: object) -> None:
            raise ConnectionError("the connection was cut before the commit")

        event.listen(self.rdb.engine, "commit", fail)
        try:
            yield
        finally:
            event.remove(self.rdb.engine, "commit", fail)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.rdb.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    def check(self) -> None:
        self.optunas_tables_equal_model()
        self.lease_tables_equal_model()
        self.store_equals_model()

    @invariant()
    def optunas_tables_equal_model(self) -> None:
        assert self.rows(
            "SELECT number, state, value FROM trials LEFT JOIN trial_values USING (trial_id) "
            f"WHERE study_id = {self.study_id} ORDER BY number"
        ) == [(number, trial.state.name, trial.value) for number, trial in enumerate(self.trials)]
        reports = self.rows(
            "SELECT number, step, intermediate_value FROM trials JOIN trial_intermediate_values USING (trial_id) "
            f"WHERE study_id = {self.study_id} ORDER BY number, step"
        )
        assert reports == [
            (number, *report) for number, trial in enumerate(self.trials) for report in sorted(trial.reported.items())
        ]

    @invariant()
    def lease_tables_equal_model(self) -> None:
        columns = "number, attempt, owner, finished, paused, promotions, state, failures, deaths, weights"
        tables = "hpo_leases LEFT JOIN hpo_checkpoints USING (study, number)"
        assert self.rows(f"SELECT {columns} FROM {tables} WHERE study = '{self.name}' ORDER BY number") == [
            (
                number,
                trial.attempt,
                trial.holder,
                trial.closed,
                trial.paused,
                trial.promotions,
                trial.checkpoint and trial.checkpoint.state,
                trial.crashes_at_same_step,
                trial.crashes_since_progress,
                b"weights of %d" % number if number in self.retained else None,
            )
            for number, trial in enumerate(self.trials)
            if not trial.foreign
        ]

    def store_equals_model(self) -> None:
        assert self.store.active_trials() == [
            ActiveTrial(
                number,
                trial.epoch,
                trial.attempt,
                owned=trial.holder is not None and not trial.expired,
                promoted=trial.promotions > 0,
            )
            for number, trial in enumerate(self.trials)
            if not trial.closed
        ]
        assert self.store.retained_trials() == self.retained
        resumed = sum(trial.attempt - 1 - trial.promotions for trial in self.trials if not trial.foreign)
        assert self.store.interruption_stats() == InterruptionStats(resumed, self.epochs_lost)
        view = self.store.refresh()
        assert view.paused == {number: trial.attempt for number, trial in enumerate(self.trials) if trial.paused}
        assert [(trial.state, trial.value, trial.intermediate_values) for trial in view.trials] == [
            (trial.state, trial.value, trial.reported) for trial in self.trials
        ]


@pytest.fixture(autouse=True)
def _other_study(rdb):
    """Check that operations on one study do not change another."""
    other = LeaseLaws(rdb)
    for number in range(2):
        other.create("worker_a")
        other.report(other.given[number], 1)
    other.finish(other.given[0], (TrialState.COMPLETE, 0.5))
    yield
    other.teardown()


def test_leases_any_operations_equal_model(rdb):
    run_state_machine_as_test(
        lambda: LeaseLaws(rdb),
        settings=settings(
            deadline=None, max_examples=20, stateful_step_count=40, suppress_health_check=list(HealthCheck)
        ),
    )


# Operations on one trial.
events = st.one_of(
    st.tuples(st.just("record_death"), epochs, steps),
    st.tuples(st.just("expire")),
    st.tuples(st.just("release"), epochs | st.none()),
    st.tuples(st.just("pause"), epochs),
    st.tuples(st.just("heartbeat")),
    st.tuples(st.just("checkpoint"), epochs),
)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(events, min_size=6, max_size=12))
def test_trial_any_history_equals_model(rdb, history):
    laws = LeaseLaws(rdb)
    laws.create("worker_a")
    for owner, (name, *arguments) in enumerate(history):
        getattr(laws, name)(laws.given[-1], *arguments)
        laws.check()
        if name == "pause":
            laws.resume(f"owner {owner}", laws.given[-1], 0)
        elif name not in ("heartbeat", "checkpoint"):
            laws.claim(f"owner {owner}")
    laws.teardown()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), values=st.lists(st.sampled_from([-0.75, -0.5, 0.0]), min_size=5, max_size=5))
def test_weights_any_order_keeps_best(rdb, order, values):
    laws = LeaseLaws(rdb)
    for _ in range(5):
        laws.create("worker_a")
    for number in order:
        laws.finish(laws.given[number], (TrialState.COMPLETE, values[number]))
        laws.check()
    laws.teardown()
