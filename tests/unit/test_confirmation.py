"""Ranking of confirmed trials, from lists of trials."""

import datetime as dt
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from workers import make_config

from hpo.storage.tables.weight_retention import KEPT_WEIGHTS
from hpo.tuning.confirmation import (
    CONFIRMATION_SEEDS,
    completion_times,
    confirmation_config,
    ranking,
    repeat_names,
    repeat_params,
    to_json,
)
from hpo.tuning.sampling import SamplingError, accuracy_error
from hpo.ui.cli import MAX_CONFIRM

COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


def make_trial(number, value, x, state=COMPLETE):
    return FrozenTrial(
        number,
        state,
        value=value,
        datetime_start=dt.datetime(2026, 1, 1),
        datetime_complete=dt.datetime(2026, 1, 1, second=number % 60) if state.is_finished() else None,
        params={"x": x},
        distributions={"x": FloatDistribution(0, 99)},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=number,
    )


def best(*values):
    """Return complete trials, each with its own number as parameter."""
    return [make_trial(number, value, number) for number, value in enumerate(values)]


def repeats(values_of):
    """Return the trials of a confirmation study from the values, or the states without a value, of each parameter."""
    endings = [(x, ending) for x, endings in values_of.items() for ending in endings]
    return [
        make_trial(number, None, x, ending) if isinstance(ending, TrialState) else make_trial(number, ending, x)
        for number, (x, ending) in enumerate(endings)
    ]


def numbers(confirmed):
    return [entry.trial.number for entry in confirmed]


def test_mean_of_repeats_selects_winner():
    confirmed = ranking(
        best(0.99, 0.95, 0.94), repeats({0: [0.9, 0.9, 0.9], 1: [0.91, 0.92, 0.93], 2: [0.5, 0.99, 0.5]})
    )
    assert numbers(confirmed) == [1, 0, 2]
    assert confirmed[0].mean == pytest.approx(0.92)
    assert confirmed[0].values == [0.91, 0.92, 0.93]


@pytest.mark.parametrize(("originals", "wins"), [((0.9, 0.8), 0), ((0.9, 0.9), 0)])
def test_equal_means_are_ranked_by_original_value(originals, wins):
    values = [0.5, 0.75, 1.0]
    assert numbers(ranking(best(*originals), repeats({0: values, 1: values})))[0] == wins


def test_trial_with_failed_repeat_ranks_last():
    second = repeats({0: [0.99, PRUNED, 0.99], 1: [0.8, 0.8, 0.8], 2: [FAIL, 1.0, FAIL]})
    assert numbers(ranking(best(0.99, 0.9, 0.89), second)) == [1, 0, 2]


def test_value_of_pruned_repeat_is_ignored():
    second = [*repeats({0: [0.5, 0.5]}), make_trial(2, 0.9, 0, PRUNED)]
    assert ranking(best(0.9), second)[0].values == [0.5, 0.5]


@pytest.mark.parametrize("unfinished", [[], [0.99], [0.99, 0.99], [0.99, 0.99, RUNNING]])
def test_unfinished_repeats_exclude_trial(unfinished):
    second = repeats({0: [0.5, 0.5, 0.5], 1: unfinished})
    assert numbers(ranking(best(0.9, 0.8), second)) == [0]


def test_ranking_without_best_trial_is_empty():
    # A better trial finished later and has no repeats. It must not lose against trials with repeats.
    second = repeats({1: [0.5, 0.5, 0.5]})
    assert ranking(best(0.9, 0.8), second) == []
    assert numbers(ranking(best(0.9, 0.8)[1:], second)) == [1]


def test_ranking_of_failed_repeats_is_empty():
    assert ranking(best(0.9, 0.8), repeats({0: [FAIL] * 3, 1: [PRUNED] * 3})) == []


def test_ranking_without_trials_is_empty():
    assert ranking([], []) == ranking([], repeats({0: [0.5] * 3})) == ranking(best(0.9), []) == []
    assert to_json([], None) is None


def test_repeats_of_other_trials_are_ignored():
    assert numbers(ranking(best(0.9), repeats({0: [0.5] * 3, 7: [0.9] * 3}))) == [0]


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_winner_has_highest_mean(values):
    confirmed = ranking(best(*(1 - number / 10 for number in range(len(values)))), repeats(dict(enumerate(values))))
    means = [entry.mean for entry in confirmed]
    assert means == sorted((statistics.fmean(three) for three in values), reverse=True)


def test_ranking_is_exported():
    sampling = SamplingError(100, 0.04, is_accuracy=True)
    exported = to_json(ranking(best(0.99, 0.95), repeats({0: [0.75, FAIL, FAIL], 1: [0.5, 0.75, 1.0]})), sampling)
    by_seeds, by_rows = 0.25 / 3**0.5, accuracy_error(0.75, 100)
    error = pytest.approx((by_seeds**2 + by_rows**2) ** 0.5)
    values = {"mean": 0.75, "standard_error": error, "values": [0.5, 0.75, 1.0]}
    parts = {"seed_error": pytest.approx(by_seeds), "sampling_error": by_rows}
    other = {"mean": 0.75, "standard_error": None, "values": [0.75], "seed_error": None, "sampling_error": by_rows}
    assert exported == {
        "seeds": 3,
        **values,
        "trials": [
            {"trial": 1, "validation_accuracy": 0.95, **values, **parts},
            {"trial": 0, "validation_accuracy": 0.99, **other},
        ],
        **parts,
    }
    keys = ["seeds", "mean", "standard_error", "values", "trials", "seed_error", "sampling_error"]
    assert list(exported) == keys


def test_equal_values_of_seeds_are_not_certain():
    confirmed = ranking(best(0.99), repeats({0: [0.9] * 3}))
    for metric in ("accuracy", "r2"):
        exported = to_json(confirmed, SamplingError(30, 0.07, is_accuracy=metric == "accuracy"), metric)
        assert exported["seed_error"] == 0
        assert exported["standard_error"] == exported["sampling_error"] > 0.05
    assert to_json(confirmed, None)["standard_error"] is None


def test_repeats_are_named_after_trials_of_search():
    # Trial 1 failed, trials 3 and 0 have the same parameters.
    search = [make_trial(0, 0.5, 7), make_trial(1, None, 8, FAIL), make_trial(2, 0.9, 9), make_trial(3, 0.6, 7)]
    confirmed = [make_trial(number, None, x, RUNNING) for number, x in enumerate([9, 7, 9, 9, 9, 8])]
    assert repeat_names(search, confirmed) == {
        0: "2 seed 1/3",
        1: "3 seed 1/3",
        2: "2 seed 2/3",
        3: "2 seed 3/3",
        4: "2 seed 4/4",
    }


def test_trial_without_value_is_exported():
    exported = to_json(ranking(best(0.99, 0.95), repeats({0: [FAIL] * 3, 1: [0.5] * 3})), None)
    assert exported["sampling_error"] is None
    assert exported["trials"][1] == {
        "trial": 0,
        "validation_accuracy": 0.99,
        "mean": None,
        "standard_error": None,
        "values": [],
        "seed_error": None,
        "sampling_error": None,
    }


def test_completion_times_include_all_repeats():
    confirmed = ranking(best(0.9, 0.8), repeats({0: [0.5] * 3, 1: [FAIL] * 3}))
    assert max(completion_times(confirmed)) == dt.datetime(2026, 1, 1, second=5)


def test_repeats_of_best_trial_come_first():
    assert CONFIRMATION_SEEDS == 3
    assert repeat_params(best(0.9, 0.8)) == ({"x": 0},) * 3 + ({"x": 1},) * 3


def test_confirmation_study_has_other_name_seed_and_pruner():
    config = make_config(seed=5, pruner="asha")
    second = confirmation_config(config)
    then, now = config.settings(), second.settings()
    assert {key for key in then if then[key] != now[key]} == {"study.name", "study.seed", "study.pruner"}
    assert second.study.name == "s:confirmation"
    assert second.study.pruner == "none"


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_confirmation_seed_is_valid_and_different(seed):
    assert confirmation_config(make_config(seed=seed)).study.seed not in (seed, *range(-1000, 0), 2**32)
    assert 0 <= confirmation_config(make_config(seed=seed)).study.seed < 2**32


def test_study_file_cannot_have_confirmation_name():
    with pytest.raises(ValueError, match="name"):
        make_config(confirmation_config(make_config()).study.name)


def test_confirmable_trials_keep_their_weights():
    assert MAX_CONFIRM <= KEPT_WEIGHTS
