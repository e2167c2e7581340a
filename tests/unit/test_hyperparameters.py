"""Hyperparameters, and their checks in a study file."""

import json
import re

import pytest
from hypothesis import given, settings
from study_files import ABSENT, changed, load_tables, studies

from hpo.config.loader import find_study, load_config
from hpo.errors import StudyFileError
from hpo.models.nets.hyperparameters import FLOAT_HYPERPARAMETERS, check_hyperparameters, hyperparameters_of, max_epochs

SHIPPED = sorted(path.stem for path in find_study("digits").parent.glob("*.toml"))
LISTS = [[200], [200, 150], [200, 150, 100]]
HYPERPARAMETERS = "allowed are learning_rate, regularization, hidden_size, epochs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("config")


def error_of_tables(tables, folder):
    """Return the error of a study file without the name of the file."""
    config = load_tables(tables, folder)
    with pytest.raises(StudyFileError) as caught:
        check_hyperparameters(config)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{config.path}: ")
    return message.removeprefix(f"{config.path}: ")


@pytest.mark.parametrize("name", SHIPPED)
def test_check_accepts_shipped_study(name):
    check_hyperparameters(load_config(find_study(name)))


@settings(max_examples=60, deadline=None)
@given(tables=studies())
def test_check_accepts_valid_study(tables, folder):
    check_hyperparameters(load_tables(tables, folder))


def test_float_hyperparameters_are_not_counts():
    assert {"learning_rate", "regularization", "momentum", "whitening"} <= FLOAT_HYPERPARAMETERS
    assert not {"epochs", "batch_size", "hidden_size", "hidden_layers", "backend"} & FLOAT_HYPERPARAMETERS


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [({"low": 3, "high": 40}, 40), ({"choices": [7, 90, 8]}, 90), ({"low": 5, "high": 5}, 5)],
)
def test_max_epochs_is_largest_searched_value(epochs, expected, tmp_path):
    assert max_epochs(load_tables(changed(("space.epochs", epochs)), tmp_path)) == expected


def test_max_epochs_is_fixed_value(tmp_path):
    assert max_epochs(load_tables(changed(("space.epochs", ABSENT), ("train.epochs", 12)), tmp_path)) == 12


def test_trial_has_params_fixed_values_and_defaults(tmp_path):
    params = {"learning_rate": 0.01, "regularization": 1e-3, "hidden_size": 64, "epochs": 200}
    assert hyperparameters_of(load_tables(changed(), tmp_path), params).model_dump() == params | {
        "batch_size": 50,
        "hidden_layers": 1,
        "momentum": 0.0,
        "learning_rate_decay": 1.0,
        "dropout": 0.0,
        "label_smoothing": 0.0,
        "whitening": 0.0,
        "input_scale": 1.0,
        "backend": "numpy",
        "optimizer": "sgd",
        "loss": "squared",
        "class_weight": "none",
        "schedule": "constant",
        "keep": "last",
    }


def test_trial_has_listed_layer_sizes(tmp_path):
    tables = changed(("space.hidden_size", ABSENT), ("space.hidden_layers", {"choices": LISTS}))
    config = load_tables(tables, tmp_path)
    check_hyperparameters(config)
    params = {"learning_rate": 0.01, "regularization": 1e-3, "epochs": 200}
    trials = [hyperparameters_of(config, params | {"hidden_layers": json.dumps(sizes)}) for sizes in LISTS]
    assert [list(hyperparameters.hidden_sizes) for hyperparameters in trials] == LISTS
    assert {hyperparameters.hidden_size for hyperparameters in trials} == {None}
    fixed = load_tables(changed(("space.hidden_size", ABSENT), ("train.hidden_layers", LISTS[-1])), tmp_path)
    check_hyperparameters(fixed)
    assert hyperparameters_of(fixed, params).hidden_sizes == (200, 150, 100)


def test_counted_layers_have_same_size(tmp_path):
    params = {"learning_rate": 0.01, "regularization": 1e-3, "hidden_size": 64, "epochs": 200}
    config = load_tables(changed(("train.hidden_layers", 3)), tmp_path)
    assert hyperparameters_of(config, params).hidden_sizes == (64, 64, 64)


INVALID = [
    ("train.momentun", 0.9, "did you mean momentum", HYPERPARAMETERS),
    ("train.zzz", 0.9, f"unknown key; {HYPERPARAMETERS}"),
    ("space.hiden_size", {"low": 1, "high": 2}, "did you mean hidden_size", HYPERPARAMETERS),
    ("space.learning_rate", {"low": -1, "high": 0.1}, "greater than 0", "-1"),
    ("space.epochs", {"low": 0, "high": 4}, "greater than 0", "0"),
    ("space.epochs", {"choices": [5, 0]}, "greater than 0", "0"),
    ("space.momentum", {"low": 0.5, "high": 1.0}, "less than 1", "1.0"),
    ("space.hidden_size", {"low": 32.5, "high": 400}, "integer", "32.5"),
    ("space.hidden_size", {"low": 32, "high": 400.5}, "integer", "400.5"),
    ("space.hidden_size", {"choices": [32, 64.5]}, "integer", "64.5"),
    ("space.epochs", ABSENT, "missing", "a range in [space] or a value in [train]"),
    ("space.learning_rate", ABSENT, "missing", "a range in [space] or a value in [train]"),
    ("train.momentum", 1.0, "less than 1", "1.0"),
    ("train.batch_size", 0, "greater than 0", "0"),
    ("train.batch_size", 1.5, "integer", "1.5"),
    ("space.epochs", {"choices": [[3]]}, "integer", "[3]"),
    ("space.epochs", {"choices": ["3"]}, "integer", "'3'"),
    ("train.batch_size", [50], "[50]"),
    ("train.batch_size", "50", "integer", "'50'"),
    ("train.momentum", "high", "number", "'high'"),
    ("train.backend", "jax", "'numpy' or 'torch'", "'jax'"),
    ("train.backend", 1, "'numpy' or 'torch'", "1"),
]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [(key, value, expected) for key, value, *expected in INVALID],
    ids=[f"{key}-{'absent' if value is ABSENT else ascii(value)}"[:60] for key, value, *_ in INVALID],
)
def test_error_names_key_and_allowed_values(key, value, expected, tmp_path):
    message = error_of_tables(changed((key, value)), tmp_path)
    assert re.match(rf"{re.escape(key)}\b", message), message
    for text in expected:
        assert text in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.hidden_layers", [3, 0], ("greater than 0", "not 0")),
        ("train.hidden_layers", [], ("[]",)),
        ("train.hidden_layers", [1.5], ("integer", "1.5")),
        ("space.hidden_layers", {"choices": [[3], 1]}, ("numbers of layers or lists of sizes",)),
        ("space.hidden_layers", {"choices": [[3], [2.5]]}, ("integer", "2.5")),
        ("space.hidden_layers", {"choices": [[3], []]}, ("[]",)),
    ],
)
def test_error_names_invalid_layer_size(key, value, expected, tmp_path):
    message = error_of_tables(changed(("space.hidden_size", ABSENT), (key, value)), tmp_path)
    assert re.match(rf"{re.escape(key)}\b", message), message
    for text in expected:
        assert text in message


def test_size_with_listed_sizes_is_refused(tmp_path):
    message = error_of_tables(changed(("train.hidden_layers", [3])), tmp_path)
    assert message.startswith("space.hidden_size: hidden_layers ")
    assert message.endswith(" the sizes already; remove this key")


def test_counted_layers_without_size_are_refused(tmp_path):
    message = error_of_tables(changed(("space.hidden_size", ABSENT), ("train.hidden_layers", 2)), tmp_path)
    assert message.startswith("space.hidden_size: missing")


def test_first_missing_hyperparameter_is_named(tmp_path):
    message = error_of_tables(changed(("train", ABSENT), ("space", ABSENT)), tmp_path)
    assert message.startswith("space.learning_rate: missing")
