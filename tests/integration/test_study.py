"""Creation, loading and comparison of studies."""

import optuna
import pytest
from factories import create_trial, make_storage_config, open_study
from optuna.trial import TrialState
from optuna.trial import create_trial as frozen_trial

from benchmarks.postgres import free_port
from hpo.errors import StorageError, StudyMismatchError
from hpo.storage.database.connection import Database, close
from hpo.storage.study import best_trial, count_finished, is_finished, load_study
from hpo.storage.trial_store import TrialOutcome


@pytest.fixture
def open_one(database):
    """Return a function that opens a study until the end of the test."""
    opened = []

    def open_one(fingerprint: str = "data", **study: object):
        opened.append(open_study(database, make_storage_config(**study), fingerprint))
        return opened[-1]

    yield open_one
    for study in opened:
        study.close()


def test_second_open_finds_same_study(open_one):
    first, second = open_one(), open_one()
    create_trial(first.store)
    assert len(second.trials) == 1
    assert (second.name, second.database) == (first.name, first.database)


def test_budget_may_differ(open_one):
    create_trial(open_one().store)
    assert len(open_one(trials=20).trials) == 1


def test_changed_settings_are_listed(open_one):
    create_trial(open_one().store)
    with pytest.raises(StudyMismatchError) as caught:
        open_one(seed=1, sampler="random")
    assert "study.sampler (was tpe, is random), study.seed (was 0, is 1)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_data_are_refused(open_one):
    create_trial(open_one("these").store)
    with pytest.raises(StudyMismatchError, match=r"the data \(were these, are those\)"):
        open_one("those")


def test_changed_settings_without_trials_are_refused(open_one):
    open_one()
    with pytest.raises(StudyMismatchError):
        open_one(seed=1)


def test_check_same_settings_compares_data(open_one):
    study = open_one("these")
    study.check_same_settings(make_storage_config(), "these")
    with pytest.raises(StudyMismatchError):
        study.check_same_settings(make_storage_config(), "those")


def in_place(dataset):
    config = make_storage_config()
    return config.model_copy(update={"data": config.data.model_copy(update={"dataset": dataset})})


@pytest.mark.parametrize("place", ["./own.csv", "/elsewhere/other.csv", "moved/own.CSV"])
def test_place_of_data_may_differ(database, place):
    with open_study(database, in_place("own.csv"), "these") as study:
        create_trial(study.store)
    with open_study(database, in_place(place), "these") as study:
        assert len(study.trials) == 1
    with pytest.raises(StudyMismatchError, match=r"data\.dataset .*the data \(were these, are those\)"):
        open_study(database, in_place(place), "those")


@pytest.mark.parametrize("attributes", [0, 1, 2, 3])
def test_crashed_creation_is_repeated(open_one, monkeypatch, attributes):
    remaining = iter(range(attributes))
    set_user_attr = optuna.Study.set_user_attr

    def crash(study, key, value):
        if next(remaining, None) is None:
            raise ConnectionError("killed")
        set_user_attr(study, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_user_attr", crash)
        with pytest.raises(ConnectionError):
            open_one("these")
    open_one("those", seed=1)
    with pytest.raises(StudyMismatchError):
        open_one("these")


def test_minimizing_study_is_refused(open_one, database):
    rdb = database.open()
    optuna.create_study(study_name="s", storage=rdb, direction="minimize")
    close(rdb)
    with pytest.raises(StorageError, match="was not made by hpo"):
        open_one()


def test_other_tools_study_is_refused(open_one, database):
    rdb = database.open()
    optuna.create_study(study_name="s", storage=rdb, direction="maximize").add_trial(frozen_trial(value=0.5))
    with pytest.raises(StorageError, match="was not made by hpo"):
        open_one()
    with pytest.raises(StorageError, match="was not made by hpo"):
        load_study(database, make_storage_config())
    close(rdb)


def test_deleted_study_leaves_no_leases(open_one, database):
    create_trial(open_one().store)
    delete_study(database)
    assert open_one().store.active_trials() == []


def test_deleted_study_raises(open_one, database):
    study = open_one()
    delete_study(database)
    with pytest.raises(StorageError, match="was deleted"):
        _ = study.trials


def test_metric_is_named(open_one, database):
    open_one()
    rdb = database.open()
    assert optuna.load_study(study_name="s", storage=rdb).metric_names == ["validation accuracy"]
    close(rdb)


def test_load_finds_study(open_one, database):
    create_trial(open_one().store)
    with load_study(database, make_storage_config()) as study:
        assert len(study.trials) == 1


def test_load_missing_study_raises(database):
    with pytest.raises(
        StorageError, match=r"no study 's'; start it with: python -m hpo\.launch study\.toml --storage "
    ):
        load_study(database, make_storage_config())


def test_sibling_shares_database(open_one):
    study, other = open_one(), open_one(name="other")
    create_trial(other.store)
    sibling = study.sibling(make_storage_config("other"), "data")
    assert (sibling.name, len(sibling.trials)) == ("other", 1)
    assert study.trials == []


def test_missing_sibling_is_none(open_one, database):
    study = open_one()
    assert study.sibling(make_storage_config("other"), "data") is None
    rdb = database.open()
    optuna.create_study(study_name="other", storage=rdb)
    assert study.sibling(make_storage_config("other"), "data") is None
    close(rdb)


def test_mismatched_sibling_is_refused(open_one):
    study = open_one()
    open_one(name="other")
    with pytest.raises(StudyMismatchError):
        study.sibling(make_storage_config("other"), "other data")


@pytest.mark.parametrize("values", [(0.5, 0.9, 0.9), (-3.0, -0.5, -0.5), (-1.0, 0.0, -2.0)])
def test_best_trial_is_first_of_highest(open_one, values):
    store = open_one().store
    for number, value in enumerate(values):
        store.finish(create_trial(store, number), TrialOutcome(TrialState.COMPLETE, value), weights=b"weights")
    store.finish(create_trial(store, 3), TrialOutcome(TrialState.PRUNED, 0.99))
    assert best_trial(store.trials).number == 1
    assert store.retained_trials()[0] == 1


def test_unreachable_server_is_one_line():
    database = Database.parse(f"postgresql://hpo:secret@127.0.0.1:{free_port()}/hpo")
    for open_it in (open_study, lambda database: load_study(database, make_storage_config())):
        with pytest.raises(StorageError, match=r"^cannot use postgresql://hpo:\*\*\*@127") as caught:
            open_it(database)
        assert "\n" not in str(caught.value)


def test_best_trial_of_none_is_none():
    assert best_trial([]) is None
    assert best_trial([frozen_trial(value=0.5, state=TrialState.PRUNED)]) is None


def test_is_finished_needs_whole_budget():
    ended, running = frozen_trial(value=0.5), frozen_trial(state=TrialState.RUNNING)
    assert count_finished([ended, running]) == 1
    assert is_finished([ended, ended], 2)
    assert is_finished([ended, ended], 1)
    assert not is_finished([ended], 2)
    assert not is_finished([ended, running], 2)
    assert not is_finished([ended, running], 1)


def delete_study(database):
    """Delete the study, as the dashboard does."""
    rdb = database.open()
    optuna.delete_study(study_name="s", storage=rdb)
    close(rdb)
