"""What we write of a trial, and read, is what Optuna's own storage does."""

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from hpo.errors import StorageError
from hpo.storage import database as storage
from hpo.storage import leases
from hpo.storage import optuna_tables as records
from hpo.storage.leases import Checkpoint, Leases
from hpo.storage.trial_cache import TrialCache, TrialView

SPACE = {
    "learning_rate": FloatDistribution(1e-7, 1e-2, log=True),
    "hidden_size": IntDistribution(32, 400),
    "hidden_layers": CategoricalDistribution((1, 2, 3)),
}
TABLES = ["trials", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes"]
OWN_IDS = {"trial_id", "param_id", "trial_value_id", "trial_intermediate_value_id", "trial_user_attribute_id"}

accuracies = st.floats(0, 1)
points = st.fixed_dictionaries(
    {
        "learning_rate": st.floats(1e-7, 1e-2),
        "hidden_size": st.integers(32, 400),
        "hidden_layers": st.sampled_from([1, 2, 3]),
    }
)
endings = st.one_of(
    st.tuples(st.just(TrialState.COMPLETE), accuracies, st.just({})),
    st.tuples(st.just(TrialState.PRUNED), accuracies, st.just({"reason": "pruned at epoch 3, \u00e0 la carte"})),
    st.tuples(st.just(TrialState.FAIL), st.none(), st.just({"reason": 'crashed "3 times"'})),
)
lives = st.tuples(points, st.lists(st.tuples(st.integers(1, 5), accuracies), max_size=8), endings | st.none())


@pytest.fixture
def rdb(storage_url):
    url = storage.parse_url(storage_url)
    storage.check_reachable(url)
    with storage.creation_lock(url):
        rdb = storage.open_storage(url)
        leases.create_table(rdb.engine)
    yield rdb
    storage.close(rdb)


def new_study(rdb) -> int:
    study = optuna.create_study(storage=rdb, direction="maximize")
    return rdb.get_study_id_from_name(study.study_name)


def history_of(rdb, study_id) -> TrialCache:
    return TrialCache(rdb.engine, study_id, leases_of(rdb, study_id))


def leases_of(rdb, study_id) -> Leases:
    return Leases(rdb.engine, f"leases of {study_id}")


def write(rdb, study_id, number, life):
    params, reports, ending = life
    with rdb.engine.begin() as connection:
        trial_id = records.insert_trial(connection, study_id, number, params, SPACE)
    with rdb.engine.begin() as connection:
        records.report(connection, trial_id, list(dict(reports[:4]).items()))
    with rdb.engine.begin() as connection:
        records.report(connection, trial_id, list(dict(reports[4:]).items()))
        if ending is not None:
            state, value, attributes = ending
            assert records.end_trial(connection, trial_id, state, value, attributes)
    return trial_id


def write_with_optuna(rdb, study_id, life):
    params, reports, ending = life
    trial = create_trial(state=TrialState.RUNNING, params=params, distributions=SPACE)
    trial_id = rdb.create_new_trial(study_id, trial)
    for epoch, accuracy in reports:
        rdb.set_trial_intermediate_value(trial_id, epoch, accuracy)
    if ending is not None:
        state, value, attributes = ending
        for key, text in attributes.items():
            rdb.set_trial_user_attr(trial_id, key, text)
        rdb.set_trial_state_values(trial_id, state, None if value is None else [value])


def rows(rdb, study_id):
    """All that the database holds of a study's trials, but for ids and times, of which only the presence is told."""
    with rdb.engine.connect() as connection:
        found = []
        for table in TABLES:
            joined = "" if table == "trials" else " JOIN trials USING (trial_id)"
            query = f"SELECT * FROM {table}{joined} WHERE study_id = {study_id}"
            for row in connection.exec_driver_sql(query).mappings():
                kept = {key: value for key, value in row.items() if key not in OWN_IDS | {"study_id"}}
                times = {key: value is not None for key, value in kept.items() if key.startswith("datetime")}
                found.append((table, *map(str, sorted((kept | times).items()))))
    return sorted(found)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(lives, min_size=1, max_size=4))
def test_the_same_rows_are_written(rdb, written):
    ours, optunas = new_study(rdb), new_study(rdb)
    for number, life in enumerate(written):
        write(rdb, ours, number, life)
        write_with_optuna(rdb, optunas, life)
    assert rows(rdb, ours) == rows(rdb, optunas)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(lives, max_size=3), then=st.lists(lives, max_size=3), late=endings)
def test_the_same_trials_are_read_however_far_they_were_known(rdb, first, then, late):
    study_id = new_study(rdb)
    history = history_of(rdb, study_id)
    ids = [write(rdb, study_id, number, life) for number, life in enumerate(first)]
    assert history.read() == TrialView(rdb.get_all_trials(study_id), {})
    for trial_id, (_, _, ending) in zip(ids, first, strict=True):
        if ending is None:
            with rdb.engine.begin() as connection:
                records.report(connection, trial_id, [(9, 0.5)])
                records.end_trial(connection, trial_id, *late)
    for number, life in enumerate(then, start=len(first)):
        write(rdb, study_id, number, life)
    assert history.read() == TrialView(rdb.get_all_trials(study_id), {})
    assert history.read() == TrialView(rdb.get_all_trials(study_id), {})


def test_a_trial_that_has_ended_is_read_once(rdb):
    study_id = new_study(rdb)
    history = history_of(rdb, study_id)
    life = ({"learning_rate": 1e-3, "hidden_size": 40, "hidden_layers": 1}, [(1, 0.5)], None)
    write(rdb, study_id, 0, (*life[:2], (TrialState.COMPLETE, 0.5, {})))
    running = write(rdb, study_id, 1, life)
    ended = history.read().trials[0]
    asked = []
    event.listen(rdb.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2:4]))
    assert history.read().trials[0] is ended
    assert "trial_params" not in str(asked)
    with rdb.engine.begin() as connection:
        records.end_trial(connection, running, TrialState.PRUNED, 0.5, {})
    history.read()
    asked.clear()
    history.read()
    assert len(asked) == 3  # what is paused, what is new, and whether the study is there


def test_a_paused_trial_is_read_again_only_after_it_was_promoted(rdb):
    study_id = new_study(rdb)
    ours, history = leases_of(rdb, study_id), history_of(rdb, study_id)
    with rdb.engine.begin() as connection:
        trial_id = records.insert_trial(connection, study_id, 0, {}, {})
        lease = ours.open(connection, 0, trial_id, "worker_a")
    for attempt in (1, 2):
        assert history.read().paused == {}
        with rdb.engine.begin() as connection:
            ours.hold(connection, lease, Checkpoint(attempt, 1.5, b"state"))
            ours.pause(connection, lease)
            records.report(connection, trial_id, [(attempt, 0.5)])
        known = history.read()
        assert known.paused == {0: attempt}
        assert known.trials == rdb.get_all_trials(study_id)
        assert attempt in known.trials[0].intermediate_values
        assert history.read().trials[0] is known.trials[0]
        lease = ours.promote("worker_b", 0, attempt)
        assert history.read().paused == {}
        with rdb.engine.begin() as connection:
            records.report(connection, trial_id, [(9, attempt / 10)])
        assert history.read().trials[0].intermediate_values[9] == attempt / 10


def test_who_did_not_look_while_a_trial_went_on_sees_it_paused_where_it_is(rdb):
    study_id = new_study(rdb)
    ours, history = leases_of(rdb, study_id), history_of(rdb, study_id)
    with rdb.engine.begin() as connection:
        trial_id = records.insert_trial(connection, study_id, 0, {}, {})
        ours.pause(connection, ours.open(connection, 0, trial_id, "worker_a"))
    assert history.read().paused == {0: 1}
    lease = ours.promote("worker_b", 0, 1)
    with rdb.engine.begin() as connection:
        ours.pause(connection, lease)
        records.report(connection, trial_id, [(3, 0.5)])
    assert history.read() == TrialView(rdb.get_all_trials(study_id), {0: 2})
    assert history.read().trials[0].intermediate_values == {3: 0.5}


def test_a_paused_trial_that_somebody_else_has_ended_has_ended(rdb):
    study_id = new_study(rdb)
    ours, history = leases_of(rdb, study_id), history_of(rdb, study_id)
    with rdb.engine.begin() as connection:
        trial_id = records.insert_trial(connection, study_id, 0, {}, {})
        ours.pause(connection, ours.open(connection, 0, trial_id, "worker_a"))
    assert history.read().paused == {0: 1}
    assert history.read().paused == {0: 1}
    with rdb.engine.begin() as connection:
        assert ours.close_paused(connection, 0, attempt=1)
        records.end_trial(connection, trial_id, TrialState.PRUNED, 0.5, {"reason": "why"})
    assert history.read() == TrialView(rdb.get_all_trials(study_id), {})
    assert history.read().trials[0].state == TrialState.PRUNED


def test_a_history_is_of_one_study(rdb):
    study_id = new_study(rdb)
    write(rdb, new_study(rdb), 0, ({"learning_rate": 1e-3, "hidden_size": 40, "hidden_layers": 1}, [], None))
    assert history_of(rdb, study_id).read() == TrialView([], {})


def test_a_study_that_is_gone_has_no_history(rdb):
    with pytest.raises(StorageError, match="was deleted"):
        history_of(rdb, new_study(rdb) + 1).read()


@pytest.mark.parametrize("number", [0, 2])
def test_a_number_that_is_not_the_next_is_refused(rdb, number):
    study_id = new_study(rdb)
    rdb.create_new_trial(study_id)
    with rdb.engine.connect() as connection:
        assert records.insert_trial(connection, study_id, number, {}, {}) is None
        connection.rollback()
    assert len(rdb.get_all_trials(study_id)) == 1


def test_a_trial_ends_once(rdb):
    study_id = new_study(rdb)
    trial_id = write(rdb, study_id, 0, ({"learning_rate": 1e-3, "hidden_size": 40, "hidden_layers": 1}, [], None))
    with rdb.engine.begin() as connection:
        assert records.end_trial(connection, trial_id, TrialState.COMPLETE, 0.5, {})
        assert not records.end_trial(connection, trial_id, TrialState.PRUNED, 0.25, {})
    assert rdb.get_trial(trial_id).value == 0.5
