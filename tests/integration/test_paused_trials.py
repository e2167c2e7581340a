"""Paused trials in the trial store: promotions, claims, and the fence of a pause."""

import threading

import pytest
from factories import create_trial, execute, expire_leases, open_study
from optuna.trial import TrialState

from hpo.storage.tables.leases import ActiveTrial, Checkpoint, InterruptionStats, LeaseLostError
from hpo.storage.trial_store import REASON, TrialOutcome

pytestmark = pytest.mark.postgresql_is_slow

REPORTS = [(1, 0.1), (2, 0.2)]
CHECKPOINT = Checkpoint(2, 1.5, b"two")
LATER = Checkpoint(6, 2.0, b"six")
COMPLETE = TrialOutcome(TrialState.COMPLETE, 0.5)


@pytest.fixture
def store(stored_study):
    return stored_study.store


def pause_trial(store, number=0):
    """Create a trial and pause it after step 2; return its lease."""
    lease = create_trial(store, number)
    store.report(lease, REPORTS[:1])
    store.pause(lease, REPORTS[1:], CHECKPOINT)
    return lease


def contents(store):
    trials = [(t.number, t.state, t.params, t.intermediate_values, t.value) for t in store.trials]
    return trials, store.refresh().paused, store.active_trials()


def test_paused_trial_is_running_with_reports_and_checkpoint(store):
    lease = pause_trial(store)
    view = store.refresh()
    assert view.paused == {0: lease.attempt}
    assert view.trials[0].state == TrialState.RUNNING
    assert view.trials[0].intermediate_values == dict(REPORTS)
    assert store.active_trials() == [ActiveTrial(0, 2, 1, owned=False)]
    promoted = store.resume("worker_b", 0, lease.attempt)
    assert (promoted.attempt, promoted.owner, promoted.epoch, promoted.seconds) == (2, "worker_b", 2, 1.5)
    assert promoted.checkpoint == b"two"
    assert (promoted.crashes_at_same_step, promoted.crashes_since_progress) == (0, 0)
    assert store.refresh().paused == {}
    assert store.active_trials() == [ActiveTrial(0, 2, 2, owned=True, promoted=True)]


def test_paused_trial_is_not_claimed(database, store):
    pause_trial(store)
    expire_leases(database)
    assert store.claim("worker_a") is None
    assert store.claim("worker_b") is None
    assert store.record_death("worker_a", "killed", 2) == []
    assert store.release_all("worker_a") == []


def test_second_promotion_is_refused(store):
    lease = pause_trial(store)
    assert store.resume("worker_b", 0, lease.attempt) is not None
    assert store.resume("worker_c", 0, lease.attempt) is None
    assert store.claim("worker_c") is None


@pytest.mark.parametrize("attempts_ago", [1, -1])
def test_promotion_of_other_pause_is_refused(store, attempts_ago):
    first = pause_trial(store)
    second = store.resume("worker_b", 0, first.attempt)
    store.pause(second, [(6, 0.6)], LATER)
    assert store.resume("worker_c", 0, second.attempt - attempts_ago) is None
    assert store.resume("worker_c", 0, second.attempt).checkpoint == b"six"


def test_parallel_workers_promote_each_trial_once(database, store):
    for number in range(3):
        pause_trial(store, number)
    promoted, studies = [], [open_study(database) for _ in range(4)]

    def promote(worker):
        leases = [studies[worker].store.resume(f"worker {worker}", number, 1) for number in range(3)]
        promoted.extend(lease.number for lease in leases if lease is not None)

    threads = [threading.Thread(target=promote, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for study in studies:
        study.close()
    assert sorted(promoted) == [0, 1, 2]


def test_running_trial_is_not_promoted(store):
    lease = create_trial(store)
    assert store.resume("worker_b", 0, lease.attempt) is None
    store.release(lease, [], CHECKPOINT)
    assert store.resume("worker_b", 0, lease.attempt) is None


@pytest.mark.parametrize("is_promoted", [False, True])
def test_late_owner_of_paused_trial_writes_nothing(store, is_promoted):
    late = pause_trial(store)
    if is_promoted:
        store.resume("worker_b", 0, late.attempt)
    before = contents(store)
    nine = Checkpoint(9, 9.0, b"nine")
    for write in (
        lambda: store.report(late, [(9, 0.9)], nine),
        lambda: store.report(late, []),
        lambda: store.pause(late, [(9, 0.9)], nine),
        lambda: store.release(late, [(9, 0.9)], nine),
        lambda: store.finish(late, COMPLETE, (), b"w"),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert contents(store) == before


def test_lost_lease_pauses_nothing(database, store):
    late = create_trial(store)
    expire_leases(database)
    assert store.claim("worker_b") is not None
    with pytest.raises(LeaseLostError):
        store.pause(late, REPORTS, CHECKPOINT)
    assert store.refresh().paused == {}
    assert store.trials[0].intermediate_values == {}


def test_promotion_is_not_interruption(store):
    lease = pause_trial(store)
    assert store.interruption_stats() == InterruptionStats(0, 0)
    lease = store.resume("worker_b", 0, lease.attempt)
    assert store.interruption_stats() == InterruptionStats(0, 0)
    store.pause(lease, [(6, 0.6)], LATER)
    store.resume("worker_b", 0, lease.attempt)
    store.record_death("worker_b", "killed", 7)
    store.claim("worker_b")
    assert store.interruption_stats() == InterruptionStats(1, 1)


def test_prune_paused_prunes_at_last_report(database, store):
    lease, finished = pause_trial(store), create_trial(store, 1)
    store.finish(finished, COMPLETE)
    store.prune_paused(store.refresh())
    trial = store.trials[0]
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 0.2, dict(REPORTS))
    assert trial.user_attrs == {REASON: "pruned at epoch 2"}
    assert store.refresh().paused == {}
    assert store.active_trials() == []
    assert store.resume("worker_b", 0, lease.attempt) is None
    assert execute(database, "SELECT COUNT(*) FROM hpo_checkpoints") == [(0,)]


def test_prune_paused_spares_promoted_trials(store):
    for number in range(3):
        pause_trial(store, number)
    view = store.refresh()
    promoted = store.resume("worker_b", 1, 1)
    again = store.resume("worker_c", 2, 1)
    store.pause(again, [(6, 0.6)], LATER)
    store.prune_paused(view)
    assert [trial.state for trial in store.trials] == [TrialState.PRUNED, TrialState.RUNNING, TrialState.RUNNING]
    store.report(promoted, [(3, 0.3)], Checkpoint(3, 2.0, b"three"))
    assert store.refresh().paused == {2: 2}
    store.prune_paused(view)
    assert [trial.state for trial in store.trials][1:] == [TrialState.RUNNING] * 2


@pytest.mark.parametrize("is_released", [False, True])
def test_prune_paused_spares_trial_that_is_not_paused(store, is_released):
    lease = create_trial(store)
    store.report(lease, REPORTS)
    if is_released:
        store.release(lease, [], CHECKPOINT)
    # The view of a worker that saw an older pause.
    store.prune_paused(store.refresh()._replace(paused={0: lease.attempt}))
    assert store.trials[0].state == TrialState.RUNNING
    assert store.active_trials() != []
