"""Creating studies and joining them."""

import optuna
import pytest

from hpo.config.study import StudyConfig
from hpo.errors import StorageError, StudyMismatchError
from hpo.search.samplers import propose
from hpo.storage import database as storage
from hpo.storage import trial_store as trials
from hpo.storage.study import best_of, join_study, load_study

SPEC = {
    "study": {"name": "s", "trials": 10},
    "data": {"dataset": "digits"},
    "train": {"epochs": 5},
    "space": {
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "regularization": {"low": 1e-7, "high": 1e-2, "log": True},
        "hidden_size": {"low": 32, "high": 400},
    },
}


def spec(**study: object) -> StudyConfig:
    return StudyConfig.model_validate(SPEC | {"study": SPEC["study"] | study})


@pytest.fixture
def url(storage_url):
    url = storage.parse_url(storage_url)
    storage.check_reachable(url)
    return url


@pytest.fixture
def join(url):
    opened = []

    def join(spec: StudyConfig, data: str = "data"):
        opened.append(join_study(url, spec, data))
        return opened[-1]

    yield join
    for study in opened:
        storage.close(study.storage)


def test_the_second_joins_what_the_first_created(join):
    first, second = join(spec()), join(spec())
    assert first.id == second.id
    first.optuna.add_trial(optuna.trial.create_trial(value=0.5))
    assert len(second.trials) == 1


def test_the_budget_may_differ(join):
    join(spec()).optuna.add_trial(optuna.trial.create_trial(value=0.5))
    join(spec(trials=20))


def test_a_changed_file_is_refused_with_the_keys_that_differ(join):
    join(spec()).optuna.add_trial(optuna.trial.create_trial(value=0.5))
    with pytest.raises(StudyMismatchError) as caught:
        join(spec(seed=1, sampler="random"))
    assert "study.sampler (was tpe, is random), study.seed (was 0, is 1)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_data_are_refused(join):
    join(spec(), "these").optuna.add_trial(optuna.trial.create_trial(value=0.5))
    with pytest.raises(StudyMismatchError, match=r"the data \(were these, are those\)"):
        join(spec(), "those")


def test_other_settings_are_refused_before_the_first_trial_too(join):
    join(spec(), "these")
    with pytest.raises(StudyMismatchError):
        join(spec(seed=1), "these")


@pytest.mark.parametrize("deaths_after", [0, 1, 2])
def test_a_study_whose_creator_died_is_made_whole_by_the_next(join, monkeypatch, deaths_after):
    left = iter(range(deaths_after))
    set_user_attr = optuna.Study.set_user_attr

    def die(study, key, value):
        if next(left, None) is None:
            raise ConnectionError("killed")
        set_user_attr(study, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_user_attr", die)
        with pytest.raises(ConnectionError):
            join(spec(), "these")
    join(spec(seed=1), "those")
    with pytest.raises(StudyMismatchError):
        join(spec(), "these")


def test_an_empty_study_that_minimizes_is_not_ours(join, url):
    rdb = storage.open_storage(url)
    optuna.create_study(study_name="s", storage=rdb, direction="minimize")
    storage.close(rdb)
    with pytest.raises(StorageError, match="was not made by hpo"):
        join(spec())


def test_a_study_of_another_tool_is_refused(join, url):
    rdb = storage.open_storage(url)
    optuna.create_study(study_name="s", storage=rdb).add_trial(optuna.trial.create_trial(value=0.5))
    with pytest.raises(StorageError, match="was not made by hpo"):
        join(spec())
    storage.close(rdb)


def test_a_deleted_study_leaves_no_leases_to_the_next(join, url):
    first = join(spec())
    trials.create(first, spec(), propose(spec(), []), 0, "worker_a")
    optuna.delete_study(study_name="s", storage=first.storage)
    assert join(spec()).leases.unfinished() == []


def test_a_study_that_was_deleted_in_the_dashboard_says_so(join):
    study = join(spec())
    optuna.delete_study(study_name="s", storage=study.storage)
    with pytest.raises(StorageError, match="was deleted"):
        _ = study.trials


def test_loading_a_study_that_is_not_there(url):
    with pytest.raises(StorageError, match=r"has no study 's'; start it with: python -m hpo\.launch s"):
        load_study(url, spec())


def test_the_best_is_the_first_of_the_highest():
    study = optuna.create_study(direction="maximize")
    for value in (0.5, 0.9, 0.9):
        study.add_trial(optuna.trial.create_trial(value=value))
    study.add_trial(optuna.trial.create_trial(value=0.99, state=optuna.trial.TrialState.PRUNED))
    best = best_of(study.trials)
    assert best is not None
    assert best.number == 1
    assert best_of([]) is None
