"""Results of scripts' studies: the JSON, and the checkpoints of the best trials."""

import json
import math

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import create_trial
from script_studies import CONFIG, open_script_study, run_function

import hpo
from hpo.errors import StorageError, TrialFailureError
from hpo.scripts.exporting import is_stored
from hpo.scripts.exporting import open_script_study as open_for_export
from hpo.scripts.launching.confirmation import optuna_view
from hpo.scripts.launching.result import artifact_of, study_result, summary_lines
from hpo.storage.tables.weight_retention import KEPT_WEIGHTS
from hpo.tuning.result import to_json

pytestmark = pytest.mark.postgresql_is_slow

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE


@pytest.fixture
def study(database):
    with open_script_study(database) as study:
        yield study


@pytest.fixture
def two_objectives(database):
    with open_script_study(database, MINIMIZE, MAXIMIZE) as study:
        yield study


def add(study, *values, **details):
    """Add complete trials to a study, each with one value."""
    for value in values:
        optuna_view(study).add_trial(create_trial(value=value, **details))


def test_result_has_keys_in_their_order(study):
    def function(trial):
        trial.set_user_attr("epochs", [1, 2])
        return trial.suggest_float("x", 0, 1)

    script_study = run_function(study, function, 3)
    result = study_result(study)
    assert " ".join(result) == (
        "schema_version study direction trial params value user_attrs confirmation trials script seed created versions"
    )
    best = script_study.best_trial
    assert (result["trial"], result["params"], result["value"]) == (best.number, best.params, best.value)
    assert (result["study"], result["direction"], result["seed"]) == ("train", "minimize", 0)
    assert (result["user_attrs"], result["confirmation"]) == ({"epochs": [1, 2]}, None)
    assert result["script"] == {"name": "train.py", "arguments": ["--fast"], "fingerprint": "f" * 64}
    assert {"hpo", "optuna", "python"} <= result["versions"].keys()


@pytest.mark.parametrize(("direction", "wins"), [(MINIMIZE, 1), (MAXIMIZE, 0)])
def test_best_of_equal_trials_is_first(database, direction, wins):
    with open_script_study(database, direction) as study:
        add(study, 3.0, 1.0, 3.0, 1.0)
        assert study_result(study)["trial"] == wins


def test_states_are_counted(study):
    def function(trial):
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise ValueError("no")
        return math.nan if trial.number == 3 else 1.0

    run_function(study, function, 6)
    optuna_view(study).enqueue_trial({})
    assert study_result(study)["trials"] == {"complete": 3, "pruned": 1, "failed": 2, "unfinished": 1}


def test_numbers_that_json_lacks_are_null(study):
    attributes = {"loss": math.inf, "curve": [1.0, -math.inf], "nested": {"nan": math.nan}}
    add(study, -math.inf, user_attrs=attributes)
    result = json.loads(to_json(study_result(study)))
    assert result["value"] is None
    assert result["user_attrs"] == {"loss": None, "curve": [1.0, None], "nested": {"nan": None}}


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_choices_can_be_sequences(study):
    run_function(study, lambda trial: float(len(trial.suggest_categorical("layers", [(1, 2)]))), 2)
    assert json.loads(to_json(study_result(study)))["params"] == {"layers": [1, 2]}


def test_trial_that_violates_constraints_is_not_best(study):
    add(study, 1.0, system_attrs={"constraints": [1.0]})
    with pytest.raises(TrialFailureError, match="no complete trial of the study 'train' satisfies its constraints"):
        study_result(study)
    add(study, 2.0, system_attrs={"constraints": [0.0]})
    assert study_result(study)["trial"] == 1


def test_result_of_several_objectives_is_pareto_front(two_objectives):
    view = optuna_view(two_objectives)
    for values in ([1.0, 1.0], [2.0, 2.0], [2.0, 1.0], [math.inf, 3.0]):
        view.add_trial(create_trial(values=values))
    result = json.loads(to_json(study_result(two_objectives)))
    assert result["directions"] == ["minimize", "maximize"]
    assert [trial["trial"] for trial in result["pareto_front"]] == [0, 1, 3]
    assert result["values"] == [[1.0, 1.0], [2.0, 2.0], [None, 3.0]]
    assert result["confirmation"] is None
    assert summary_lines(result) == ["train: 3 trials in the Pareto front; 4 complete"]
    single = study_result(two_objectives, 2)
    assert (single["trial"], single["values"], "pareto_front" in single) == (2, [2.0, 1.0], False)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (3, "the study 'train' has no trial 3; its trials are 0 to 2"),
        (1, r"trial 1 of the study 'train' is not complete \(fail\)"),
        (2, r"trial 2 of the study 'train' is not complete \(unfinished\)"),
    ],
)
def test_trial_without_result_is_refused(study, number, message):
    def function(trial):
        return 1.0 if trial.number == 0 else math.nan

    run_function(study, function, 2)
    optuna_view(study).enqueue_trial({})
    with pytest.raises(TrialFailureError, match=message):
        study_result(study, number)


def test_study_without_complete_trial_names_most_frequent_reason(study):
    def function(trial):
        raise ValueError("no" if trial.number else "never")

    run_function(study, function, 3)
    with pytest.raises(TrialFailureError, match=r"is complete \(3 fail\); most often: ValueError: no; correct"):
        study_result(study)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_result_has_time_of_last_trial_in_utc(study, set_zone, zone):
    set_zone(zone)
    run_function(study, lambda trial: 0.0, 1)
    (trial,) = study.trials
    assert study_result(study)["created"] == trial.datetime_complete.isoformat(timespec="seconds")


def saving(trial):
    for step in (1, 2):
        hpo.save_checkpoint(trial, f"trial {trial.number} step {step}".encode(), step)
    return float(trial.number)


def test_artifact_is_last_checkpoint(study):
    run_function(study, saving, KEPT_WEIGHTS + 2)
    assert artifact_of(study, 0) == b"trial 0 step 2"
    assert artifact_of(study, KEPT_WEIGHTS - 1) == f"trial {KEPT_WEIGHTS - 1} step 2".encode()
    kept = ", ".join(map(str, range(KEPT_WEIGHTS)))
    with pytest.raises(TrialFailureError, match=f"no checkpoint of trial 11; they are kept .* takes any of {kept}$"):
        artifact_of(study, 11)


def test_objective_without_checkpoints_has_no_artifact(study):
    run_function(study, lambda trial: 0.0, 1)
    with pytest.raises(TrialFailureError, match=r"its objective saves none; save one with hpo\.save_checkpoint"):
        artifact_of(study, 0)


def test_study_of_several_objectives_has_no_artifact(two_objectives):
    run_function(two_objectives, lambda trial: (saving(trial), 0.0), 1)
    for number in (None, 0):
        with pytest.raises(TrialFailureError, match="so its trials have no order and no checkpoint"):
            artifact_of(two_objectives, number)


def test_study_is_found_by_script_function_and_name(database, study):
    for target in ("train.py", "sub/train.py", "train.py:objective", "train"):
        with open_for_export(database, target) as found:
            assert found.name == "train"
    assert is_stored(database, "train")
    assert not is_stored(database, "digits")


def test_name_of_study_may_have_colon(database):
    config = CONFIG.model_copy(update={"study": CONFIG.study.model_copy(update={"name": "train:second"})})
    with open_script_study(database, config=config), open_for_export(database, "train:second") as found:
        assert found.name == "train:second"


def test_missing_study_names_studies_of_script(database):
    config = CONFIG.model_copy(update={"study": CONFIG.study.model_copy(update={"name": "mine"})})
    with (
        open_script_study(database, config=config),
        pytest.raises(StorageError, match=r"has no study 'train'; train\.py has created 'mine'; give such a name"),
        open_for_export(database, "train.py"),
    ):
        pass
    with (
        pytest.raises(StorageError, match=r"has no study 'other'; start it with: python -m hpo\.launch other\.py"),
        open_for_export(database, "other.py"),
    ):
        pass


def test_study_of_study_file_is_not_exported_as_script(database, stored_study):
    with pytest.raises(StorageError, match=r"the study 's' .* is of a study file; give its \.toml file"):
        open_for_export(database, stored_study.name).__enter__()
