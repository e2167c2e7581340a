"""Databases that lose their last commits, as after a failover to a standby or from a backup."""

import itertools

import pytest
from factories import create_trial, make_store
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from snapshots import restore_snapshot, take_snapshot
from workers import EpochLog, heartbeat_timings, ledger, make_config, make_objective

from hpo.errors import StorageError
from hpo.storage.tables.leases import Checkpoint
from hpo.storage.trial_store import TrialOutcome

names = itertools.count()
# What happens to the unfinished trials one after the other, and whether the cache reads the trials after it.
changes = st.sampled_from(["create", "create", "report", "finish", "finish", "fail", "pause", "promote"])
histories = st.lists(st.tuples(changes, st.booleans()), min_size=1, max_size=12)


class History:
    """Changes of the trials of a study by one worker."""

    def __init__(self, store) -> None:
        self._store = store
        view = store.refresh()
        self._count = len(view.trials)
        self._held, self._paused = [], list(view.paused.items())
        while lease := store.claim("worker_a"):
            self._held.append(lease)
            if len(self._held) > sum(not trial.state.is_finished() for trial in view.trials):
                break

    def change(self, name: str) -> None:
        if name == "create" or not (self._paused if name == "promote" else self._held):
            self._held.append(create_trial(self._store, self._count, f"worker {next(names)}"))
            self._count += 1
        elif name == "promote":
            lease = self._store.resume(f"worker {next(names)}", *self._paused.pop())
            self._held.append(lease)
        elif name == "report":
            self._store.report(self._held[-1], [(next(names), 0.5)])
        elif name == "pause":
            lease = self._held.pop()
            self._store.pause(lease, [(next(names), 0.5)], Checkpoint(1, 1.0, b"state"))
            self._paused.append((lease.number, lease.attempt))
        else:
            value = next(names) / 8
            outcome = TrialOutcome(TrialState.FAIL, None, "x") if name == "fail" else None
            self._store.finish(self._held.pop(0), outcome or TrialOutcome(TrialState.COMPLETE, value))


def lose_commits(rdb, name, history, cut):
    """Change a study, restore the state before one of the changes, and return the store, which may have read more."""
    store = make_store(rdb, name)
    changes, snapshots = History(store), []
    for change, is_read in history:
        with rdb.engine.connect() as connection:
            snapshots.append(take_snapshot(connection))
        changes.change(change)
        if is_read:
            store.refresh()
    with rdb.engine.begin() as connection:
        restore_snapshot(connection, snapshots[min(cut, len(snapshots) - 1)])
    return store


def change_by_others(rdb, name, later):
    others = History(make_store(rdb, name))
    for change, _ in later:
        others.change(change)


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories, cut=st.integers(0, 12), later=histories)
# The lost trials are replaced by as many others, which have finished, too.
@example([("create", True), ("finish", True)] * 3, 2, [("create", False), ("finish", False)] * 2)
@example([("create", True), ("finish", True)] * 3, 2, [("create", False), ("finish", False)] * 4)
def test_cache_equals_database_after_loss(rdb, history, cut, later):
    name = f"study {next(names)}"
    store = lose_commits(rdb, name, history, cut)
    assert store.refresh()[:2] == make_store(rdb, name).refresh()[:2]
    change_by_others(rdb, name, later)
    assert store.refresh()[:2] == make_store(rdb, name).refresh()[:2]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories, cut=st.integers(0, 12), later=histories)
# A finished trial runs again.
@example([("create", True), ("finish", True)], 1, [("report", False)])
# A trial pauses again in the same attempt.
@example([("create", False), ("pause", True)], 1, [("pause", False)])
@example(
    [("create", False), ("pause", False), ("promote", False), ("pause", True)],
    2,
    [("promote", False), ("pause", False)],
)
def test_cache_finds_loss_after_other_workers_continued(rdb, history, cut, later):
    name = f"study {next(names)}"
    store = lose_commits(rdb, name, history, cut)
    change_by_others(rdb, name, later)
    assert store.refresh()[:2] == make_store(rdb, name).refresh()[:2]


def test_kept_commits_are_no_loss(rdb):
    store = make_store(rdb)
    changes = History(store)
    for change in ("create", "finish", "create", "pause", "promote", "report", "create", "fail", "finish"):
        changes.change(change)
        assert store.refresh().losses == 0


@pytest.mark.parametrize(
    ("known", "epoch"),
    [(2, 7), *(pytest.param(known, epoch, marks=pytest.mark.slow) for known in (0, 3) for epoch in (1, 7, 9))],
)
def test_worker_ends_with_same_trials_after_loss(bench, known, epoch):
    undisturbed, disturbed = make_config("undisturbed", trials=5), make_config("disturbed", trials=5)
    expected = bench.join(undisturbed)
    bench.worker(expected, undisturbed).run()
    study, log = bench.join(disturbed), EpochLog()
    engine = study.store._engine
    snapshots = []

    def lose(number: int) -> None:
        trials = len(study.trials)
        if trials == known + 1 and not snapshots:
            with engine.connect() as connection:
                snapshots.append(take_snapshot(connection))
        if trials == 4 and number == epoch and len(snapshots) == 1:
            with engine.begin() as connection:
                restore_snapshot(connection, snapshots[0])
            snapshots.append(snapshots[0])

    log.on_epoch = lose
    bench.worker(study, disturbed, objective=log.watch(make_objective(disturbed))).run()
    assert len(snapshots) == 2
    # If all trials were known, only reports and checkpoints are lost.
    assert study.store.refresh().losses == (known < 3)
    assert ledger(study) == ledger(expected)
    assert study.store.active_trials() == []


def test_lost_study_ends_worker(bench):
    config = make_config()
    study, log = bench.join(config), EpochLog()

    def lose(_: int) -> None:
        with study.store._engine.begin() as connection:
            restore_snapshot(connection, {name: [] for name in take_snapshot(connection)})

    log.on_epoch = lose
    with pytest.raises(StorageError, match="the study was deleted"):
        bench.worker(study, config, objective=log.watch(make_objective(config))).run()


def test_lost_checkpoints_restart_trial(bench):
    undisturbed, disturbed = make_config("undisturbed", trials=2), make_config("disturbed", trials=2)
    expected = bench.join(undisturbed)
    bench.worker(expected, undisturbed).run()
    study = bench.join(disturbed)
    objective = make_objective(disturbed)
    log, lost = EpochLog(), []

    def lose(number: int) -> None:
        if number == 6 and not lost:
            lost.append(number)
            study.store.record_death("worker_a", "crash", number)
            with study.store._engine.begin() as connection:
                connection.exec_driver_sql("DELETE FROM hpo_checkpoints")

    log.on_epoch = lose
    bench.worker(study, disturbed, objective=log.watch(objective)).run()
    assert ledger(study) == ledger(expected)


def test_worker_repeats_lost_steps_of_its_trial(bench):
    configs = [make_config(name, trials=2, pruner="median") for name in ("undisturbed", "disturbed")]
    expected, study = map(bench.join, configs)
    bench.worker(expected, configs[0], timings=heartbeat_timings()).run()
    log, snapshots, engine = EpochLog(), [], study.store._engine

    def lose(_: int) -> None:
        epoch = max((active.epoch for active in study.store.active_trials()), default=0)
        if epoch >= 2 and not snapshots:
            with engine.connect() as connection:
                snapshots.append(take_snapshot(connection))
        if epoch >= 6 and len(snapshots) == 1:
            with engine.begin() as connection:
                restore_snapshot(connection, snapshots[0])
            snapshots.append(snapshots[0])

    log.on_epoch = lose
    objective = log.watch(make_objective(configs[1]))
    bench.worker(study, configs[1], objective=objective, timings=heartbeat_timings()).run()
    assert len(snapshots) == 2
    assert ledger(study) == ledger(expected)
