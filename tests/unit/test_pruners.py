"""Pruners by name, and the steps at which trials report."""

from itertools import pairwise

import pytest
from optuna.trial import TrialState, create_trial
from reported_trials import number_trials, trials_of

from hpo.errors import StudyFileError
from hpo.search.pruning.asha import rungs
from hpo.search.pruning.pruners import MAX_REPORTS, PRUNERS, MedianPruner, NoPruner, make_pruner, report_steps
from hpo.testing.pruners import PrunerContract


class TestMedianPruner(PrunerContract):
    def make_pruner(self):
        return MedianPruner(self.max_steps)


class TestNoPruner(PrunerContract):
    def make_pruner(self):
        return NoPruner()


class TestAshaByName(PrunerContract):
    def make_pruner(self):
        return make_pruner("asha", self.max_steps)


class TestHyperbandByName(PrunerContract):
    max_steps = 500

    def make_pruner(self):
        return make_pruner("hyperband", self.max_steps)


# Reports


def test_trial_reports_at_rungs_and_at_most_30_times():
    for max_steps in range(1, 2001):
        steps = report_steps(max_steps)
        assert set(rungs(max_steps)) <= steps
        assert 1 <= min(steps) <= max(steps) <= max_steps
        # A trial can have fewer steps than the longest trial.
        for last in {1, max_steps // 2, max_steps - 1, max_steps}:
            assert len({step for step in steps if step < last} | {last}) <= MAX_REPORTS == 30


def test_short_trial_reports_after_each_step():
    for max_steps in range(1, 6):
        assert report_steps(max_steps) == set(range(1, max_steps + 1))


def test_reports_are_dense_at_start():
    for max_steps in (50, 100, 500, 2000):
        steps = sorted(report_steps(max_steps))
        assert steps[0] == 1
        assert steps[-1] == max_steps
        assert all(later <= 2 * earlier for earlier, later in pairwise(steps))


# Pruners by name


def test_asha_has_one_bracket_and_hyperband_one_per_rung():
    asha, hyperband = make_pruner("asha", 100), make_pruner("hyperband", 100)
    assert {asha.bracket(number) for number in range(1000)} == {0}
    assert {hyperband.bracket(number) for number in range(1000)} == set(range(len(rungs(100))))


@pytest.mark.parametrize("max_steps", [1, 2, 3, 10, 500])
def test_hyperband_has_at_most_as_many_brackets_as_rungs(max_steps):
    pruner = make_pruner("hyperband", max_steps)
    assert {pruner.bracket(number) for number in range(1000)} == set(range(len(rungs(max_steps))))


def test_asha_decides_at_rungs():
    pruner = make_pruner("asha", 500)
    trials = {step: trials_of({step: 0.9}, {step: 0.1}) for step in range(1, 501)}
    assert [step for step in trials if not pruner.should_continue(trials[step], 1)] == rungs(500)


@pytest.mark.parametrize(("name", "pauses"), [("asha", True), ("hyperband", True), ("median", False), ("none", False)])
def test_successive_halving_pauses(name, pauses):
    assert make_pruner(name, 100).pauses is pauses


def make_trials(*, n_complete, step, value):
    """Return complete trials, of which each is better at a step than the running trial after them."""
    complete = trials_of(*({step: 0.5 + number / 100} for number in range(n_complete)), state=TrialState.COMPLETE)
    return number_trials([*complete, create_trial(state=TrialState.RUNNING, intermediate_values={step: value})])


@pytest.mark.parametrize(
    ("n_complete", "early", "value", "expected"),
    [
        # The median is 0.52.
        (5, 0, 0.51, False),
        (5, 0, 0.53, True),
        # The pruner needs five complete trials.
        (4, 0, 0.1, True),
        # The step is before the first rung.
        (5, 1, 0.1, True),
    ],
)
def test_median_pruner_compares_with_median(n_complete, early, value, expected):
    pruner, step = make_pruner("median", 500), rungs(500)[0] - early
    trials = make_trials(n_complete=n_complete, step=step, value=value)
    assert pruner.should_continue(trials, n_complete) is expected


def test_no_pruner_continues_each_trial():
    pruner = make_pruner("none", 100)
    for step in (1, 3, 9, 27, 81, 100):
        trials = trials_of(*[{step: 0.9}] * 9, {step: 0.0})
        assert all(pruner.should_continue(trials, trial.number) for trial in trials)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("asha", set(rungs(500))),
        ("hyperband", set(rungs(500))),
        ("median", {step for step in report_steps(500) if step >= rungs(500)[0]}),
        ("none", set()),
    ],
)
def test_decision_steps_of_pruner(name, expected):
    assert make_pruner(name, 500).decision_steps() == expected


@pytest.mark.parametrize("name", PRUNERS)
def test_trial_stops_at_decision_steps_only(name):
    pruner = make_pruner(name, 500)
    stops = {
        step
        for step in report_steps(500)
        if not pruner.should_continue(make_trials(n_complete=9, step=step, value=0.1), 9)
    }
    assert stops <= pruner.decision_steps()
    assert stops == pruner.decision_steps() or name == "hyperband"


def test_unknown_pruner_is_refused():
    expected = r"^study\.pruner: 'asha', 'hyperband', 'median' or 'none' is allowed, not 'magic'$"
    with pytest.raises(StudyFileError, match=expected):
        make_pruner("magic", 100)
