"""The laws of the leases: whatever owners do, in whatever order, the database is as a simple model says."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
import pytest
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

from hpo.storage import database as storage
from hpo.storage import leases
from hpo.storage import optuna_tables as records
from hpo.storage.leases import Checkpoint, InterruptionStats, Lease, LeaseLostError, Leases, NumberTakenError, Progress

TRIALS = 5
HOUR = 3600.0
WRITES = {"renew", "report", "give_back", "pause", "end"}

names = itertools.count()
owners = st.sampled_from(["worker_a", "worker_b", "carl"])
epochs = st.integers(0, 3)
steps = st.sampled_from([0, 0, 1, None])
complete = st.tuples(st.just(TrialState.COMPLETE), st.sampled_from([0.25, 0.75]))
endings = complete | complete | st.sampled_from([(TrialState.PRUNED, 0.5), (TrialState.FAIL, None)])
# Mostly a lease that is held: most are not, before long.
leases_given = st.runner().flatmap(lambda laws: st.sampled_from(laws.held or laws.given) | st.sampled_from(laws.given))
acts = st.one_of(
    st.tuples(st.just("create"), owners, st.sampled_from([0, 0, 0, -1, 1])),
    *[st.tuples(st.just("claim"), owners)] * 3,
    st.tuples(st.just("renew"), leases_given, epochs | st.none()),
    st.tuples(st.just("renew"), leases_given, epochs),
    st.tuples(st.just("report"), leases_given, epochs),
    st.tuples(st.just("give_back"), leases_given, epochs | st.none()),
    *[st.tuples(st.just("pause"), leases_given, epochs)] * 2,
    *[st.tuples(st.just("promote"), owners, leases_given, st.sampled_from([0, 0, 0, -1, 1]))] * 3,
    st.tuples(st.just("close_paused"), leases_given, st.sampled_from([0, 0, -1, 1])),
    *[st.tuples(st.just("end"), leases_given, endings)] * 3,
    *[st.tuples(st.just("record_death"), leases_given, epochs, steps)] * 2,
    st.tuples(st.just("retire"), leases_given),
    st.tuples(st.just("expire"), leases_given),
    st.tuples(st.just("check_writable")),
)


@dataclass
class Trial:
    """What should be known of a trial."""

    attempt: int = 1
    holder: str | None = None
    lapsed: bool = False
    paused: bool = False
    promotions: int = 0
    checkpoint: Checkpoint | None = None
    died_at: list[tuple[int, int]] = field(default_factory=list)
    deaths: int = 0
    error: str | None = None
    reported: dict[int, float] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    value: float | None = None

    @property
    def finished(self) -> bool:
        return self.state != TrialState.RUNNING

    @property
    def epoch(self) -> int:
        return self.checkpoint.epoch if self.checkpoint else 0

    def hold(self, checkpoint: Checkpoint | None) -> None:
        self.lapsed = False
        if checkpoint is not None:
            self.deaths = 0 if checkpoint.epoch > self.epoch else self.deaths
            self.checkpoint = checkpoint

    @property
    def failures(self) -> int:
        """Deaths in a row at the same step, the last one's; those that say nothing of the trial are left out."""
        return len(list(itertools.takewhile(lambda place: place == self.died_at[-1], reversed(self.died_at))))


class LeaseLaws(RuleBasedStateMachine):
    """Owners who create, claim, lose and end trials; some of them write long after they lost theirs."""

    def __init__(self, rdb: RDBStorage) -> None:
        super().__init__()
        self.rdb = rdb
        self.name = f"study {next(names)}"
        optuna.create_study(study_name=self.name, storage=rdb, direction="maximize")
        self.study_id = rdb.get_study_id_from_name(self.name)
        self.leases = Leases(rdb.engine, self.name)
        self.trials: list[Trial] = []
        self.given: list[Lease] = []
        self.moments = itertools.count(1)
        self.epochs_lost = 0

    def teardown(self) -> None:
        self.check()

    @property
    def held(self) -> list[Lease]:
        return [lease for lease in self.given if self.holds(lease)]

    def holds(self, lease: Lease) -> bool:
        trial = self.trials[lease.number]
        return not trial.finished and (trial.holder, trial.attempt) == (lease.owner, lease.attempt)

    @contextmanager
    def fenced(self, lease: Lease) -> Iterator[Trial]:
        """Within: a write under this lease. What follows it is the holder's alone."""
        if self.holds(lease):
            yield self.trials[lease.number]
        else:
            with pytest.raises(LeaseLostError):
                yield Trial()

    def checkpoint(self, epoch: int | None) -> Checkpoint | None:
        moment = next(self.moments)
        return None if epoch is None else Checkpoint(epoch, float(moment), b"state %d" % moment)

    def create_trial(self, number: int, owner: str) -> Lease:
        with self.rdb.engine.begin() as connection:
            trial_id = records.insert_trial(connection, self.study_id, number, {}, {})
            if trial_id is None:
                raise NumberTakenError(number)
            return self.leases.open(connection, number, trial_id, owner)

    @initialize()
    def create_the_first(self) -> None:
        self.create("worker_a")

    # One rule for all: of several an example would leave some out, and it takes all kinds to lose a lease.
    @rule(act=acts, cut=st.integers(0, 5))
    def act(self, act: tuple[Any, ...], cut: int) -> None:
        name, *arguments = act
        if cut == 5 and name in WRITES and self.holds(arguments[0]):
            with self.commits_failing(), pytest.raises(ConnectionError):
                getattr(self, name)(*arguments)
        else:
            getattr(self, name)(*arguments)

    def create(self, owner: str, beside: int = 0) -> None:
        number = len(self.trials)
        if beside:
            with pytest.raises(NumberTakenError):
                self.create_trial(number + beside, owner)
        elif number < TRIALS:
            lease = self.create_trial(number, owner)
            assert (lease.number, lease.attempt, lease.owner) == (number, 1, owner)
            self.trials.append(Trial(holder=owner))
            self.given.append(lease)

    def claim(self, owner: str) -> None:
        own = self.held_by(owner)
        free = [
            number
            for number, trial in enumerate(self.trials)
            if not trial.finished and not trial.paused and (trial.holder is None or trial.lapsed)
        ]
        lease = self.leases.claim(owner)
        if not own and not free:
            assert lease is None
            return
        assert lease is not None
        assert lease.number == (own or free)[0]
        trial = self.trials[lease.number]
        trial.deaths += trial.holder not in (None, owner)
        self.take(lease, owner)

    def take(self, lease: Lease, owner: str) -> None:
        """It was given to this owner: as it should be."""
        trial = self.trials[lease.number]
        trial.attempt += 1
        trial.holder, trial.lapsed = owner, False
        kept = trial.checkpoint or Checkpoint(0, 0.0, None)
        assert lease == Lease(
            lease.number,
            self.rdb.get_trial_id_from_study_id_trial_number(self.study_id, lease.number),
            trial.attempt,
            owner,
            trial.failures,
            *(trial.died_at[-1] if trial.died_at else (None, None)),
            trial.deaths,
            kept.epoch,
            kept.seconds,
            kept.state,
            trial.error,
        )
        assert lease.died_at_start == (trial.died_at[-1:] == [(trial.epoch, 0)])
        self.given.append(lease)

    def promote(self, owner: str, of: Lease, beside: int) -> None:
        trial = self.trials[of.number]
        lease = self.leases.promote(owner, of.number, trial.attempt + beside)
        if beside or not trial.paused:
            assert lease is None
            return
        assert lease is not None
        assert lease.number == of.number
        trial.paused = False
        trial.promotions += 1
        self.take(lease, owner)

    def pause(self, lease: Lease, epoch: int) -> None:
        checkpoint = self.checkpoint(epoch)
        accuracy = 1 / next(self.moments)
        with self.fenced(lease) as trial:
            with self.rdb.engine.begin() as connection:
                self.leases.hold(connection, lease, checkpoint)
                self.leases.pause(connection, lease)
                records.report(connection, lease.trial_id, [(epoch, accuracy)])
            trial.hold(checkpoint)
            trial.holder, trial.paused = None, True
            trial.reported[epoch] = accuracy

    def close_paused(self, of: Lease, beside: int) -> None:
        trial = self.trials[of.number]
        with self.rdb.engine.begin() as connection:
            closed = self.leases.close_paused(connection, of.number, trial.attempt + beside)
            assert closed == (trial.paused and not beside)
            if closed:
                assert records.end_trial(connection, of.trial_id, TrialState.PRUNED, 0.5, {})
        if closed:
            trial.state, trial.value = TrialState.PRUNED, 0.5
            trial.paused, trial.checkpoint = False, None

    def renew(self, lease: Lease, epoch: int | None) -> None:
        checkpoint = self.checkpoint(epoch)
        with self.fenced(lease) as trial:
            with self.rdb.engine.begin() as connection:
                self.leases.hold(connection, lease, checkpoint)
            trial.hold(checkpoint)

    def give_back(self, lease: Lease, epoch: int | None) -> None:
        checkpoint = self.checkpoint(epoch)
        with self.fenced(lease) as trial:
            with self.rdb.engine.begin() as connection:
                self.leases.hold(connection, lease, checkpoint)
                self.leases.release(connection, lease)
            trial.hold(checkpoint)
            trial.holder = None

    def report(self, lease: Lease, epoch: int) -> None:
        accuracy = 1 / next(self.moments)
        with self.fenced(lease) as trial:
            with self.rdb.engine.begin() as connection:
                self.leases.hold(connection, lease)
                records.report(connection, lease.trial_id, [(epoch, accuracy)])
            trial.hold(None)
            trial.reported[epoch] = accuracy

    def end(self, lease: Lease, ending: tuple[TrialState, float | None]) -> None:
        state, value = ending
        best = value if state == TrialState.COMPLETE else None
        with self.fenced(lease) as trial:
            with self.rdb.engine.begin() as connection:
                self.leases.close(connection, lease, best, None if best is None else b"weights of %d" % lease.number)
                assert records.end_trial(connection, lease.trial_id, state, value, {})
            trial.state, trial.value = ending
            trial.holder = trial.checkpoint = None

    def record_death(self, lease: Lease, epoch: int, step: int | None) -> None:
        held = self.held_by(lease.owner)
        error = f"death {next(self.moments)}"
        assert sorted(self.leases.record_death(lease.owner, error, epoch, step)) == held
        for trial in (self.trials[number] for number in held):
            trial.holder, trial.error = None, error
            trial.deaths += 1
            if step is not None:
                trial.died_at.append((epoch, step))
            self.epochs_lost += max(0, epoch - trial.epoch)

    def retire(self, lease: Lease) -> None:
        held = self.held_by(lease.owner)
        assert sorted(self.leases.retire(lease.owner)) == held
        for number in held:
            self.trials[number].holder = None

    def expire(self, lease: Lease) -> None:
        with self.rdb.engine.begin() as connection:
            connection.exec_driver_sql(
                f"UPDATE hpo_leases SET expires = expires - {2 * HOUR} "
                f"WHERE study = '{self.name}' AND number = {lease.number}"
            )
        self.trials[lease.number].lapsed = True

    def check_writable(self) -> None:
        self.leases.check_writable()

    @property
    def kept(self) -> list[int]:
        """The best of the complete trials, as many as keep their weights."""
        complete = [number for number, trial in enumerate(self.trials) if trial.state == TrialState.COMPLETE]
        return sorted(complete, key=lambda number: (-self.trials[number].value, number))[: leases.KEPT_WEIGHTS]

    def held_by(self, owner: str) -> list[int]:
        return [number for number, trial in enumerate(self.trials) if trial.holder == owner]

    @contextmanager
    def commits_failing(self) -> Iterator[None]:
        def fail(*_: object) -> None:
            raise ConnectionError("the connection was cut at the last moment")

        event.listen(self.rdb.engine, "commit", fail)
        try:
            yield
        finally:
            event.remove(self.rdb.engine, "commit", fail)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.rdb.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    def check(self) -> None:
        self.optuna_says_what_the_model_says()
        self.the_leases_say_what_the_model_says()
        self.what_is_left_and_what_it_cost_are_told()

    @invariant()
    def optuna_says_what_the_model_says(self) -> None:
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
    def the_leases_say_what_the_model_says(self) -> None:
        columns = "number, attempt, owner, finished, paused, promotions, state, failures, deaths, weights"
        tables = "hpo_leases LEFT JOIN hpo_checkpoints USING (study, number)"
        assert self.rows(f"SELECT {columns} FROM {tables} WHERE study = '{self.name}' ORDER BY number") == [
            (
                number,
                trial.attempt,
                trial.holder,
                trial.finished,
                trial.paused,
                trial.promotions,
                trial.checkpoint and trial.checkpoint.state,
                trial.failures,
                trial.deaths,
                b"weights of %d" % number if number in self.kept else None,
            )
            for number, trial in enumerate(self.trials)
        ]

    def what_is_left_and_what_it_cost_are_told(self) -> None:
        assert self.leases.unfinished() == [
            Progress(
                number,
                trial.epoch,
                trial.attempt,
                owned=trial.holder is not None and not trial.lapsed,
                promoted=trial.promotions > 0,
            )
            for number, trial in enumerate(self.trials)
            if not trial.finished
        ]
        assert self.leases.kept() == self.kept
        resumed = sum(trial.attempt - 1 - trial.promotions for trial in self.trials)
        assert self.leases.interruption_stats() == InterruptionStats(resumed, self.epochs_lost)
        with self.rdb.engine.connect() as connection:
            paused = self.leases.paused(connection)
        assert paused == {
            self.rdb.get_trial_id_from_study_id_trial_number(self.study_id, number): trial.attempt
            for number, trial in enumerate(self.trials)
            if trial.paused
        }


@pytest.fixture(autouse=True)
def _two_keep_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few trials are enough for one to lose its place."""
    monkeypatch.setattr(leases, "KEPT_WEIGHTS", 2)


@pytest.fixture
def rdb(storage_url, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", HOUR)  # none runs out by itself, however slow the machine
    url = storage.parse_url(storage_url)
    storage.check_reachable(url)
    rdb = storage.open_storage(url)
    leases.create_table(rdb.engine)
    yield rdb
    storage.close(rdb)


@pytest.fixture(autouse=True)
def _bystander(rdb):
    """Another study: nothing becomes of it."""
    bystander = LeaseLaws(rdb)
    for number in range(2):
        bystander.create("worker_a")
        bystander.report(bystander.given[number], 1)
    bystander.end(bystander.given[0], (TrialState.COMPLETE, 0.5))
    yield
    bystander.teardown()


def test_whatever_the_owners_do(rdb):
    run_state_machine_as_test(
        lambda: LeaseLaws(rdb),
        settings=settings(
            deadline=None, max_examples=20, stateful_step_count=40, suppress_health_check=list(HealthCheck)
        ),
    )


# What befalls one trial.
fates = st.one_of(
    st.tuples(st.just("record_death"), epochs, steps),
    st.tuples(st.just("expire")),
    st.tuples(st.just("give_back"), epochs | st.none()),
    st.tuples(st.just("pause"), epochs),
    *[st.tuples(st.just("renew"), epochs)] * 2,
)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(life=st.lists(fates, min_size=6, max_size=12))
def test_whatever_befalls_a_trial_in_one_life_after_the_other(rdb, life):
    laws = LeaseLaws(rdb)
    laws.create("worker_a")
    for owner, (name, *arguments) in enumerate(life):
        getattr(laws, name)(laws.given[-1], *arguments)
        laws.check()
        if name == "pause":
            laws.promote(f"owner {owner}", laws.given[-1], 0)
        elif name != "renew":
            laws.claim(f"owner {owner}")
    laws.teardown()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), values=st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=5, max_size=5))
def test_in_whatever_order_trials_complete(rdb, order, values):
    laws = LeaseLaws(rdb)
    for _ in range(5):
        laws.create("worker_a")
    for number in order:
        laws.end(laws.given[number], (TrialState.COMPLETE, values[number]))
        laws.check()
    laws.teardown()
