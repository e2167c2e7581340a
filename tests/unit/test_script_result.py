"""Parts of a script's result that need no database."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import create_trial

from hpo.runner.function_trial import SeededAttributes, trial_seed
from hpo.scripts.launching.confirmation import is_feasible, ranked
from hpo.scripts.launching.confirmation import to_json as confirmation_to_json
from hpo.scripts.launching.result import finite, summary_lines
from hpo.tuning.confirmation import CONFIRMATION_SEEDS, ranking

SEED = 5


class Recorder:
    """Recorder of the seed of a trial."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return SEED


@pytest.fixture
def record():
    return Recorder()


@pytest.mark.parametrize(
    "read",
    [
        lambda attributes: attributes["seed"],
        lambda attributes: attributes.get("seed"),
        lambda attributes: attributes.get("seed", 0),
        lambda attributes: "seed" in attributes and attributes["seed"],
    ],
)
def test_seed_is_recorded_when_it_is_read(record, read):
    attributes = SeededAttributes({"a": 1}, record)
    assert read(attributes) == SEED
    assert (record.calls, dict(attributes)) == (1, {"a": 1, "seed": SEED})


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda attributes: attributes.get("other", 7), 7),
        (lambda attributes: "other" in attributes, False),
        (dict, {"a": 1}),
        (list, ["a"]),
        (copy.copy, {"a": 1}),
        (copy.deepcopy, {"a": 1}),
        (json.dumps, '{"a": 1}'),
        (lambda attributes: attributes | {"b": 2}, {"a": 1, "b": 2}),
    ],
)
def test_seed_is_not_recorded_otherwise(record, read, value):
    attributes = SeededAttributes({"a": 1}, record)
    assert read(attributes) == value
    assert (record.calls, dict(attributes)) == (0, {"a": 1})


def test_seed_is_recorded_once(record):
    attributes = SeededAttributes({}, record)
    assert {attributes["seed"], attributes.get("seed"), attributes["seed"]} == {SEED}
    assert record.calls == 1


def test_attribute_of_script_is_returned(record):
    attributes = SeededAttributes({"seed": None}, record)
    assert attributes["seed"] is attributes.get("seed", 1) is None
    assert "seed" in attributes
    assert record.calls == 0


def test_missing_attribute_is_key_error(record):
    with pytest.raises(KeyError, match="other"):
        SeededAttributes({}, record)["other"]


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_seed_fits_signed_integer_of_32_bits(seed, number):
    assert 0 <= trial_seed(seed, number) < 2**31
    assert trial_seed(seed, number) == trial_seed(seed, number)
    assert trial_seed(seed, number) != trial_seed(seed ^ 2**31, number)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values)
def test_any_value_becomes_strict_json(value):
    text = json.dumps(finite(value), allow_nan=False)
    assert json.loads(text) == finite(json.loads(json.dumps(value)))


def complete(*values, **details):
    """Return complete trials with these numbers as values."""
    trials = [create_trial(value=value, **details) for value in values]
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


@given(st.lists(st.floats(allow_nan=False), max_size=8), st.sampled_from([1, -1]))
def test_trials_are_ranked_by_value_then_number(values, sign):
    order = [trial.number for trial in ranked(complete(*values), sign)]
    assert order == sorted(range(len(values)), key=lambda number: (-sign * values[number], number))


def test_only_complete_feasible_trials_with_number_are_ranked():
    trials = complete(1.0, 2.0)
    trials[0].values = [math.nan]
    assert [trial.number for trial in ranked(trials, 1)] == [1]
    (infeasible,) = complete(3.0, system_attrs={"constraints": [0.5]})
    assert not is_feasible(infeasible)
    assert ranked([infeasible], 1) == []


def repeats(*values):
    return [repeat for value in values for repeat in complete(*[value] * CONFIRMATION_SEEDS)]


@pytest.mark.parametrize(("sign", "winner"), [(1, 1), (-1, 0)])
def test_direction_decides_ranking_of_means(sign, winner):
    best = complete(1.0, 1.0)
    for trial, x in zip(best, (0, 1), strict=True):
        trial.params = {"x": x}
    second = repeats(2.0, 3.0)
    for index, repeat in enumerate(second):
        repeat.params = {"x": index // CONFIRMATION_SEEDS}
    confirmed = ranking(best, second, sign)
    assert confirmed[0].trial.number == winner
    exported = confirmation_to_json(confirmed)
    assert (exported["seeds"], exported["mean"], exported["standard_error"]) == (3, 2.0 + winner, 0.0)
    assert exported["trials"][1] == {
        "trial": 1 - winner,
        "value": 1.0,
        "mean": 3.0 - winner,
        "standard_error": 0.0,
        "values": [3.0 - winner] * 3,
    }


def test_infinite_repeat_counts_as_failed():
    best = complete(1.0, 2.0)
    best[0].params, best[1].params = {"x": 0}, {"x": 1}
    second = repeats(math.inf, 0.5)
    for index, repeat in enumerate(second):
        repeat.params = {"x": index // CONFIRMATION_SEEDS}
    confirmed = ranking(best, second)
    assert [entry.trial.number for entry in confirmed] == [1, 0]
    assert confirmation_to_json(confirmed)["trials"][1]["mean"] is None


def test_nothing_confirmed_is_null():
    assert confirmation_to_json([]) is None


RESULT = {"study": "s", "trial": 3, "value": 0.5, "params": {"x": 1}, "trials": {"complete": 2, "failed": 0}}


def test_summary_has_best_trial_and_mean():
    assert summary_lines(RESULT | {"confirmation": None}) == ["s: trial 3 is the best: 0.5; 2 complete", "x 1"]
    confirmed = RESULT | {"confirmation": {"seeds": 3, "mean": 0.25}, "params": {}}
    assert summary_lines(confirmed) == ["s: trial 3 is the best: 0.5 (mean of 3 repeats: 0.25); 2 complete"]
