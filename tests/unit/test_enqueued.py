"""Parameters that are tried first: which of them are missing, and what a file may say."""

import json
from collections import Counter
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workers import make_config

from hpo.errors import EnqueueError
from hpo.search.enqueue import load_enqueued, missing, same

GOOD = {"learning_rate": 0.01, "regularization": 1e-4, "hidden_size": 16, "epochs": 12}

few = st.lists(st.fixed_dictionaries({"x": st.integers(0, 2), "y": st.sampled_from([0.5, 1.0])}), max_size=8)


def trials_of(all_params):
    return [
        optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, params=params, distributions=space(params))
        for params in all_params
    ]


def space(params):
    return {name: optuna.distributions.FloatDistribution(0, 9) for name in params}


# What is missing


@given(enqueued=few, had=few)
def test_of_equal_parameters_as_many_are_missing_as_there_are_more_enqueued_than_had(enqueued, had):
    lacking = missing(enqueued, trials_of(had))
    assert Counter(map(same, lacking)) == Counter(map(same, enqueued)) - Counter(map(same, had))


@given(enqueued=few, had=few)
def test_with_what_was_missing_nothing_is(enqueued, had):
    lacking = missing(enqueued, trials_of(had))
    assert missing(enqueued, trials_of([*had, *lacking])) == []


@given(enqueued=few, had=few)
def test_one_after_the_other_they_are_tried_in_their_order(enqueued, had):
    lacking, tried = missing(enqueued, trials_of(had)), []
    while due := missing(enqueued, trials_of([*had, *tried])):
        tried.append(due[0])
    assert tried == lacking


@given(enqueued=st.lists(st.integers(), unique=True))
def test_the_order_is_that_in_which_they_were_given(enqueued):
    assert missing([{"x": number} for number in enqueued], []) == [{"x": number} for number in enqueued]


def test_a_whole_number_is_the_same_as_a_float():
    assert missing([{"x": 1}], trials_of([{"x": 1.0}])) == []


# What a file may say


def write(content, name="best.json"):
    path = Path(name)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("content", [GOOD, {"schema_version": 1, "params": GOOD, "seed": 0}])
def test_a_launchs_json_or_the_parameters_alone(content):
    assert load_enqueued(write(content), make_config()) == (GOOD, [])


def test_sizes_of_layers_are_a_list():
    spec = make_config(space={"hidden_size": None, "hidden_layers": {"choices": [[8], [8, 4]]}})
    content = {**GOOD, "hidden_size": None, "hidden_layers": [8, 4]}
    params, ignored = load_enqueued(write(content), spec)
    assert (spec.hyperparameters(params).hidden_sizes, ignored) == ((8, 4), [])
    with pytest.raises(EnqueueError, match=r"hidden_layers: one of \[8\], \[8, 4\] is allowed, not \[8, 5\]"):
        load_enqueued(write(content | {"hidden_layers": [8, 5]}), spec)


def test_the_sizes_that_a_study_trains_with_anyway_are_not_left_out():
    spec = make_config(space={"hidden_size": None}, train={"hidden_layers": [8, 4]})
    content = {**GOOD, "hidden_size": None, "hidden_layers": [8, 4]}
    assert load_enqueued(write(content), spec)[1] == []
    (said,) = load_enqueued(write(content | {"hidden_layers": [8]}), spec)[1]
    assert "hidden_layers = [8] is left out: this study trains with [8, 4]" in said


def test_the_order_is_that_of_the_space():
    backwards = dict(reversed(GOOD.items()))
    assert list(load_enqueued(write(backwards), make_config())[0]) == list(make_config().space)


def test_what_the_study_fixes_may_be_there_and_what_differs_is_told():
    content = {"params": GOOD | {"momentum": 0.9, "batch_size": 100, "hidden_layers": 1, "optimizer": 5}}
    params, said = load_enqueued(write(content), make_config())
    assert params == GOOD
    assert said == [
        "best.json: batch_size = 100 is left out: this study trains with 60",
        "best.json: optimizer = 5 is left out: this study knows no such hyperparameter",
    ]


def test_a_value_gets_the_type_of_its_hyperparameter():
    spec = make_config(space={"learning_rate": {"low": 0.1, "high": 1.0}, "momentum": {"choices": [0.0, 0.5]}})
    params, _ = load_enqueued(write(GOOD | {"learning_rate": 1, "momentum": 0}), spec)
    assert [type(params[key]) for key in ("learning_rate", "momentum", "hidden_size")] == [float, float, int]


@pytest.mark.parametrize("value", [8, 32])
def test_the_ends_of_a_range_are_in_it(value):
    assert load_enqueued(write(GOOD | {"hidden_size": value}), make_config())[0]["hidden_size"] == value


@pytest.mark.parametrize(
    ("changed", "told"),
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
def test_what_the_study_cannot_try_is_refused_with_what_it_can(changed, told):
    more = {"batch_size": {"choices": [20, 40]}, "momentum": {"choices": [0.0, 0.5]}}
    spec = make_config(space=more | {"hidden_layers": {"low": 1, "high": 2}})
    with pytest.raises(EnqueueError) as caught:
        load_enqueued(write(GOOD | {"batch_size": 20, "momentum": 0.5, "hidden_layers": 1} | changed), spec)
    assert str(caught.value).startswith(f"best.json: {told}")


def test_what_is_searched_must_be_there():
    with pytest.raises(EnqueueError, match=r"^best\.json: epochs: missing; this study searches it$"):
        load_enqueued(write({key: value for key, value in GOOD.items() if key != "epochs"}), make_config())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON: Expecting property name"),
        ("", "not JSON: Expecting value"),
        ("[1]", "an object of parameters is allowed, or the JSON of a launch"),
        ("null", "an object of parameters is allowed"),
        ('{"params": [1]}', "an object of parameters is allowed"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_json_of_parameters(content, told):
    with pytest.raises(EnqueueError, match=r"^best\.json: ") as caught:
        load_enqueued(write(content), make_config())
    assert told in str(caught.value)


def test_what_cannot_be_read():
    with pytest.raises(EnqueueError, match=r"^nowhere\.json: no such file$"):
        load_enqueued(Path("nowhere.json"), make_config())
    with pytest.raises(EnqueueError, match="cannot be read: Is a directory"):
        load_enqueued(Path(), make_config())
    Path("latin.json").write_bytes(b'{"\xe9": 1}')
    with pytest.raises(EnqueueError, match=r"latin\.json: not JSON"):
        load_enqueued(Path("latin.json"), make_config())
