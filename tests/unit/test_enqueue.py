"""Enqueued parameters: their order, and the content of a file."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from study_files import load_tables
from workers import make_config

from hpo.config.study import StudyConfig
from hpo.errors import EnqueueError
from hpo.models.kinds.registry import model_of
from hpo.models.nets.hyperparameters import FLOAT_HYPERPARAMETERS, hyperparameters_of
from hpo.search.enqueue import load_enqueued, params_key, pending
from hpo.search.space import build_space
from hpo.search.study_space import study_space

GOOD = {"learning_rate": 0.01, "regularization": 1e-4, "hidden_size": 16, "epochs": 12}

params_lists = st.lists(st.fixed_dictionaries({"x": st.integers(0, 2), "y": st.sampled_from([0.5, 1.0])}), max_size=8)


def trials_of(all_params):
    return [
        create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: FloatDistribution(0, 9) for name in params},
        )
        for params in all_params
    ]


def load(content, config=None):
    config = make_config() if config is None else config
    space = build_space(config, FLOAT_HYPERPARAMETERS)
    path = content if isinstance(content, Path) else write(content)
    return load_enqueued(path, config, space, lambda params: hyperparameters_of(config, params).model_dump(mode="json"))


def write(content, name="best.json"):
    path = Path(name)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# Pending parameters


@given(enqueued=params_lists, tried=params_lists)
def test_pending_counts_equal_params(enqueued, tried):
    remaining = pending(enqueued, trials_of(tried))
    assert Counter(map(params_key, remaining)) == Counter(map(params_key, enqueued)) - Counter(map(params_key, tried))


@given(enqueued=params_lists, tried=params_lists)
def test_pending_is_empty_after_trials(enqueued, tried):
    remaining = pending(enqueued, trials_of(tried))
    assert pending(enqueued, trials_of([*tried, *remaining])) == []


@given(enqueued=params_lists, tried=params_lists)
def test_pending_is_tried_in_order(enqueued, tried):
    remaining, new = pending(enqueued, trials_of(tried)), []
    while due := pending(enqueued, trials_of([*tried, *new])):
        new.append(due[0])
    assert new == remaining


@given(enqueued=st.lists(st.integers(), unique=True))
def test_pending_keeps_order(enqueued):
    assert pending([{"x": number} for number in enqueued], []) == [{"x": number} for number in enqueued]


def test_pending_treats_integer_like_equal_float():
    assert pending([{"x": 1}], trials_of([{"x": 1.0}])) == []


# Content of a file


@pytest.mark.parametrize("content", [GOOD, {"schema_version": 1, "params": GOOD, "seed": 0}])
def test_result_or_params_are_loaded(content):
    assert load(content) == (GOOD, [])


def test_list_of_sizes_is_loaded():
    config = make_config(space={"hidden_size": None, "hidden_layers": {"choices": [[8], [8, 4]]}})
    content = {**GOOD, "hidden_size": None, "hidden_layers": [8, 4]}
    params, warnings = load(content, config)
    assert (hyperparameters_of(config, params).hidden_sizes, warnings) == ((8, 4), [])
    with pytest.raises(EnqueueError, match=r"hidden_layers: one of \[8\], \[8, 4\] is allowed, not \[8, 5\]"):
        load(content | {"hidden_layers": [8, 5]}, config)


def test_equal_fixed_sizes_cause_no_warning():
    config = make_config(space={"hidden_size": None}, train={"hidden_layers": [8, 4]})
    content = {**GOOD, "hidden_size": None, "hidden_layers": [8, 4]}
    assert load(content, config)[1] == []
    (warning,) = load(content | {"hidden_layers": [8]}, config)[1]
    assert "hidden_layers = [8] is ignored: this study trains with [8, 4]" in warning


def test_params_have_order_of_space():
    assert list(load(dict(reversed(GOOD.items())))[0]) == list(make_config().space)


def test_different_fixed_value_causes_warning():
    content = {"params": GOOD | {"momentum": 0.9, "batch_size": 100, "hidden_layers": 1, "units": 5}}
    params, warnings = load(content)
    assert params == GOOD
    assert warnings == [
        "best.json: batch_size = 100 is ignored: this study trains with 60",
        "best.json: units = 5 is ignored: this study has no such hyperparameter",
    ]


def test_value_gets_type_of_hyperparameter():
    config = make_config(space={"learning_rate": {"low": 0.1, "high": 1.0}, "momentum": {"choices": [0.0, 0.5]}})
    params, _ = load(GOOD | {"learning_rate": 1, "momentum": 0}, config)
    assert [type(params[key]) for key in ("learning_rate", "momentum", "hidden_size")] == [float, float, int]


@pytest.mark.parametrize("value", [8, 32])
def test_ends_of_range_are_allowed(value):
    assert load(GOOD | {"hidden_size": value})[0]["hidden_size"] == value


def test_parameters_without_a_model_are_loaded():
    space = {"x": {"low": -10.0, "high": 10.0}, "n": {"low": -3, "high": 3}, "kind": {"choices": ["a", "b"]}}
    config = StudyConfig.model_validate({"study": {"name": "s"}, "space": space})
    content = {"x": -4, "n": -3, "kind": "b", "unknown": 1}
    assert load_enqueued(write(content), config, build_space(config), dict) == (
        {"x": -4.0, "n": -3, "kind": "b"},
        ["best.json: unknown = 1 is ignored: this study has no such hyperparameter"],
    )


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"hidden_size": 33}, "hidden_size: a whole number from 8 to 32 is allowed, not 33"),
        ({"hidden_size": 7}, "hidden_size: a whole number from 8 to 32 is allowed, not 7"),
        ({"hidden_size": 16.0}, "hidden_size: a whole number from 8 to 32 is allowed, not 16.0"),
        ({"hidden_size": True}, "hidden_size: a whole number from 8 to 32 is allowed, not true"),
        ({"learning_rate": "fast"}, 'learning_rate: a number from 0.001 to 0.1 is allowed, not "fast"'),
        ({"learning_rate": None}, "learning_rate: a number from 0.001 to 0.1 is allowed, not null"),
        ({"learning_rate": float("nan")}, "learning_rate: a number from 0.001 to 0.1 is allowed, not NaN"),
        ({"learning_rate": 10**400}, "learning_rate: a number from 0.001 to 0.1 is allowed, not 1000"),
        ({"batch_size": 50}, "batch_size: one of 20, 40 is allowed, not 50"),
        ({"batch_size": 1}, "batch_size: one of 20, 40 is allowed, not 1"),
        ({"hidden_layers": True}, "hidden_layers: a whole number from 1 to 2 is allowed, not true"),
        ({"momentum": True}, "momentum: one of 0.0, 0.5 is allowed, not true"),
        ({"momentum": False}, "momentum: one of 0.0, 0.5 is allowed, not false"),
    ],
)
def test_value_outside_space_is_refused(changed, problem):
    more = {"batch_size": {"choices": [20, 40]}, "momentum": {"choices": [0.0, 0.5]}}
    config = make_config(space=more | {"hidden_layers": {"low": 1, "high": 2}})
    with pytest.raises(EnqueueError) as error:
        load(GOOD | {"batch_size": 20, "momentum": 0.5, "hidden_layers": 1} | changed, config)
    assert str(error.value).startswith(f"best.json: {problem}")


def test_missing_parameter_is_refused():
    with pytest.raises(EnqueueError, match=r"^best\.json: epochs: missing; this study searches it$"):
        load({key: value for key, value in GOOD.items() if key != "epochs"})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON: Expecting property name"),
        ("", "not JSON: Expecting value"),
        ("[1]", "an object of parameters is allowed, or the JSON of a launch"),
        ("null", "an object of parameters is allowed"),
        ('{"params": [1]}', "an object of parameters is allowed"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_other_content_is_refused(content, problem):
    with pytest.raises(EnqueueError, match=r"^best\.json: ") as error:
        load(content)
    assert problem in str(error.value)


def test_unreadable_file_is_refused():
    with pytest.raises(EnqueueError, match=r"^nowhere\.json: no such file$"):
        load(Path("nowhere.json"))
    with pytest.raises(EnqueueError, match="cannot be read: Is a directory"):
        load(Path())
    Path("latin.json").write_bytes(b'{"\xe9": 1}')
    with pytest.raises(EnqueueError, match=r"latin\.json: not JSON"):
        load(Path("latin.json"))


# Files for a study that compares models

MODELS = {
    "study": {"name": "mine"},
    "data": {"dataset": "digits"},
    "model": {"kind": ["mlp", "trees"], "trees": {"estimator": "sklearn.ensemble.ExtraTreesClassifier"}},
    "train": {"mlp": {"epochs": 7, "regularization": 0.0}, "trees": {"n_estimators": 20}},
    "space": {
        "mlp": {"learning_rate": {"low": 0.001, "high": 1.0}, "hidden_size": {"low": 1, "high": 9}},
        "trees": {"bootstrap": {"choices": [True, False]}, "max_depth": {"choices": [1, 3, "none"]}},
    },
}


def load_of_models(content, tmp_path):
    config = load_tables(MODELS, tmp_path)
    return load_enqueued(write(content), config, study_space(config), lambda params: model_of(config, params).settings)


@pytest.mark.parametrize(
    "content",
    [
        {"model": "trees", "bootstrap": False, "max_depth": 3},
        {"model": "trees", "trees.bootstrap": False, "trees.max_depth": 3},
        {"params": {"model": "trees", "n_estimators": 20, "bootstrap": False, "max_depth": 3}},
    ],
)
def test_file_selects_model(content, tmp_path):
    params = {"model": "trees", "trees.bootstrap": False, "trees.max_depth": 3}
    assert load_of_models(content, tmp_path) == (params, [])


def test_null_is_choice_none(tmp_path):
    params, warnings = load_of_models({"model": "trees", "bootstrap": True, "max_depth": None}, tmp_path)
    assert (params["trees.max_depth"], warnings) == ("none", [])


def test_exported_settings_can_be_enqueued(tmp_path):
    config = load_tables(MODELS, tmp_path)
    params = {"model": "trees", "trees.bootstrap": True, "trees.max_depth": "none"}
    assert load_of_models(model_of(config, params).settings, tmp_path) == (params, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bootstrap": False, "max_depth": 3}, "model: one of mlp, trees is allowed, missing"),
        ({"model": "forest", "max_depth": 3}, 'model: one of mlp, trees is allowed, not "forest"'),
        ({"model": "trees", "max_depth": 3}, "trees.bootstrap: missing; this study searches it"),
        ({"model": "trees", "bootstrap": 1, "max_depth": 3}, "trees.bootstrap: one of True, False is allowed, not 1"),
        ({"model": "trees", "bootstrap": True, "max_depth": True}, "trees.max_depth: one of 1, 3, none is allowed"),
    ],
)
def test_file_of_models_is_refused(content, message, tmp_path):
    with pytest.raises(EnqueueError) as caught:
        load_of_models(content, tmp_path)
    assert message in str(caught.value)
