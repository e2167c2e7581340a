"""Comparison of cached trials with the trials that Optuna's own storage reads."""

import itertools

import pytest
from factories import create_trial, make_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from sqlalchemy import event
from trial_histories import PARAMS, UTC_CLOCK, endings, histories, optunas_trials, write_trial

from hpo.errors import StorageError
from hpo.storage.tables import optuna_tables
from hpo.storage.tables.leases import Checkpoint
from hpo.storage.trial_cache import TrialView
from hpo.storage.trial_store import TrialOutcome

numbers = itertools.count()


@pytest.fixture
def store(rdb):
    return make_store(rdb)


@pytest.fixture
def study_id(rdb, store):
    return rdb.get_study_id_from_name("s")


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(histories, max_size=3), then=st.lists(histories, max_size=3), late=endings)
def test_refresh_equals_optunas_trials(rdb, first, then, late):
    name = f"study {next(numbers)}"
    store, study_id = make_store(rdb, name), rdb.get_study_id_from_name(name)
    ids = [write_trial(rdb, study_id, number, history) for number, history in enumerate(first)]
    assert store.refresh() == TrialView(optunas_trials(rdb, study_id), {})
    for trial_id, (_, _, ending) in zip(ids, first, strict=True):
        if ending is None:
            with rdb.engine.begin() as connection:
                optuna_tables.report(connection, trial_id, [(9, 0.5)])
                state, value, attributes = late
                final = [] if value is None else [value]
                optuna_tables.end_trial(connection, trial_id, state, final, attributes, UTC_CLOCK.now())
    for number, history in enumerate(then, start=len(first)):
        write_trial(rdb, study_id, number, history)
    assert store.refresh() == TrialView(optunas_trials(rdb, study_id), {})
    assert store.refresh() == TrialView(optunas_trials(rdb, study_id), {})


def test_finished_trial_is_read_once(rdb, store, study_id):
    write_trial(rdb, study_id, 0, (PARAMS, [(1, 0.5)], (TrialState.COMPLETE, 0.5, {})))
    running = write_trial(rdb, study_id, 1, (PARAMS, [(1, 0.5)], None))
    finished = store.trials[0]
    statements = []
    event.listen(rdb.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2:4]))
    assert store.trials[0] is finished
    assert "trial_params" not in str(statements)
    with rdb.engine.begin() as connection:
        optuna_tables.end_trial(connection, running, TrialState.PRUNED, [0.5], {}, UTC_CLOCK.now())
    store.refresh()
    statements.clear()
    store.refresh()
    # The paused trials and the changed trials.
    assert len(statements) == 2


def test_paused_trial_is_read_after_promotion(rdb, store, study_id):
    lease = create_trial(store)
    for attempt in (1, 2):
        assert store.refresh().paused == {}
        store.pause(lease, [(attempt, 0.5)], Checkpoint(attempt, 1.5, b"state"))
        view = store.refresh()
        assert view.paused == {0: attempt}
        assert view.trials == optunas_trials(rdb, study_id)
        assert attempt in view.trials[0].intermediate_values
        assert store.trials[0] is view.trials[0]
        lease = store.resume("worker_b", 0, attempt)
        assert store.refresh().paused == {}
        store.report(lease, [(9, attempt / 10)])
        assert store.trials[0].intermediate_values[9] == attempt / 10


def test_missed_promotion_is_read_later(rdb, store, study_id):
    checkpoint = Checkpoint(1, 1.5, b"state")
    store.pause(create_trial(store), [], checkpoint)
    assert store.refresh().paused == {0: 1}
    # Another process promotes the trial.
    other = make_store(rdb)
    other.pause(other.resume("worker_b", 0, 1), [(3, 0.5)], checkpoint)
    assert store.refresh() == TrialView(optunas_trials(rdb, study_id), {0: 2}, budget=1)
    assert store.trials[0].intermediate_values == {3: 0.5}


def test_paused_trial_ended_elsewhere_is_finished(rdb, store, study_id):
    store.pause(create_trial(store), [(1, 0.5)], Checkpoint(1, 1.5, b"state"))
    assert store.refresh().paused == {0: 1}
    assert store.refresh().paused == {0: 1}
    other = make_store(rdb)
    other.prune_paused(other.refresh())
    assert store.refresh() == TrialView(optunas_trials(rdb, study_id), {}, budget=1)
    assert store.trials[0].state == TrialState.PRUNED


def test_running_trial_ended_elsewhere_is_finished(rdb, store):
    lease = create_trial(store)
    assert store.trials[0].state == TrialState.RUNNING
    make_store(rdb).finish(lease, TrialOutcome(TrialState.COMPLETE, -0.5))
    assert store.trials[0].value == -0.5


def test_refresh_reads_one_study(rdb, store):
    create_trial(make_store(rdb, "other"))
    assert store.refresh() == TrialView([], {})


def test_refresh_deleted_study_raises(rdb, store, study_id):
    rdb.delete_study(study_id)
    with pytest.raises(StorageError, match="was deleted"):
        store.refresh()
