"""Who wins when the best trials were trained again, from lists of trials."""

import datetime as dt
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from workers import make_config

from hpo.storage.leases import KEPT_WEIGHTS
from hpo.tuning.confirmation import CONFIRMATION_SEEDS, confirmation_config, describe, newest, ranking, repeated
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
    """Trials of other parameters each: their own numbers."""
    return [make_trial(number, value, number) for number, value in enumerate(values)]


def again(values_of):
    """The second study's trials: for parameters values, or states of those that have none."""
    endings = [(x, ending) for x, endings in values_of.items() for ending in endings]
    return [
        make_trial(number, None, x, ending) if isinstance(ending, TrialState) else make_trial(number, ending, x)
        for number, (x, ending) in enumerate(endings)
    ]


def order(confirmed):
    return [one.trial.number for one in confirmed]


def test_the_mean_of_the_new_seeds_chooses_and_not_what_a_trial_was_chosen_by():
    confirmed = ranking(best(0.99, 0.95, 0.94), again({0: [0.9, 0.9, 0.9], 1: [0.91, 0.92, 0.93], 2: [0.5, 0.99, 0.5]}))
    assert order(confirmed) == [1, 0, 2]
    assert confirmed[0].mean == pytest.approx(0.92)
    assert confirmed[0].values == [0.91, 0.92, 0.93]


@pytest.mark.parametrize(("originals", "wins"), [((0.9, 0.8), 0), ((0.9, 0.9), 0)])
def test_of_equal_means_the_higher_original_wins_and_then_the_lower_number(originals, wins):
    values = [0.5, 0.75, 1.0]
    assert order(ranking(best(*originals), again({0: values, 1: values})))[0] == wins


def test_who_failed_with_a_seed_is_behind_those_who_did_not():
    second = again({0: [0.99, PRUNED, 0.99], 1: [0.8, 0.8, 0.8], 2: [FAIL, 1.0, FAIL]})
    assert order(ranking(best(0.99, 0.9, 0.89), second)) == [1, 0, 2]


def test_a_pruned_trials_last_value_does_not_count():
    second = [*again({0: [0.5, 0.5]}), make_trial(2, 0.9, 0, PRUNED)]
    assert ranking(best(0.9), second)[0].values == [0.5, 0.5]


@pytest.mark.parametrize("unfinished", [[], [0.99], [0.99, 0.99], [0.99, 0.99, RUNNING]])
def test_who_has_seeds_to_come_does_not_take_part(unfinished):
    second = again({0: [0.5, 0.5, 0.5], 1: unfinished})
    assert order(ranking(best(0.9, 0.8), second)) == [0]


def test_it_tells_nothing_without_the_best_trial():
    """A better one came later, and was not trained again: it is not to lose against what was."""
    second = again({1: [0.5, 0.5, 0.5]})
    assert ranking(best(0.9, 0.8), second) == []
    assert order(ranking(best(0.9, 0.8)[1:], second)) == [1]


def test_it_tells_nothing_where_all_have_failed():
    assert ranking(best(0.9, 0.8), again({0: [FAIL] * 3, 1: [PRUNED] * 3})) == []


def test_without_trials_there_is_nothing():
    assert ranking([], []) == ranking([], again({0: [0.5] * 3})) == ranking(best(0.9), []) == []
    assert describe([]) is None


def test_trials_that_nobody_asks_for_any_more_are_left_out():
    assert order(ranking(best(0.9), again({0: [0.5] * 3, 7: [0.9] * 3}))) == [0]


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_winner_has_the_highest_mean(values):
    confirmed = ranking(best(*(1 - number / 10 for number in range(len(values)))), again(dict(enumerate(values))))
    means = [one.mean for one in confirmed]
    assert means == sorted((statistics.fmean(three) for three in values), reverse=True)


def test_what_is_exported_of_it():
    told = describe(ranking(best(0.99, 0.95), again({0: [0.75, FAIL, FAIL], 1: [0.5, 0.75, 1.0]})))
    error = 0.25 / 3**0.5
    values = {"mean": 0.75, "standard_error": pytest.approx(error), "values": [0.5, 0.75, 1.0]}
    assert told == {
        "seeds": 3,
        **values,
        "trials": [
            {"trial": 1, "validation_accuracy": 0.95, **values},
            {"trial": 0, "validation_accuracy": 0.99, "mean": 0.75, "standard_error": None, "values": [0.75]},
        ],
    }
    assert list(told) == ["seeds", "mean", "standard_error", "values", "trials"]


def test_one_that_has_no_value_is_told_too():
    told = describe(ranking(best(0.99, 0.95), again({0: [FAIL] * 3, 1: [0.5] * 3})))
    assert told["trials"][1] == {
        "trial": 0, "validation_accuracy": 0.99, "mean": None, "standard_error": None, "values": [],
    }  # fmt: skip


def test_the_newest_is_the_last_that_was_trained_again():
    confirmed = ranking(best(0.9, 0.8), again({0: [0.5] * 3, 1: [FAIL] * 3}))
    assert max(newest(confirmed)) == dt.datetime(2026, 1, 1, second=5)


def test_each_is_trained_again_with_all_seeds_the_best_first():
    assert CONFIRMATION_SEEDS == 3
    assert repeated(best(0.9, 0.8)) == ({"x": 0},) * 3 + ({"x": 1},) * 3


# The second study


def test_it_differs_in_name_seed_and_pruner_alone():
    spec = make_config(seed=5, pruner="asha")
    second = confirmation_config(spec)
    then, now = spec.settings(), second.settings()
    assert {key for key in then if then[key] != now[key]} == {"study.name", "study.seed", "study.pruner"}
    assert second.study.name == "s:confirmation"
    assert second.study.pruner == "none"


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_its_seed_is_another_one_that_is_allowed(seed):
    assert confirmation_config(make_config(seed=seed)).study.seed not in (seed, *range(-1000, 0), 2**32)
    assert 0 <= confirmation_config(make_config(seed=seed)).study.seed < 2**32


def test_no_study_file_can_have_its_name():
    with pytest.raises(ValueError, match="name"):
        make_config(confirmation_config(make_config()).study.name)


def test_whoever_can_be_confirmed_has_its_weights():
    assert MAX_CONFIRM <= KEPT_WEIGHTS
