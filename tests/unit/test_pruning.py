"""When trials report, and which of them go on."""

from collections import Counter
from itertools import pairwise

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from hpo.pruning import REPORTS, HalvingPruner, judged_epochs, pruner_for, report_epochs, rungs, should_prune
from hpo.spec import StudySpec

EVERY_LENGTH = range(1, 2001)
RUNGS = [1, 3, 9, 27, 81]


@pytest.fixture(scope="module", autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def study_of(*curves, state=TrialState.RUNNING):
    """A study in memory whose trials have these intermediate values."""
    study = optuna.create_study(direction="maximize")
    for curve in curves:
        value = 0.5 if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, intermediate_values=curve))
    return study


def pruned(pruner, study, number=-1):
    return bool(pruner.prune(study, study.get_trials(deepcopy=False)[number]))


def last_is_pruned(*values, step=1, rungs=RUNGS):
    """Whether the trial of the last value is, after all of them reported at ``step``."""
    return pruned(HalvingPruner(rungs), study_of(*({step: value} for value in values)))


def spec_with(pruner, epochs=100):
    return StudySpec.model_validate(
        {
            "study": {"name": "s", "pruner": pruner},
            "data": {"dataset": "digits"},
            "train": {"learning_rate": 0.1, "regularization": 0.0, "hidden_size": 4, "epochs": epochs},
        }
    )


# The schedule


@pytest.mark.parametrize(
    ("max_epochs", "expected"),
    [
        (1, [1]),
        (2, [1]),
        (3, [1, 3]),
        (8, [1, 3]),
        (9, [1, 3, 9]),
        (17, [1, 3, 9]),
        (18, [2, 6, 18]),
        (500, [55, 165, 495]),
    ],
)
def test_rungs_by_hand(max_epochs, expected):
    assert rungs(max_epochs) == expected


def test_rungs_are_powers_of_three_times_the_first_and_fill_the_longest_trial():
    for max_epochs in EVERY_LENGTH:
        epochs = rungs(max_epochs)
        assert 1 <= epochs[0] <= epochs[-1] <= max_epochs
        assert all(later == 3 * earlier for earlier, later in pairwise(epochs))
        assert epochs[0] == 1 or len(epochs) == 3
        assert epochs[-1] * 3 > max_epochs
        assert (epochs[0] + 1) * 9 > max_epochs  # three would not fit if the first came later


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
        ([0.1], False),  # the first there goes on
        ([0.5, 0.6], False),  # the best always does
        ([0.5, 0.4], True),
        ([0.5, 0.5], False),  # a tie is not below the best
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.65], False),  # second of six
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.55], True),  # third of six
        ([0.7, 0.6, 0.5, 0.4, 0.65], True),  # second of five
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.75], False),  # third of nine
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.65], True),  # fourth of nine
    ],
)
def test_the_best_third_of_those_that_got_to_a_rung_goes_on(values, expected):
    assert last_is_pruned(*values) is expected


def test_between_rungs_nobody_is_pruned():
    assert last_is_pruned(0.9, 0.1, step=9)
    assert not last_is_pruned(0.9, 0.1, step=10)


def test_only_the_values_at_the_same_rung_count():
    study = study_of({1: 0.9, 3: 0.2}, {1: 0.8}, {1: 0.1, 3: 0.3})
    assert not pruned(HalvingPruner(RUNGS), study)


def test_a_trial_that_has_not_reported_goes_on():
    assert not pruned(HalvingPruner(RUNGS), study_of({1: 0.9}, {}))


def test_a_trial_that_diverged_before_any_report_counts_for_nobody():
    pruner = HalvingPruner(RUNGS)
    with_diverged = study_of({}, {1: 0.5}, {}, {1: 0.4})
    assert pruned(pruner, with_diverged)
    assert not pruned(pruner, study_of({}, {}, {}, {}, {}, {1: 0.4}))


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_ended_trials_count_as_running_ones_do(state):
    study = study_of({1: 0.9}, {1: 0.8}, state=state)
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values={1: 0.5}))
    assert pruned(HalvingPruner(RUNGS), study)


values = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(values=values, brackets=st.integers(1, 5), step=st.sampled_from([1, 2, 9, 81]))
def test_a_decision_repeated_is_the_same(values, brackets, step):
    study = study_of(*({step: value} for value in values))
    first = [pruned(HalvingPruner(RUNGS, brackets), study, number) for number in range(len(values))]
    again = [pruned(HalvingPruner(RUNGS, brackets), study, number) for number in reversed(range(len(values)))]
    assert first == again[::-1]


@settings(max_examples=50, deadline=None)
@given(values=values)
def test_the_best_goes_on_and_nobody_goes_on_below_one_that_is_pruned(values):
    study = study_of(*({1: value} for value in values))
    fates = [pruned(HalvingPruner(RUNGS), study, number) for number in range(len(values))]
    going_on = [value for value, fate in zip(values, fates, strict=True) if not fate]
    stopped = [value for value, fate in zip(values, fates, strict=True) if fate]
    assert max(values) in going_on
    assert max(stopped, default=0) < min(going_on)


# Brackets


def test_without_brackets_every_trial_is_in_the_first():
    assert {HalvingPruner(RUNGS).bracket(number) for number in range(1000)} == {0}


@pytest.mark.parametrize(
    ("brackets", "shares"),
    # ceil(brackets / (late + 1) * 3^late) trials: Table 1 of the Hyperband article for five of them
    [(2, [3, 2]), (3, [9, 5, 3]), (5, [81, 34, 15, 8, 5])],
)
def test_brackets_have_hyperbands_shares(brackets, shares):
    pruner = HalvingPruner(RUNGS[:brackets], brackets)
    drawn = Counter(pruner.bracket(number) for number in range(10_000))
    assert sorted(drawn) == list(range(brackets))
    for bracket, share in enumerate(shares):
        assert drawn[bracket] / 10_000 == pytest.approx(share / sum(shares), abs=0.01)


def test_early_trials_are_not_all_in_one_bracket():
    pruner = HalvingPruner(RUNGS, 5)
    assert len({pruner.bracket(number) for number in range(30)}) >= 3


def numbers_in(pruner, bracket, count):
    return [number for number in range(1000) if pruner.bracket(number) == bracket][:count]


def test_a_bracket_judges_its_own_trials_only():
    pruner = HalvingPruner(RUNGS, 5)
    one, other = numbers_in(pruner, 0, 2)
    strangers = [number for number in range(other) if pruner.bracket(number) != 0]
    curves = [{1: 0.9} if number in strangers else {} for number in range(other + 1)]
    curves[other] = {1: 0.4}
    assert strangers
    assert not pruned(pruner, study_of(*curves))
    curves[one] = {1: 0.5}
    assert pruned(pruner, study_of(*curves))


@pytest.mark.parametrize("bracket", range(5))
def test_a_bracket_is_spared_as_many_rungs_as_its_number(bracket):
    pruner = HalvingPruner(RUNGS, 5)
    better, worse = numbers_in(pruner, bracket, 2)
    judged = []
    for step in RUNGS:
        curves = [{}] * worse + [{step: 0.1}]
        curves[better] = {step: 0.9}
        if pruned(pruner, study_of(*curves)):
            judged.append(step)
    assert judged == RUNGS[bracket:]


# The study file's choice


def test_asha_is_one_bracket_and_hyperband_one_for_each_rung():
    asha, hyperband = pruner_for(spec_with("asha")), pruner_for(spec_with("hyperband"))
    assert {asha.bracket(number) for number in range(1000)} == {0}
    assert {hyperband.bracket(number) for number in range(1000)} == set(range(3))


@pytest.mark.parametrize("epochs", [1, 2, 3, 10])
def test_hyperband_has_no_more_brackets_than_rungs(epochs):
    pruner = pruner_for(spec_with("hyperband", epochs))
    assert {pruner.bracket(number) for number in range(1000)} == set(range(len(rungs(epochs))))


def test_asha_judges_at_the_rungs_of_the_longest_trial():
    pruner = pruner_for(spec_with("asha", 500))
    judged = [step for step in range(1, 501) if pruned(pruner, study_of({step: 0.9}, {step: 0.1}))]
    assert judged == [55, 165, 495]


def median_study(*, trials, step, value):
    study = study_of(*({step: 0.5 + number / 100} for number in range(trials)), state=TrialState.COMPLETE)
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values={step: value}))
    return study


@pytest.mark.parametrize(
    ("trials", "step", "value", "expected"),
    [
        (5, 55, 0.51, True),  # the median is 0.52
        (5, 55, 0.53, False),
        (4, 55, 0.1, False),  # too few to judge by
        (5, 54, 0.1, False),  # before the first rung, 55 of 500 epochs
    ],
)
def test_median_stops_what_is_below_the_median_from_the_first_rung_on(trials, step, value, expected):
    study = median_study(trials=trials, step=step, value=value)
    assert pruned(pruner_for(spec_with("median", 500)), study) is expected


def test_none_stops_nobody():
    assert not any(
        pruned(pruner_for(spec_with("none")), study_of(*[{step: 0.9}] * 9, {step: 0.0})) for step in (*RUNGS, 100)
    )


@pytest.mark.parametrize(
    ("pruner", "judged"),
    [
        ("asha", {55, 165, 495}),
        ("hyperband", {55, 165, 495}),
        ("median", {epoch for epoch in report_epochs(500) if epoch >= 55}),
        ("none", set()),
    ],
)
def test_only_some_reports_can_be_a_trials_last(pruner, judged):
    assert judged_epochs(spec_with(pruner, 500)) == judged


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "none"])
def test_no_trial_is_pruned_at_another_report(pruner):
    spec = spec_with(pruner, 500)
    fatal = set()
    for epoch in report_epochs(500):
        trials = median_study(trials=9, step=epoch, value=0.1).trials
        if should_prune(pruner_for(spec), trials, 9):
            fatal.add(epoch)
    assert fatal <= judged_epochs(spec)
    assert fatal == judged_epochs(spec) or pruner == "hyperband"


def test_a_trial_is_judged_among_all_trials():
    trials = study_of(*[{55: 0.9}] * 9, {55: 0.0}).trials
    assert should_prune(pruner_for(spec_with("asha", 500)), trials, 9)
    assert not should_prune(pruner_for(spec_with("asha", 500)), trials, 0)


@settings(max_examples=50)
@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=30),
    ended=st.lists(st.booleans(), min_size=30, max_size=30),
    pruner=st.sampled_from(["asha", "hyperband"]),
)
def test_what_a_pruner_remembers_changes_no_answer(values, ended, pruner):
    spec, curves = spec_with(pruner, 500), [{55: value, 165: value} for value in values]
    remembering = pruner_for(spec)
    for reported in range(1, len(values) + 1):
        trials = study_of(*curves[:reported]).trials
        for trial, has_ended in zip(trials, ended, strict=False):
            trial.state = TrialState.PRUNED if has_ended and trial.number < reported - 1 else TrialState.RUNNING
        fresh = should_prune(pruner_for(spec), trials, reported - 1)
        assert should_prune(remembering, trials, reported - 1) == fresh
