"""Successive halving: its rungs, its decisions, its promotions and its brackets."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from reported_trials import number_trials, trials_of

from hpo.search.pruning.asha import REDUCTION_FACTOR, SuccessiveHalving, rungs
from hpo.testing.pruners import PrunerContract

RUNGS = [1, 3, 9, 27, 81]


class TestAsha(PrunerContract):
    def make_pruner(self):
        return SuccessiveHalving(RUNGS)


class TestHyperband(PrunerContract):
    def make_pruner(self):
        return SuccessiveHalving(RUNGS, brackets=5)


def last_continues(*values, step=1, rungs=RUNGS):
    """Return whether the trial of the last value continues after all trials have reported at a step."""
    return SuccessiveHalving(rungs).should_continue(trials_of(*({step: value} for value in values)), len(values) - 1)


# Rungs


def test_rungs_by_hand():
    assert {max_steps: rungs(max_steps) for max_steps in (1, 4, 20, 45, 74, 100, 130, 500)} == {
        1: [1],
        4: [1],
        # A later rung would be too late for most trials.
        20: [4],
        45: [9],
        74: [14],
        100: [6, 20],
        130: [8, 26],
        500: [11, 33, 100],
    }


def test_rungs_ascend_within_longest_trial():
    for max_steps in range(1, 2001):
        steps = rungs(max_steps)
        assert 1 <= steps[0] <= steps[-1] <= max_steps
        assert all(earlier < later for earlier, later in pairwise(steps))


# Decisions


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # A single trial is not among the best third.
        ([0.1], False),
        ([0.5, 0.6], False),
        # The best of three.
        ([0.4, 0.5, 0.6], True),
        ([0.4, 0.6, 0.5], False),
        # Of two equal values, the first counts as better.
        ([0.4, 0.6, 0.6], False),
        # The second and the third of six.
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.65], True),
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.55], False),
        # The second of five.
        ([0.7, 0.6, 0.5, 0.4, 0.65], False),
        # The third and the fourth of nine.
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.75], True),
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.65], False),
    ],
)
@pytest.mark.parametrize("offset", [0, -100])
def test_best_third_of_rung_continues(values, expected, offset):
    assert last_continues(*(value + offset for value in values)) is expected


def test_trial_continues_between_rungs():
    assert not last_continues(0.9, 0.1, step=9)
    assert last_continues(0.9, 0.1, step=10)


def test_values_of_same_rung_are_compared():
    trials = trials_of({1: 0.9, 3: 0.2}, {1: 0.8, 3: 0.1}, {1: 0.1, 3: 0.3})
    assert SuccessiveHalving(RUNGS).should_continue(trials, 2)


def test_trial_without_report_continues():
    assert SuccessiveHalving(RUNGS).should_continue(trials_of({1: 0.9}, {}), 1)


def test_trial_without_report_does_not_count():
    assert not SuccessiveHalving(RUNGS).should_continue(trials_of({}, {1: 0.4}, {}, {1: 0.5}), 3)
    assert SuccessiveHalving(RUNGS).should_continue(trials_of({}, {1: 0.4}, {1: 0.3}, {1: 0.5}), 3)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_finished_trials_count_like_running_trials(state):
    finished, own = trials_of({1: 0.9}, {1: 0.3}, state=state), trials_of({1: 0.5})
    assert not SuccessiveHalving(RUNGS).should_continue(number_trials([*finished, *own]), 2)
    own[0].intermediate_values = {1: 0.95}
    assert SuccessiveHalving(RUNGS).should_continue(number_trials([*finished, *own]), 2)


values = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(values=values)
def test_a_third_continues_and_is_best(values):
    halving, trials = SuccessiveHalving(RUNGS), trials_of(*({1: value} for value in values))
    continuing = {trial.number for trial in trials if halving.should_continue(trials, trial.number)}
    assert len(continuing) == len(values) // REDUCTION_FACTOR
    paused = [value for number, value in enumerate(values) if number not in continuing]
    assert max(paused) <= min((values[number] for number in continuing), default=1)


# Promotions


@settings(max_examples=100, deadline=None)
@given(values=values, brackets=st.integers(1, 5), step=st.sampled_from(RUNGS), data=st.data())
def test_best_continuing_trial_is_promoted(values, brackets, step, data):
    halving, trials = SuccessiveHalving(RUNGS, brackets), trials_of(*({step: value} for value in values))
    compared = {number for number in range(len(values)) if step in RUNGS[halving.bracket(number) :]}
    paused = data.draw(st.sets(st.sampled_from(sorted(compared)))) if compared else set()
    continuing = [number for number in paused if halving.should_continue(trials, number)]
    best = max(continuing, key=lambda number: (values[number], -number), default=None)
    assert halving.next_promotion(trials, paused) == best


def test_paused_trial_is_promoted_after_worse_trials():
    halving = SuccessiveHalving(RUNGS)
    for reached, expected in ((1, None), (2, None), (3, 0), (4, 0), (5, 0), (6, 0)):
        trials = trials_of(*({1: 0.9 - number / 10} for number in range(reached)))
        assert halving.next_promotion(trials, set(range(reached))) == expected
    assert halving.next_promotion(trials, {1, 2, 3, 4, 5}) == 1
    assert halving.next_promotion(trials, {2, 3, 4, 5}) is None


def test_highest_rung_is_promoted_first():
    low = [{1: 0.9 - number / 100} for number in range(6)]
    high = [{1: 0.1, 3: 0.2 + number / 100} for number in range(3)]
    trials = trials_of(*low, *high)
    assert SuccessiveHalving(RUNGS).next_promotion(trials, set(range(9))) == 8
    assert SuccessiveHalving(RUNGS).next_promotion(trials, set(range(8))) == 0


def test_trial_is_promoted_from_its_highest_rung_only():
    trials = trials_of({1: 0.9, 3: 0.9}, {1: 0.2}, {1: 0.1})
    assert SuccessiveHalving(RUNGS).next_promotion(trials, {0, 1, 2}) is None


def test_reports_after_rung_do_not_prevent_promotion():
    trials = trials_of({1: 0.9, 2: 0.1}, {1: 0.2}, {1: 0.1})
    assert SuccessiveHalving(RUNGS).next_promotion(trials, {0, 1, 2}) == 0


@pytest.mark.parametrize("waiting", [1, 2])
def test_min_promoted_promotes_best_of_few(waiting):
    trials = trials_of(*({1: 0.5 + number / 10, 3: 0.5 + number / 10} for number in range(waiting)))
    halving = SuccessiveHalving(RUNGS)
    assert halving.next_promotion(trials, set(range(waiting))) is None
    assert halving.next_promotion(trials, set(range(waiting)), min_promoted=1) == waiting - 1
    assert halving.next_promotion(trials, set(range(waiting - 1)), min_promoted=1) is None


# Brackets


def test_single_bracket_has_all_trials():
    assert {SuccessiveHalving(RUNGS).bracket(number) for number in range(1000)} == {0}


@pytest.mark.parametrize(
    ("brackets", "shares"),
    # ceil(brackets / (late + 1) * 3**late) trials. Five brackets are in table 1 of the Hyperband article.
    [(2, [3, 2]), (3, [9, 5, 3]), (5, [81, 34, 15, 8, 5])],
)
def test_brackets_have_shares_of_hyperband(brackets, shares):
    pruner = SuccessiveHalving(RUNGS[:brackets], brackets)
    drawn = Counter(pruner.bracket(number) for number in range(10_000))
    assert sorted(drawn) == list(range(brackets))
    for bracket, share in enumerate(shares):
        assert drawn[bracket] / 10_000 == pytest.approx(share / sum(shares), abs=0.01)


def test_early_trials_have_several_brackets():
    pruner = SuccessiveHalving(RUNGS, 5)
    assert len({pruner.bracket(number) for number in range(30)}) >= 3


def numbers_in(pruner, bracket, count):
    return [number for number in range(1000) if pruner.bracket(number) == bracket][:count]


def test_bracket_compares_its_own_trials():
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
def test_bracket_skips_first_rungs(bracket):
    halving = SuccessiveHalving(RUNGS, 5)
    better, worse = numbers_in(halving, bracket, 2)
    deciding = []
    for step in RUNGS:
        curves = [{}] * worse + [{step: 0.1}]
        curves[better] = {step: 0.9}
        promoted = halving.next_promotion(trials_of(*curves), {better, worse}, min_promoted=1)
        if halving.should_continue(trials_of(*curves), worse):
            assert promoted is None
        else:
            deciding.append(step)
            assert promoted == better
    assert deciding == RUNGS[bracket:]
