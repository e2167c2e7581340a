"""Transactions about a trial: with a lost lease nothing is written."""

import pytest
from factories import PARAMS, SPACE, create_trial, expire_leases
from optuna.trial import TrialState

from hpo.storage.tables.leases import Checkpoint, LeaseLostError
from hpo.storage.trial_store import REASON, TrialOutcome

REPORTS = [(1, 0.1), (2, 0.2)]
CHECKPOINT = Checkpoint(2, 1.5, b"after step 2")
COMPLETE = TrialOutcome(TrialState.COMPLETE, 0.5, "reason")

WRITES = {
    "heartbeat": lambda store, lease: store.heartbeat(lease),
    "report": lambda store, lease: store.report(lease, REPORTS),
    "report with checkpoint": lambda store, lease: store.report(lease, REPORTS, CHECKPOINT),
    "checkpoint": lambda store, lease: store.report(lease, [], CHECKPOINT),
    "nothing": lambda store, lease: store.report(lease, []),
    "release": lambda store, lease: store.release(lease, REPORTS, CHECKPOINT),
    "pause": lambda store, lease: store.pause(lease, REPORTS, CHECKPOINT),
    "finish": lambda store, lease: store.finish(lease, COMPLETE, REPORTS, b"weights"),
}
RENEWALS = ["heartbeat", "report", "report with checkpoint", "checkpoint", "nothing"]


@pytest.fixture
def store(stored_study):
    return stored_study.store


@pytest.mark.parametrize("write", WRITES)
def test_lost_lease_writes_nothing(database, store, write):
    late = create_trial(store)
    expire_leases(database)
    successor = store.claim("worker_b")
    with pytest.raises(LeaseLostError):
        WRITES[write](store, late)
    trial = store.trials[0]
    assert (trial.state, trial.value, trial.intermediate_values, trial.user_attrs) == (TrialState.RUNNING, None, {}, {})
    assert store.refresh().paused == {}
    assert [(active.epoch, active.owned) for active in store.active_trials()] == [(0, True)]
    assert store.weights(0) is None
    store.heartbeat(successor)


@pytest.mark.parametrize("write", RENEWALS)
def test_write_renews_lease(database, store, write):
    lease = create_trial(store)
    expire_leases(database)
    WRITES[write](store, lease)
    assert store.claim("worker_b") is None
    assert store.active_trials()[0].epoch == (2 if "checkpoint" in write else 0)


def test_released_trial_keeps_reports_and_checkpoint(store):
    store.release(create_trial(store), REPORTS, CHECKPOINT)
    claimed = store.claim("worker_b")
    assert (claimed.epoch, claimed.checkpoint) == (2, b"after step 2")
    assert store.trials[0].intermediate_values == dict(REPORTS)


def test_finish_writes_last_reports(store):
    lease = create_trial(store)
    store.report(lease, REPORTS[:1])
    store.finish(lease, TrialOutcome.pruned(2, 0.2), REPORTS)
    trial = store.trials[0]
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 0.2, dict(REPORTS))
    assert trial.user_attrs == {REASON: "pruned at epoch 2"}
    with pytest.raises(LeaseLostError):
        store.finish(lease, TrialOutcome(TrialState.COMPLETE, 0.9))


def test_allocation_ends_with_budget(store):
    assert store.allocate("worker_a") is None
    assert store.raise_budget(2) == 2
    assert [store.allocate("worker_a").number, store.allocate("worker_b").number] == [0, 1]
    assert store.allocate("worker_a") is None
    assert store.raise_budget(1) == 2
    assert store.allocate("worker_a") is None
    assert [trial.params for trial in store.trials] == [{}, {}]
    assert len(store.active_trials()) == 2


def test_closed_budget_starts_no_other_trial(store):
    store.raise_budget(5)
    store.allocate("worker_a")
    assert store.close_budget() == 1
    assert store.allocate("worker_a") is None
    assert store.refresh().budget == 1


def test_trials_get_different_params(store):
    store.raise_budget(3)
    first, second, third = (store.allocate("worker_a") for _ in range(3))
    assert store.write_params(first, PARAMS, SPACE)
    assert not store.write_params(second, PARAMS, SPACE)
    assert store.trials[1].params == {}
    # The reply to the first write was lost.
    assert store.write_params(first, PARAMS, SPACE)
    assert store.write_params(third, PARAMS, SPACE, distinct=False)
    assert [trial.params for trial in store.trials] == [PARAMS, {}, PARAMS]


def test_params_need_the_lease(store):
    lease = create_trial(store, params={})
    store.release(lease, [])
    assert store.claim("worker_b") is not None
    with pytest.raises(LeaseLostError):
        store.write_params(lease, PARAMS, SPACE)
    assert store.trials[0].params == {}


def test_prune_paused_prunes_with_last_value(store):
    store.pause(create_trial(store), [(1, -0.5), (2, -0.25)], CHECKPOINT)
    store.prune_paused(store.refresh())
    trial = store.trials[0]
    assert (trial.state, trial.value) == (TrialState.PRUNED, -0.25)
    assert trial.user_attrs == {REASON: "pruned at epoch 2"}
    assert store.active_trials() == []


def test_prune_paused_spares_promoted_trial(store):
    store.pause(create_trial(store), REPORTS, CHECKPOINT)
    view = store.refresh()
    promoted = store.resume("worker_b", 0, 1)
    store.prune_paused(view)
    assert store.trials[0].state == TrialState.RUNNING
    store.heartbeat(promoted)


@pytest.mark.parametrize(("value", "state"), [(None, TrialState.FAIL), (-0.5, TrialState.PRUNED)])
def test_cut_short_with_value_is_pruned(value, state):
    assert TrialOutcome.cut_short(value, "timeout") == TrialOutcome(state, value, "timeout")
