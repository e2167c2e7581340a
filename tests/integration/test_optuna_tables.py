"""Comparison of the rows that hpo writes with the rows of Optuna's own storage."""

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from trial_histories import PARAMS, SPACE, UTC_CLOCK, histories, write_trial

from hpo.storage.tables import optuna_tables

TABLES = ["trials", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes"]
ID_COLUMNS = {
    "study_id",
    "trial_id",
    "param_id",
    "trial_value_id",
    "trial_intermediate_value_id",
    "trial_user_attribute_id",
}


def new_study(rdb) -> int:
    study = optuna.create_study(storage=rdb, direction="maximize")
    return rdb.get_study_id_from_name(study.study_name)


def write_with_optuna(rdb, study_id, history):
    params, reports, ending = history
    trial = create_trial(state=TrialState.RUNNING, params=params, distributions=SPACE)
    trial_id = rdb.create_new_trial(study_id, trial)
    for step, value in reports:
        rdb.set_trial_intermediate_value(trial_id, step, value)
    if ending is not None:
        state, value, attributes = ending
        for key, text in attributes.items():
            rdb.set_trial_user_attr(trial_id, key, text)
        rdb.set_trial_state_values(trial_id, state, None if value is None else [value])


def read_rows(rdb, study_id):
    """Return all columns of a study's trials except ids. A time is replaced by its presence."""
    with rdb.engine.connect() as connection:
        found = []
        for table in TABLES:
            joined = "" if table == "trials" else " JOIN trials USING (trial_id)"
            query = f"SELECT * FROM {table}{joined} WHERE study_id = {study_id}"
            for row in connection.exec_driver_sql(query).mappings():
                kept = {key: value for key, value in row.items() if key not in ID_COLUMNS}
                times = {key: value is not None for key, value in kept.items() if key.startswith("datetime")}
                found.append((table, *map(str, sorted((kept | times).items()))))
    return sorted(found)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(histories, min_size=1, max_size=4))
def test_rows_equal_optunas_rows(rdb, written):
    by_hpo, by_optuna = new_study(rdb), new_study(rdb)
    for number, history in enumerate(written):
        write_trial(rdb, by_hpo, number, history)
        write_with_optuna(rdb, by_optuna, history)
    assert read_rows(rdb, by_hpo) == read_rows(rdb, by_optuna)


@pytest.mark.parametrize("existing", [0, 1, 3])
def test_next_number_follows_newest_trial(rdb, existing):
    study_id = new_study(rdb)
    for _ in range(existing):
        rdb.create_new_trial(study_id)
    with rdb.engine.begin() as connection:
        assert optuna_tables.next_number(connection, study_id) == existing


def test_trial_ends_once(rdb):
    study_id = new_study(rdb)
    trial_id = write_trial(rdb, study_id, 0, (PARAMS, [], None))
    with rdb.engine.begin() as connection:
        assert optuna_tables.end_trial(connection, trial_id, TrialState.COMPLETE, [0.5], {}, UTC_CLOCK.now())
        assert not optuna_tables.end_trial(connection, trial_id, TrialState.PRUNED, [0.25], {}, UTC_CLOCK.now())
    assert rdb.get_trial(trial_id).value == 0.5
