"""When trials report, and which of them go on, and which first."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import MedianPruner
from optuna.trial import TrialState, create_trial

from hpo.config.study import StudyConfig
from hpo.search.pruners import (
    REDUCTION_FACTOR,
    REPORTS,
    SuccessiveHalving,
    decision_epochs,
    pruner_for,
    report_epochs,
    rungs,
    should_continue,
)

EVERY_LENGTH = range(1, 2001)
RUNGS = [1, 3, 9, 27, 81]


def trials_of(*curves, state=TrialState.RUNNING):
    """Trials that have these intermediate values."""
    value = 0.5 if state == TrialState.COMPLETE else None
    return numbered([create_trial(state=state, value=value, intermediate_values=curve) for curve in curves])


def numbered(trials):
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def going_on(pruner, trials):
    """The numbers of those that are not left after their last report."""
    return {trial.number for trial in trials if should_continue(pruner, trials, trial.number)}


def last_goes_on(*values, step=1, rungs=RUNGS):
    """Whether the trial of the last value does, after all of them reported at ``step``."""
    return SuccessiveHalving(rungs).should_continue(trials_of(*({step: value} for value in values)), len(values) - 1)


def spec_with(pruner, epochs=100):
    return StudyConfig.model_validate(
        {
            "study": {"name": "s", "pruner": pruner},
            "data": {"dataset": "digits"},
            "train": {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4, "epochs": epochs},
        }
    )


# The schedule


def test_rungs_by_hand():
    assert {epochs: rungs(epochs) for epochs in (1, 4, 20, 45, 74, 100, 130, 500)} == {
        1: [1],
        4: [1],
        20: [4],  # a later one would be too late for most
        45: [9],
        74: [14],
        100: [6, 20],
        130: [8, 26],
        500: [11, 33, 100],
    }


def test_rungs_ascend_within_the_longest_trial():
    for max_epochs in EVERY_LENGTH:
        epochs = rungs(max_epochs)
        assert 1 <= epochs[0] <= epochs[-1] <= max_epochs
        assert all(earlier < later for earlier, later in pairwise(epochs))


def test_a_trial_reports_at_all_rungs_within_its_length_and_at_most_thirty_times():
    for max_epochs in EVERY_LENGTH:
        epochs = report_epochs(max_epochs)
        assert set(rungs(max_epochs)) <= epochs
        assert 1 <= min(epochs) <= max(epochs) <= max_epochs
        for last in {1, max_epochs // 2, max_epochs - 1, max_epochs}:  # a trial that draws fewer epochs
            assert len({epoch for epoch in epochs if epoch < last} | {last}) <= REPORTS == 30


def test_a_short_trial_reports_after_every_epoch():
    for max_epochs in range(1, 6):
        assert report_epochs(max_epochs) == set(range(1, max_epochs + 1))


def test_reports_are_dense_at_the_start_and_never_far_apart():
    for max_epochs in (50, 100, 500, 2000):
        epochs = sorted(report_epochs(max_epochs))
        assert epochs[0] == 1
        assert epochs[-1] == max_epochs
        assert all(later <= 2 * earlier for earlier, later in pairwise(epochs))


# Successive halving


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1], False),  # nobody yet to be better than
        ([0.5, 0.6], False),
        ([0.4, 0.5, 0.6], True),  # the best of three
        ([0.4, 0.6, 0.5], False),
        ([0.4, 0.6, 0.6], False),  # of two alike the first
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.65], True),  # second of six
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.55], False),  # third of six
        ([0.7, 0.6, 0.5, 0.4, 0.65], False),  # second of five
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.75], True),  # third of nine
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.65], False),  # fourth of nine
    ],
)
def test_the_best_third_of_those_that_got_to_a_rung_goes_on(values, expected):
    assert last_goes_on(*values) is expected


def test_between_rungs_everybody_goes_on():
    assert not last_goes_on(0.9, 0.1, step=9)
    assert last_goes_on(0.9, 0.1, step=10)


def test_only_the_values_at_the_same_rung_count():
    trials = trials_of({1: 0.9, 3: 0.2}, {1: 0.8, 3: 0.1}, {1: 0.1, 3: 0.3})
    assert SuccessiveHalving(RUNGS).should_continue(trials, 2)


def test_a_trial_that_has_not_reported_goes_on():
    assert SuccessiveHalving(RUNGS).should_continue(trials_of({1: 0.9}, {}), 1)


def test_a_trial_that_diverged_before_any_report_counts_for_nobody():
    assert not SuccessiveHalving(RUNGS).should_continue(trials_of({}, {1: 0.4}, {}, {1: 0.5}), 3)
    assert SuccessiveHalving(RUNGS).should_continue(trials_of({}, {1: 0.4}, {1: 0.3}, {1: 0.5}), 3)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_ended_trials_count_as_running_ones_do(state):
    ended, own = trials_of({1: 0.9}, {1: 0.3}, state=state), trials_of({1: 0.5})
    assert not SuccessiveHalving(RUNGS).should_continue(numbered([*ended, *own]), 2)
    own[0].intermediate_values = {1: 0.95}
    assert SuccessiveHalving(RUNGS).should_continue(numbered([*ended, *own]), 2)


values = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(values=values)
def test_a_third_goes_on_and_nobody_below_one_that_does_not(values):
    chosen = going_on(SuccessiveHalving(RUNGS), trials_of(*({1: value} for value in values)))
    assert len(chosen) == len(values) // REDUCTION_FACTOR
    left = [value for number, value in enumerate(values) if number not in chosen]
    assert max(left) <= min((values[number] for number in chosen), default=1)


# Promotion


@settings(max_examples=100, deadline=None)
@given(values=values, brackets=st.integers(1, 5), step=st.sampled_from(RUNGS), data=st.data())
def test_who_is_promoted_is_one_that_would_go_on_and_the_best_of_them(values, brackets, step, data):
    halving, trials = SuccessiveHalving(RUNGS, brackets), trials_of(*({step: value} for value in values))
    judged = {number for number in range(len(values)) if step in RUNGS[halving.bracket(number) :]}
    paused = data.draw(st.sets(st.sampled_from(sorted(judged)))) if judged else set()
    next_promotion = [number for number in paused if halving.should_continue(trials, number)]
    best = max(next_promotion, key=lambda number: (values[number], -number), default=None)
    assert halving.next_promotion(trials, paused) == best


def test_who_was_paused_is_promoted_once_worse_ones_have_come():
    halving = SuccessiveHalving(RUNGS)
    for reached, expected in ((1, None), (2, None), (3, 0), (4, 0), (5, 0), (6, 0)):
        trials = trials_of(*({1: 0.9 - number / 10} for number in range(reached)))
        assert halving.next_promotion(trials, set(range(reached))) == expected
    assert halving.next_promotion(trials, {1, 2, 3, 4, 5}) == 1
    assert halving.next_promotion(trials, {2, 3, 4, 5}) is None


def test_the_highest_rung_comes_first():
    low, high = (
        [{1: 0.9 - number / 100} for number in range(6)],
        [{1: 0.1, 3: 0.2 + number / 100} for number in range(3)],
    )
    trials = trials_of(*low, *high)
    assert SuccessiveHalving(RUNGS).next_promotion(trials, set(range(9))) == 8
    assert SuccessiveHalving(RUNGS).next_promotion(trials, set(range(8))) == 0


def test_who_waits_at_a_higher_rung_is_not_promoted_from_a_lower_one():
    trials = trials_of({1: 0.9, 3: 0.9}, {1: 0.2}, {1: 0.1})
    assert SuccessiveHalving(RUNGS).next_promotion(trials, {0, 1, 2}) is None


def test_reports_after_the_rung_do_not_hide_that_a_trial_waits_there():
    trials = trials_of({1: 0.9, 2: 0.1}, {1: 0.2}, {1: 0.1})
    assert SuccessiveHalving(RUNGS).next_promotion(trials, {0, 1, 2}) == 0


@pytest.mark.parametrize("waiting", [1, 2])
def test_of_few_the_best_is_promoted_where_at_least_one_should_be(waiting):
    trials = trials_of(*({1: 0.5 + number / 10, 3: 0.5 + number / 10} for number in range(waiting)))
    halving = SuccessiveHalving(RUNGS)
    assert halving.next_promotion(trials, set(range(waiting))) is None
    assert halving.next_promotion(trials, set(range(waiting)), least=1) == waiting - 1
    assert halving.next_promotion(trials, set(range(waiting - 1)), least=1) is None


# Brackets


def test_without_brackets_every_trial_is_in_the_first():
    assert {SuccessiveHalving(RUNGS).bracket(number) for number in range(1000)} == {0}


@pytest.mark.parametrize(
    ("brackets", "shares"),
    # ceil(brackets / (late + 1) * 3^late) trials: Table 1 of the Hyperband article for five of them
    [(2, [3, 2]), (3, [9, 5, 3]), (5, [81, 34, 15, 8, 5])],
)
def test_brackets_have_hyperbands_shares(brackets, shares):
    pruner = SuccessiveHalving(RUNGS[:brackets], brackets)
    drawn = Counter(pruner.bracket(number) for number in range(10_000))
    assert sorted(drawn) == list(range(brackets))
    for bracket, share in enumerate(shares):
        assert drawn[bracket] / 10_000 == pytest.approx(share / sum(shares), abs=0.01)


def test_early_trials_are_not_all_in_one_bracket():
    pruner = SuccessiveHalving(RUNGS, 5)
    assert len({pruner.bracket(number) for number in range(30)}) >= 3


def numbers_in(pruner, bracket, count):
    return [number for number in range(1000) if pruner.bracket(number) == bracket][:count]


def test_a_bracket_judges_its_own_trials_only():
    halving = SuccessiveHalving(RUNGS, 5)
    own = numbers_in(halving, 0, 3)
    curves = [{1: 0.9} for _ in range(own[-1] + 1)]
    for number, value in zip(own, (0.2, 0.3, 0.4), strict=True):
        curves[number] = {1: value}
    trials = trials_of(*curves)
    assert len(trials) > 3
    assert halving.should_continue(trials, own[2])
    assert not halving.should_continue(trials, own[1])
    assert halving.next_promotion(trials, own) == own[2]
    assert halving.next_promotion(trials, own[:2]) is None


@pytest.mark.parametrize("bracket", range(5))
def test_a_bracket_is_spared_as_many_rungs_as_its_number(bracket):
    halving = SuccessiveHalving(RUNGS, 5)
    better, worse = numbers_in(halving, bracket, 2)
    judged = []
    for step in RUNGS:
        curves = [{}] * worse + [{step: 0.1}]
        curves[better] = {step: 0.9}
        if not halving.should_continue(trials_of(*curves), worse):
            judged.append(step)
            assert halving.next_promotion(trials_of(*curves), {better, worse}, least=1) == better
        else:
            assert halving.next_promotion(trials_of(*curves), {better, worse}, least=1) is None
    assert judged == RUNGS[bracket:]


# The study file's choice


def test_asha_is_one_bracket_and_hyperband_one_for_each_rung():
    asha, hyperband = pruner_for(spec_with("asha")), pruner_for(spec_with("hyperband"))
    assert {asha.bracket(number) for number in range(1000)} == {0}
    assert {hyperband.bracket(number) for number in range(1000)} == set(range(len(rungs(100))))


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 500])
def test_hyperband_has_no_more_brackets_than_rungs(epochs):
    pruner = pruner_for(spec_with("hyperband", epochs))
    assert {pruner.bracket(number) for number in range(1000)} == set(range(len(rungs(epochs))))


def test_asha_judges_at_the_rungs_of_the_longest_trial():
    pruner = pruner_for(spec_with("asha", 500))
    judged = [step for step in range(1, 501) if not should_continue(pruner, trials_of({step: 0.9}, {step: 0.1}), 1)]
    assert judged == rungs(500)


def compared(*, trials, step, value):
    """Complete trials, all better at ``step`` than the last, which runs."""
    before = trials_of(*({step: 0.5 + number / 100} for number in range(trials)), state=TrialState.COMPLETE)
    return numbered([*before, create_trial(state=TrialState.RUNNING, intermediate_values={step: value})])


@pytest.mark.parametrize(
    ("trials", "early", "value", "expected"),
    [
        (5, 0, 0.51, False),  # the median is 0.52
        (5, 0, 0.53, True),
        (4, 0, 0.1, True),  # too few to judge by
        (5, 1, 0.1, True),  # before the first rung
    ],
)
def test_median_stops_what_is_below_the_median_from_the_first_rung_on(trials, early, value, expected):
    pruner, step = pruner_for(spec_with("median", 500)), rungs(500)[0] - early
    assert isinstance(pruner, MedianPruner)
    assert should_continue(pruner, compared(trials=trials, step=step, value=value), trials) is expected


def test_none_stops_nobody():
    pruner = pruner_for(spec_with("none"))
    for step in (*RUNGS, 100):
        assert going_on(pruner, trials_of(*[{step: 0.9}] * 9, {step: 0.0})) == set(range(10))


@pytest.mark.parametrize(
    ("pruner", "judged"),
    [
        ("asha", set(rungs(500))),
        ("hyperband", set(rungs(500))),
        ("median", {epoch for epoch in report_epochs(500) if epoch >= rungs(500)[0]}),
        ("none", set()),
    ],
)
def test_only_some_reports_can_be_a_trials_last(pruner, judged):
    assert decision_epochs(spec_with(pruner, 500)) == judged


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "none"])
def test_no_trial_is_left_at_another_report(pruner):
    spec = spec_with(pruner, 500)
    fatal = {
        epoch
        for epoch in report_epochs(500)
        if not should_continue(pruner_for(spec), compared(trials=9, step=epoch, value=0.1), 9)
    }
    assert fatal <= decision_epochs(spec)
    assert fatal == decision_epochs(spec) or pruner == "hyperband"
