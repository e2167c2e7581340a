"""Estimators in a study file: lookup, parameters, their checks and defaults."""

import pytest
from estimators import CLASSIFIERS  # limits the threads
from study_files import load_tables

from hpo.errors import StudyFileError
from hpo.models.estimators.kind import SKLEARN
from hpo.models.estimators.lookup import find_estimator
from hpo.models.estimators.settings import make_estimator, settings_of
from hpo.models.kinds.registry import check_models, model_of, models_of
from hpo.search.study_space import study_space

assert CLASSIFIERS
BOOSTING = "sklearn.ensemble.HistGradientBoostingClassifier"


def study(tmp_path, estimator=BOOSTING, train=None, space=None, **study_keys):
    tables = {
        "study": {"name": "mine", **study_keys},
        "data": {"dataset": "digits"},
        "model": {"kind": "sklearn", "estimator": estimator},
        "train": train or {},
        "space": space or {},
    }
    return load_tables(tables, tmp_path)


def error_of(config, task=None):
    with pytest.raises(StudyFileError) as caught:
        check_models(config, task)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("RandomForestClassifier", "no import path; did you mean sklearn.ensemble.RandomForestClassifier?"),
        ("sklearn.ensemble.RandomForestClasifier", "did you mean sklearn.ensemble.RandomForestClassifier?"),
        ("sklearn.tree.RandomForestClassifier", "did you mean sklearn.ensemble.RandomForestClassifier?"),
        ("sklearn.ensembles.RandomForestClassifier", "no module 'sklearn.ensembles'; did you mean sklearn.ensemble."),
        ("sklearn.ensemble.nothing_like_it", "'sklearn.ensemble' has no estimator 'nothing_like_it'"),
        ("sklearn.metrics.accuracy_score", "'sklearn.metrics' has no estimator"),
        (
            "os.system",
            "'os' is not one of sklearn, lightgbm, xgboost, catboost; allow its import with --allow-import os",
        ),
    ],
)
def test_unknown_estimator(path, message):
    with pytest.raises(ValueError, match=r".+") as caught:
        find_estimator(path)
    assert message in str(caught.value)


def test_missing_package_is_named_with_command(monkeypatch):
    monkeypatch.setattr("hpo.models.estimators.lookup.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs sklearn; install it with: pip install scikit-learn$"):
        find_estimator(BOOSTING)


def test_package_with_permission(tmp_path, monkeypatch):
    (tmp_path / "users.py").write_text("from sklearn.linear_model import Ridge as Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_estimator("users.Own", ["users"]).__name__ == "Ridge"


@pytest.mark.parametrize(
    ("train", "space", "message"),
    [
        ({"max_itr": 3}, {}, "train.max_itr: unknown key; did you mean max_iter?"),
        ({}, {"learning_rat": {"low": 0.1, "high": 1.0}}, "space.learning_rat: unknown key; did you mean learning_rat"),
        ({"max_iter": -3}, {}, "train.max_iter: an integer of at least 1 is allowed, not -3"),
        ({}, {"max_iter": {"low": 1.0, "high": 9.0}}, "space.max_iter: an integer of at least 1 is allowed, not 1.0"),
        ({}, {"learning_rate": {"low": -1.0, "high": 1.0}}, "space.learning_rate: The 'learning_rate' parameter"),
        ({}, {"max_depth": {"choices": [3, "none", "deep"]}}, "space.max_depth: The 'max_depth' parameter"),
        ({"loss": "hinge"}, {}, "train.loss: The 'loss' parameter"),
    ],
)
def test_refused_parameter(train, space, message, tmp_path):
    assert message in error_of(study(tmp_path, train=train, space=space))


def test_refused_combination_is_no_error_of_study(tmp_path):
    space = {"solver": {"choices": ["lbfgs", "liblinear"]}, "l1_ratio": {"choices": [0.0, 1.0]}}
    check_models(study(tmp_path, "sklearn.linear_model.LogisticRegression", space=space))


@pytest.mark.parametrize(
    ("estimator", "train", "message"),
    [
        ("xgboost.XGBClassifier", {"n_estimator": 3}, "train.n_estimator: unknown key; did you mean n_estimators?"),
        ("xgboost.XGBClassifier", {"tree_method": "wrong"}, "Invalid Input: 'wrong'"),
        ("lightgbm.LGBMClassifier", {"num_leafs": 3}, "did you mean num_leaves?"),
        ("lightgbm.LGBMClassifier", {"boosting_type": "wrong"}, "Unknown boosting type wrong"),
    ],
)
def test_refused_parameter_of_other_package(estimator, train, message, tmp_path):
    pytest.importorskip(estimator.partition(".")[0])
    assert message in error_of(study(tmp_path, estimator, train))


@pytest.mark.parametrize(
    ("estimator", "task", "message"),
    [
        ("sklearn.linear_model.Ridge", "classification", "Ridge is a regressor, but the task is classification"),
        (BOOSTING, "regression", "HistGradientBoostingClassifier is a classifier, but the task is regression"),
        ("sklearn.cluster.KMeans", None, "KMeans is neither a classifier nor a regressor"),
        ("sklearn.ensemble.VotingClassifier", None, "train.estimators: VotingClassifier needs a value"),
    ],
)
def test_wrong_estimator(estimator, task, message, tmp_path):
    assert message in error_of(study(tmp_path, estimator), task)


def test_estimator_is_missing(tmp_path):
    tables = {"study": {"name": "mine"}, "data": {"dataset": "digits"}, "model": {"kind": "sklearn"}}
    assert "model.estimator: missing; give an import path" in error_of(load_tables(tables, tmp_path))


def test_unknown_kind(tmp_path):
    tables = {"study": {"name": "mine"}, "data": {"dataset": "digits"}, "model": {"kind": "sklern"}}
    message = error_of(load_tables(tables, tmp_path))
    assert "model.kind: 'mlp', 'mlp-torch' or 'sklearn' is allowed, not 'sklern'" in message


def test_name_in_list_needs_estimator(tmp_path):
    tables = {"study": {"name": "mine"}, "data": {"dataset": "digits"}, "model": {"kind": ["boosting", "sklearn"]}}
    assert "needs a table [model.boosting] with an estimator" in error_of(load_tables(tables, tmp_path))


def test_error_in_list_names_table_of_model(tmp_path):
    tables = {
        "study": {"name": "mine"},
        "data": {"dataset": "digits"},
        "model": {"kind": ["trees"], "trees": {"estimator": BOOSTING}},
        "train": {"trees": {"max_itr": 3}},
    }
    assert "train.trees.max_itr: unknown key; did you mean max_iter?" in error_of(load_tables(tables, tmp_path))


def test_defaults_are_silent_and_repeatable(tmp_path):
    forest = study(tmp_path, "sklearn.ensemble.RandomForestClassifier")
    assert make_estimator(forest, {}, 7).get_params().items() >= {"n_jobs": 1, "random_state": 7, "verbose": 0}.items()
    assert make_estimator(forest, {"n_jobs": 2, "random_state": 5}, 7).get_params()["random_state"] == 5
    boosting = study(tmp_path)
    assert make_estimator(boosting, {}, 7).early_stopping is False
    assert make_estimator(boosting, {"early_stopping": True}, 7).early_stopping is True


def test_text_none_is_none(tmp_path):
    config = study(tmp_path, train={"max_depth": "none"}, space={"max_leaf_nodes": {"choices": [8, "none"]}})
    assert settings_of(config, {"max_leaf_nodes": "none"}) == {"max_depth": None, "max_leaf_nodes": None}


def test_whole_ends_of_float_parameter_are_floats(tmp_path):
    config = study(tmp_path, space={"learning_rate": {"low": 1, "high": 2}, "max_features": {"low": 1, "high": 1}})
    check_models(config)
    assert {type(distribution.low) for distribution in study_space(config).values()} == {float}


@pytest.mark.parametrize(
    ("estimator", "train", "space", "steps"),
    [
        (BOOSTING, {"max_iter": 70}, {}, 70),
        (BOOSTING, {}, {"max_iter": {"low": 10, "high": 80}}, 80),
        (BOOSTING, {}, {}, 100),
        (BOOSTING, {"early_stopping": True}, {"max_iter": {"low": 10, "high": 80}}, 1),
        ("sklearn.ensemble.RandomForestClassifier", {}, {"n_estimators": {"choices": [5, 50]}}, 50),
        ("sklearn.svm.SVC", {}, {"C": {"low": 0.1, "high": 9.0}}, 1),
        (
            "sklearn.neural_network.MLPClassifier",
            {},
            {"solver": {"choices": ["lbfgs", "adam"]}, "max_iter": {"low": 5, "high": 9}},
            9,
        ),
    ],
)
def test_steps_of_longest_trial(estimator, train, space, steps, tmp_path):
    (model,) = models_of(study(tmp_path, estimator, train, space))
    assert SKLEARN.max_steps(model.config) == steps


def test_solver_without_partial_fit_has_one_step(tmp_path):
    space = {"solver": {"choices": ["lbfgs", "adam"]}, "max_iter": {"low": 5, "high": 9}}
    config = study(tmp_path, "sklearn.neural_network.MLPClassifier", space=space)
    steps = [model_of(config, {"solver": solver, "max_iter": 7}).n_steps for solver in ("lbfgs", "adam")]
    assert steps == [1, 7]


def test_settings_have_model_and_estimator(tmp_path):
    config = study(tmp_path, train={"max_depth": "none"}, space={"max_iter": {"low": 1, "high": 9}})
    assert model_of(config, {"max_iter": 5}).settings == {
        "model": "sklearn",
        "estimator": BOOSTING,
        "max_depth": None,
        "max_iter": 5,
    }


def test_models_of_list(tmp_path):
    tables = {
        "study": {"name": "mine"},
        "data": {"dataset": "digits"},
        "model": {"kind": ["mlp", "trees"], "trees": {"estimator": BOOSTING}},
        "train": {"mlp": {"epochs": 7, "regularization": 0.0}, "trees": {"max_depth": 3}},
        "space": {
            "mlp": {"learning_rate": {"low": 1e-3, "high": 1}, "hidden_size": {"low": 1, "high": 9}},
            "trees": {"max_iter": {"low": 1, "high": 9}},
        },
    }
    config = load_tables(tables, tmp_path)
    check_models(config)
    space = study_space(config)
    assert list(space) == ["model", "mlp.learning_rate", "mlp.hidden_size", "trees.max_iter"]
    assert space["model"].choices == ("mlp", "trees")
    assert [(branch.max_steps, branch.cost_parameter) for branch in space.branches.values()] == [
        (7, None),
        (9, "trees.max_iter"),
    ]
    trees = model_of(config, {"model": "trees", "trees.max_iter": 4})
    assert trees.settings == {"model": "trees", "estimator": BOOSTING, "max_depth": 3, "max_iter": 4}
    net = model_of(config, {"model": "mlp", "mlp.learning_rate": 0.5, "mlp.hidden_size": 4})
    assert (net.settings["model"], net.settings["learning_rate"], net.n_steps) == ("mlp", 0.5, 7)
