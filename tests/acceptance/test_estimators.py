"""Launches that train estimators, and that compare models."""

import json
from pathlib import Path

import numpy as np
import optuna
import pytest
from commands import hpo, strict_json, write_study
from estimator_studies import BOOSTING, SEVERAL, write_table
from optuna.trial import TrialState
from sklearn.metrics import accuracy_score

from hpo import load_predictor, load_split

FOREIGN = """
from sklearn.base import BaseEstimator, ClassifierMixin

open("imported", "w").close()

class Majority(ClassifierMixin, BaseEstimator):
    def __init__(self, power=1.0):
        self.power = power

    def fit(self, X, y):
        labels = sorted(y.tolist())
        self.classes_, self.label_ = sorted(set(labels)), max(labels, key=labels.count)
        return self

    def predict(self, X):
        return [self.label_] * len(X)
"""


def trials_of(name):
    return optuna.load_study(study_name=name, storage="sqlite:///hpo.db").trials


def check_predictor(result, study):
    """Check that the exported predictor has the test accuracy of the JSON."""
    assert hpo("export", study, "--model", "model.npz").returncode == 0
    predictor = load_predictor("model.npz")
    X, y = load_split(study)["test"]
    assert accuracy_score(y, predictor.predict(X)) == pytest.approx(result["metrics"]["test_accuracy"])
    assert np.allclose(predictor.predict_proba(X).sum(axis=1), 1)


@pytest.mark.slow
def test_launch_tunes_estimator():
    write_table()
    study = write_study(BOOSTING, "boosting.toml")
    done = hpo("launch", study, "--no-dashboard", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    result, trials = strict_json(done.stdout), trials_of("boosting")
    assert result["params"] == {
        "model": "sklearn",
        "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
        "max_depth": None,
        **trials[result["trial"]].params,
    }
    # ASHA compares the trials at 8 of at most 40 iterations.
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(min(trial.intermediate_values) == 8 for trial in trials)
    check_predictor(result, "boosting.toml")


@pytest.mark.slow
def test_launch_compares_models():
    write_table()
    study = write_study(SEVERAL, "several.toml")
    done = hpo("launch", study, "--no-dashboard", "--workers", 2, HPO_CONFIRM="2")
    assert done.returncode == 0, done.stderr
    result, trials = strict_json(done.stdout), trials_of("several")
    assert [trial.params["model"] for trial in trials] == ["mlp", "forest", "linear"] * 3
    winner = trials[result["trial"]]
    own = {name.partition(".")[2]: value for name, value in winner.params.items() if name != "model"}
    assert result["params"]["model"] == winner.params["model"]
    assert own.items() <= result["params"].items()
    assert {trial.params["model"] for trial in trials if trial.state == TrialState.COMPLETE} == {
        "mlp",
        "forest",
        "linear",
    }
    check_predictor(result, "several.toml")
    first = {"model": "forest", "max_features": 0.5, "bootstrap": False, "n_estimators": 20}
    Path("first.json").write_text(json.dumps(first))
    again = hpo("launch", study, "--no-dashboard", "--trials", 10, "--enqueue", "first.json")
    assert again.returncode == 0, again.stderr
    assert trials_of("several")[9].params == {
        "model": "forest",
        "forest.max_features": 0.5,
        "forest.bootstrap": False,
    }


@pytest.mark.slow
def test_number_of_workers_changes_no_trial():
    write_table()
    study = write_study(SEVERAL.replace('"random"', '"qmc"\npruner = "none"'), "several.toml")
    contents = []
    for workers in (1, 3):
        url = f"sqlite:///{workers}.db"
        done = hpo("launch", study, "--no-dashboard", "--workers", workers, "--storage", url)
        assert done.returncode == 0, done.stderr
        trials = optuna.load_study(study_name="several", storage=url).trials
        contents.append([(trial.number, trial.params, trial.intermediate_values, trial.value) for trial in trials])
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_package_is_imported_with_permission_only():
    write_table()
    Path("foreign.py").write_text(FOREIGN)
    text = BOOSTING[: BOOSTING.index("[train]")].replace("trials = 6", "trials = 2")
    text = text.replace("sklearn.ensemble.HistGradientBoostingClassifier", "foreign.Majority")
    text += "[space]\npower = { low = 1, high = 9 }\n"
    study = write_study(text, "foreign.toml")
    for command in ("launch", "worker", "export"):
        refused = hpo(command, study)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == (
            "hpo: foreign.toml: model.estimator: 'foreign' is not one of sklearn, lightgbm, xgboost, catboost; "
            "allow its import with --allow-import foreign\n"
        )
    assert not Path("imported").exists()
    allowed = hpo("launch", study, "--no-dashboard", "--allow-import", "foreign")
    assert allowed.returncode == 0, allowed.stderr
    exported = hpo("export", study, "--model", "model.npz", HPO_ALLOW_IMPORT="foreign")
    assert json.loads(exported.stdout)["params"]["estimator"] == "foreign.Majority"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("max_depth", "max_dept"), "train.max_dept: unknown key; did you mean max_depth?"),
        (("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"), "is a regressor, but the task is class"),
    ],
)
def test_refusal_is_one_line(change, message):
    write_table()
    done = hpo("launch", write_study(BOOSTING.replace(*change), "boosting.toml"), "--no-dashboard")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("hpo.db").exists()
