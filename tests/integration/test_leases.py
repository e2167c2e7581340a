"""Claims, renewals, fences, crash accounting and weight retention of single trials."""

import threading

import pytest
from factories import HOUR_S, create_trial, execute, expire_leases, make_database, make_store, open_storage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from hpo.storage.database.connection import StorageTimings, close
from hpo.storage.database.retry import is_outage
from hpo.storage.tables import schema
from hpo.storage.tables.leases import Checkpoint, InterruptionStats, LeaseLostError
from hpo.storage.trial_store import TrialOutcome


@pytest.fixture
def store(rdb):
    return make_store(rdb)


def after(epoch: int) -> Checkpoint:
    return Checkpoint(epoch, 0.5 * epoch, b"after epoch %d" % epoch)


def save(store, lease, epoch: int) -> None:
    store.report(lease, [], after(epoch))


def finish(store, lease, value: float = 0.5, weights: bytes = b"weights") -> None:
    store.finish(lease, TrialOutcome(TrialState.COMPLETE, value), weights=weights)


def crash(store, epoch: int):
    """Record a crash of worker_a in the epoch after this one, and claim its trial again."""
    assert store.record_death("worker_a", "crash", epoch) == [0]
    claimed = store.claim("worker_a")
    assert claimed is not None
    return claimed


# Creation and claims


def test_create_inserts_trial_and_lease(store, rdb):
    lease = create_trial(store)
    assert (lease.number, lease.attempt, lease.owner) == (0, 1, "worker_a")
    assert rdb.get_trial(lease.trial_id).number == 0
    assert [(active.number, active.owned) for active in store.active_trials()] == [(0, True)]


def test_allocations_of_many_workers_are_unique(database, rdb, store):
    store.raise_budget(20)
    stores = {f"worker {number}": open_storage(database) for number in range(4)}

    def work(owner: str) -> None:
        own = make_store(stores[owner])
        while own.allocate(owner) is not None:
            pass

    threads = [threading.Thread(target=work, args=(owner,)) for owner in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for opened in stores.values():
        close(opened)
    assert [trial.number for trial in store.trials] == list(range(20))
    assert [active.number for active in store.active_trials()] == list(range(20))


def test_held_trial_is_not_claimed(store):
    create_trial(store)
    assert store.claim("worker_b") is None


@pytest.mark.parametrize("set_back_s", [HOUR_S, 60.0, 365 * 24 * HOUR_S])
def test_lease_from_before_clock_was_set_back_is_claimed(database, store, set_back_s):
    lease = create_trial(store)
    execute(database, f"UPDATE hpo_leases SET expires = expires + {set_back_s}")
    assert [active.owned for active in store.active_trials()] == [False]
    claimed = store.claim("worker_b")
    assert (claimed.number, claimed.attempt) == (0, 2)
    with pytest.raises(LeaseLostError):
        store.heartbeat(lease)


def test_heartbeat_after_clock_was_set_back_keeps_trial(database, store):
    lease = create_trial(store)
    execute(database, f"UPDATE hpo_leases SET expires = expires + {HOUR_S}")
    store.heartbeat(lease)
    assert store.claim("worker_b") is None
    assert [active.owned for active in store.active_trials()] == [True]


def test_small_correction_of_clock_ends_no_lease(database, store):
    create_trial(store)
    execute(database, "UPDATE hpo_leases SET expires = expires + 0.5")
    assert store.claim("worker_b") is None


def test_server_start_in_future_gives_no_grace(postgres, monkeypatch):
    # The clock was set back by an hour while the server was running.
    monkeypatch.setitem(schema.ServerStart._compiler_dispatcher.specs, "postgresql", _start_in_future)
    database = make_database(postgres.new_database(), restart_grace_s=60.0)
    rdb = open_storage(database)
    store = make_store(rdb, timings=database.timings)
    create_trial(store)
    expire_leases(database)
    assert store.claim("worker_b") is not None
    close(rdb)


def _start_in_future(*_: object, **__: object) -> str:
    return f"(CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION) + {HOUR_S})"


def test_reason_of_another_client_is_replaced(rdb, store):
    lease = create_trial(store)
    rdb.set_trial_user_attr(lease.trial_id, "reason", "a note")
    store.finish(lease, TrialOutcome(TrialState.FAIL, None, "diverged"))
    assert store.trials[0].user_attrs == {"reason": "diverged"}


def test_expired_trial_is_claimed_once(database, store):
    lease = create_trial(store)
    save(store, lease, 3)
    expire_leases(database)
    claimed = store.claim("worker_b")
    assert claimed is not None
    assert (claimed.number, claimed.trial_id, claimed.attempt) == (0, lease.trial_id, 2)
    assert (claimed.epoch, claimed.seconds, claimed.checkpoint) == (3, 1.5, b"after epoch 3")
    assert store.claim("worker_c") is None


def test_renewed_trial_is_not_claimed(database, store):
    lease = create_trial(store)
    expire_leases(database)
    store.heartbeat(lease)
    assert store.claim("worker_b") is None


def test_fence_rejects_late_owner(database, store, rdb):
    late = create_trial(store)
    expire_leases(database)
    successor = store.claim("worker_b")
    assert successor is not None
    with pytest.raises(LeaseLostError):
        save(store, late, 9)
    with pytest.raises(LeaseLostError):
        store.release(late, [], after(9))
    with pytest.raises(LeaseLostError):
        store.report(late, [(1, 0.1)])
    with pytest.raises(LeaseLostError):
        finish(store, late, 0.1)
    trial = rdb.get_trial(late.trial_id)
    assert trial.state == TrialState.RUNNING
    assert trial.intermediate_values == {}
    store.report(successor, [(1, 0.2)])
    assert rdb.get_trial(late.trial_id).intermediate_values == {1: 0.2}


def test_released_trial_is_claimed_without_crash(store):
    store.release(create_trial(store), [], after(7))
    assert [(active.epoch, active.owned) for active in store.active_trials()] == [(7, False)]
    claimed = store.claim("worker_b")
    assert claimed is not None
    assert claimed.checkpoint == b"after epoch 7"
    assert (claimed.crashes_at_same_step, claimed.crashes_since_progress) == (0, 0)


def test_release_without_checkpoint_keeps_last(store):
    lease = create_trial(store)
    save(store, lease, 3)
    store.release(lease, [])
    claimed = store.claim("worker_b")
    assert claimed is not None
    assert claimed.checkpoint == b"after epoch 3"


def test_claim_after_lost_reply_repeats(store):
    store.release(create_trial(store, 0), [])
    store.release(create_trial(store, 1, "worker_b"), [])
    first = store.claim("worker_c")
    again = store.claim("worker_c")
    assert first is not None
    assert again is not None
    assert (again.number, again.attempt, again.crashes_since_progress) == (first.number, first.attempt + 1, 0)
    with pytest.raises(LeaseLostError):
        store.heartbeat(first)


def test_restart_grace_delays_claim(database, rdb):
    store = make_store(rdb, timings=StorageTimings(restart_grace_s=1e9))
    create_trial(store)
    expire_leases(database)
    # A SQLite file has no server that restarts.
    assert (store.claim("worker_b") is None) == (not database.is_sqlite)


def test_lease_length_is_parameter(rdb):
    store = make_store(rdb, timings=StorageTimings(lease_s=-1.0, restart_grace_s=0.0))
    create_trial(store)
    assert store.claim("worker_b") is not None


def test_frozen_transaction_loses_locks(postgres):
    database = make_database(postgres.new_database(), idle_in_transaction_timeout_s=0.1)
    rdb = open_storage(database)
    store = make_store(rdb)
    store.release(create_trial(store), [])
    with pytest.raises(DBAPIError) as caught, rdb.engine.begin() as frozen:
        frozen.exec_driver_sql("SELECT * FROM hpo_leases FOR UPDATE")
        while store.claim("worker_b") is None:
            pass
        frozen.exec_driver_sql("SELECT 1")
    assert is_outage(caught.value)
    close(rdb)


def test_other_study_has_other_leases(database, store, rdb):
    create_trial(store)
    expire_leases(database)
    assert make_store(rdb, "other").claim("worker_b") is None


# Crash accounting


def test_death_releases_trial_and_counts_crash(store):
    create_trial(store)
    assert store.record_death("worker_a", "killed by SIGKILL", epoch=4) == [0]
    claimed = store.claim("worker_b")
    assert claimed is not None
    assert (claimed.crashes_at_same_step, claimed.crashes_since_progress) == (1, 1)
    assert claimed.error == "killed by SIGKILL"


def test_release_all_counts_no_crash(store):
    create_trial(store)
    assert store.release_all("worker_a") == [0]
    claimed = store.claim("worker_b")
    assert claimed is not None
    assert (claimed.crashes_at_same_step, claimed.crashes_since_progress) == (0, 0)


def test_crashes_at_same_step_ignore_checkpoints(store):
    lease = create_trial(store)
    crashes = []
    for epoch in (0, 8, 9):
        save(store, lease, epoch)
        lease = crash(store, epoch=9)
        crashes.append(lease.crashes_at_same_step)
    assert crashes == [1, 2, 3]


def test_crashes_at_other_steps_start_over(store):
    create_trial(store)
    assert [crash(store, epoch).crashes_at_same_step for epoch in (4, 3, 4, 4, 5)] == [1, 1, 1, 2, 1]


def test_crashes_since_progress_end_with_progress(database, store):
    create_trial(store)
    assert [crash(store, epoch).crashes_since_progress for epoch in (4, 3)] == [1, 2]
    expire_leases(database)
    lease = store.claim("worker_b")
    assert lease is not None
    assert (lease.crashes_since_progress, lease.crashes_at_same_step) == (3, 1)
    save(store, lease, 0)
    store.release_all("worker_b")
    lease = store.claim("worker_a")
    assert lease is not None
    assert lease.crashes_since_progress == 3
    save(store, lease, 1)
    assert crash(store, epoch=2).crashes_since_progress == 1


def test_interruption_stats_count_lost_epochs(store):
    assert store.interruption_stats() == InterruptionStats(resumed=0, epochs_lost=0)
    lease = create_trial(store)
    save(store, lease, 3)
    lease = crash(store, epoch=7)
    save(store, lease, 6)
    late = crash(store, epoch=6)
    # No other worker has claimed the trial since.
    store.add_epochs_lost(late, 7)
    store.release(late, [])
    assert store.claim("worker_b") is not None
    store.add_epochs_lost(late, 5)
    assert store.interruption_stats() == InterruptionStats(resumed=3, epochs_lost=9)


# Ends


def test_finished_trial_is_not_claimed(database, store):
    finish(store, create_trial(store))
    expire_leases(database)
    assert store.claim("worker_b") is None
    assert store.active_trials() == []


def test_failed_finish_keeps_lease(store, rdb):
    lease = create_trial(store)

    def fail(*_: object) -> None:
        raise ConnectionError("the connection was cut before the commit")

    event.listen(rdb.engine, "commit", fail)
    with pytest.raises(ConnectionError):
        finish(store, lease)
    event.remove(rdb.engine, "commit", fail)
    assert rdb.get_trial(lease.trial_id).state == TrialState.RUNNING
    store.heartbeat(lease)


def test_finish_deletes_checkpoint(store, rdb):
    lease = create_trial(store)
    save(store, lease, 3)
    finish(store, lease)
    with rdb.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM hpo_checkpoints").scalar_one() == 0


# Weight retention


@pytest.mark.parametrize("shift", [0.0, -1.0])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_best_trials_keep_weights(rdb, order, shift):
    store = make_store(rdb, kept_weights=2)
    values = [0.5, 0.9, 0.9, 0.7]
    leases = [create_trial(store, number) for number in range(4)]
    for number in order:
        finish(store, leases[number], values[number] + shift, b"weights of %d" % number)
    assert [store.weights(number) for number in range(4)] == [None, b"weights of 1", b"weights of 2", None]
    assert store.retained_trials() == [1, 2]


def test_missing_weights_are_not_retained(store, rdb):
    for number, value in enumerate([0.5, 0.9, 0.7]):
        finish(store, create_trial(store, number), value)
    # A study of an earlier version kept the weights of its best trial only.
    with rdb.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE hpo_leases SET weights = NULL WHERE number != 1")
    assert store.retained_trials() == [1]
    finish(store, create_trial(store, 3), 0.6)
    assert store.retained_trials() == [1, 3]
