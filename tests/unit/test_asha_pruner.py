"""ASHA as an Optuna pruner: its rungs, its decisions, its promotions, and whole studies."""

import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from reported_trials import number_trials, trials_of

import hpo
from hpo.search.pruning.asha_pruner import AshaPruner, PromotingPruner, hpo_pruner
from hpo.search.pruning.pruners import NoPruner
from hpo.search.sampling.tpe import study_from_trials
from hpo.search.scheduler import PrunePaused, Resume, Start, Stop, next_action
from hpo.testing.pruners import PrunerContract

MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE


class TestPromotingPruner(PrunerContract):
    def make_pruner(self):
        return PromotingPruner(AshaPruner(), MAXIMIZE)


def prunes_last(*curves, state=TrialState.RUNNING, **arguments):
    """Return whether the last trial stops; the trials before it have a state. Greater values are better."""
    *others, last = curves
    trials = number_trials([*trials_of(*others, state=state), *trials_of(last)])
    return AshaPruner(**arguments).prune(study_from_trials(trials), trials[-1])


# Rungs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, [1, 3, 9, 27, 81]), ({"min_resource": 4, "reduction_factor": 2}, [4, 8, 16, 32, 64])],
)
def test_rungs_are_powers_of_reduction_factor(arguments, expected):
    stops = [
        last
        for last in range(100)
        if prunes_last(*(dict.fromkeys(range(last + 1), value) for value in (0.9, 0.1)), **arguments)
    ]
    assert stops == expected


def test_first_report_after_rung_decides():
    """The trials report every five steps; the rungs are 1, 3, 9, 27."""
    better = dict.fromkeys(range(0, 40, 5), 0.9)
    stops = [last for last in better if prunes_last(better, dict.fromkeys(range(0, last + 1, 5), 0.1))]
    # Step 5 is the first one after rung 1 and after rung 3.
    assert stops == [5, 10, 30]


def test_trials_are_compared_at_their_first_reports_after_rung():
    # At rung 9 the values are 0.5 and 0.6, whatever comes later.
    assert not prunes_last({9: 0.5, 10: 0.9}, {8: 0.1, 11: 0.6})
    assert prunes_last({9: 0.5, 10: 0.1}, {8: 0.9, 11: 0.4})


@pytest.mark.parametrize("arguments", [{"min_resource": 0}, {"reduction_factor": 1}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"^AshaPruner: min_resource must be 1 or more and reduction_factor 2 or more"):
        AshaPruner(**arguments)


# Decisions


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # The best third.
        ([0.4, 0.5, 0.6], False),
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.65], False),
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.55], True),
    ],
)
@pytest.mark.parametrize("offset", [0, -100])
def test_best_third_continues(values, expected, offset):
    curves = [{1: value + offset} for value in values]
    assert prunes_last(*curves, state=TrialState.COMPLETE) is expected


def test_best_of_few_viable_trials_continues():
    assert not prunes_last({1: 0.1})
    assert not prunes_last({1: 0.5}, {1: 0.6}, state=TrialState.COMPLETE)
    assert prunes_last({1: 0.6}, {1: 0.5}, state=TrialState.COMPLETE)
    # The better trial will not complete.
    assert not prunes_last({1: 0.6}, {1: 0.5}, state=TrialState.FAIL)


def test_trial_without_report_continues():
    assert not prunes_last({1: 0.9}, {}, state=TrialState.COMPLETE)
    assert not prunes_last({1: 0.9}, {0: 0.1}, state=TrialState.COMPLETE)


def test_nan_stops_and_ranks_last():
    assert prunes_last({1: math.nan})
    assert prunes_last({1: math.nan}, {1: math.nan}, {1: math.nan})
    assert not prunes_last({1: math.nan}, {1: math.nan}, {1: -1e9})


def test_last_report_counts_before_study_shows_it():
    study = study_from_trials(trials_of({1: 0.9}, {}))
    worse, better = (trials_of({}, {1: value})[1] for value in (0.1, 0.95))
    assert AshaPruner().prune(study, worse)
    assert not AshaPruner().prune(study, better)


curves = st.dictionaries(st.integers(0, 30), st.sampled_from([0.1, 0.2, 0.3, math.nan]), max_size=4)


@given(curves=st.lists(curves, min_size=1, max_size=8))
def test_direction_mirrors_values(curves):
    trials = trials_of(*curves)
    mirrored = trials_of(*({step: -value for step, value in curve.items()} for curve in curves))
    paused = set(range(len(curves)))
    assert AshaPruner().next_promotion(trials, paused, MAXIMIZE) == AshaPruner().next_promotion(
        mirrored, paused, MINIMIZE
    )
    decisions = []
    for direction, shown in (("maximize", trials), ("minimize", mirrored)):
        study = optuna.create_study(direction=direction)
        study.add_trials(shown)
        decisions.append([AshaPruner().prune(study, trial) for trial in shown])
    assert decisions[0] == decisions[1]


# Promotions


@given(curves=st.lists(curves, min_size=1, max_size=12), min_promoted=st.integers(0, 2))
def test_promoted_trial_was_paused(curves, min_promoted):
    trials = trials_of(*curves)
    paused = {trial.number for trial in trials if trial.intermediate_values and trial.number % 4}
    pruner = PromotingPruner(AshaPruner(), MAXIMIZE)
    number = pruner.next_promotion(trials, paused, min_promoted)
    assert number is None or number in paused
    if number is not None:
        assert pruner.next_promotion(trials, paused - {number}, min_promoted) != number


def test_paused_trial_is_promoted_after_worse_trials():
    pruner = PromotingPruner(AshaPruner(), MAXIMIZE)
    for reached, expected in ((1, None), (2, None), (3, 0), (5, 0), (6, 0)):
        trials = trials_of(*({1: 0.9 - number / 10} for number in range(reached)))
        assert pruner.next_promotion(trials, set(range(reached))) == expected
    assert pruner.next_promotion(trials, {1, 2, 3, 4, 5}) == 1
    assert pruner.next_promotion(trials, {2, 3, 4, 5}) is None


def test_highest_rung_is_promoted_first():
    low = [{1: 0.9 - number / 100} for number in range(6)]
    high = [{1: 0.1, 4: 0.2 + number / 100} for number in range(3)]
    trials = trials_of(*low, *high)
    pruner = PromotingPruner(AshaPruner(), MAXIMIZE)
    assert pruner.next_promotion(trials, set(range(9))) == 8
    assert pruner.next_promotion(trials, set(range(8))) == 0


def test_trial_is_promoted_from_its_highest_rung_only():
    trials = trials_of({1: 0.9, 3: 0.9}, {1: 0.2}, {1: 0.1})
    assert PromotingPruner(AshaPruner(), MAXIMIZE).next_promotion(trials, {0, 1, 2}) is None


@pytest.mark.parametrize("waiting", [1, 2])
def test_min_promoted_promotes_best_of_few(waiting):
    trials = trials_of(*({1: 0.5 + number / 10} for number in range(waiting)))
    pruner = PromotingPruner(AshaPruner(), MAXIMIZE)
    assert pruner.next_promotion(trials, set(range(waiting))) is None
    assert pruner.next_promotion(trials, set(range(waiting)), min_promoted=1) == waiting - 1


# Whole studies


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_pruner_works_in_plain_optuna(direction):
    sign = 1 if direction == "maximize" else -1

    def objective(trial):
        quality = trial.suggest_float("quality", 0, 1)
        for step in range(30):
            trial.report(sign * quality * step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return sign * quality * 30

    study = optuna.create_study(
        direction=direction, pruner=hpo.AshaPruner(), sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(objective, n_trials=60)
    assert study.best_params["quality"] > 0.9
    complete = study.get_trials(states=[TrialState.COMPLETE])
    assert study.trials[0].state == TrialState.COMPLETE
    assert 0 < len(complete) < 15
    stops = {trial.last_step for trial in study.trials if trial.state == TrialState.PRUNED}
    assert stops <= {1, 3, 9, 27}


class PausingStudy:
    """Study with one worker, whose trials report multiples of their quality at some steps."""

    def __init__(self, budget, every):
        self.study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        self.promotions = 0
        self._budget, self._steps = budget, range(0, 101, every)
        self._pruner = AshaPruner()
        self._trials, self._paused = [], set()

    def run(self):
        scheduling = hpo_pruner(self._pruner, self.study.directions)
        for _ in range(10 * self._budget + 10):
            match next_action(scheduling, self.study.trials, self._paused, self._budget):
                case Start():
                    self._trials.append(self.study.ask({"quality": FloatDistribution(0, 1)}))
                    self._run_trial(self._trials[-1], passed_step=-1)
                case Resume(number):
                    self._paused.remove(number)
                    self.promotions += 1
                    self._run_trial(self._trials[number], self.study.trials[number].last_step)
                case PrunePaused():
                    for number in self._paused:
                        self.study.tell(self._trials[number], state=TrialState.PRUNED)
                    self._paused.clear()
                case Stop():
                    return
        raise AssertionError("the study does not end")

    def _run_trial(self, trial, passed_step):
        quality = trial.params["quality"]
        for step in self._steps:
            if step > passed_step:
                trial.report(quality * step, step)
                if self._pruner.prune(self.study, self.study.trials[trial.number]):
                    self._paused.add(trial.number)
                    return
        self.study.tell(trial, quality * 100)


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("budget", [1, 2, 10, 40])
def test_paused_trials_are_promoted_until_study_ends(budget, every):
    running = PausingStudy(budget, every)
    running.run()
    trials = running.study.trials
    assert len(trials) == budget
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert max(trials, key=lambda trial: trial.params["quality"]).state == TrialState.COMPLETE
    assert running.promotions > 0 or budget < 40


def test_other_pruners_promote_nothing():
    assert isinstance(hpo_pruner(optuna.pruners.MedianPruner(), [MINIMIZE]), NoPruner)
    # Optuna refuses reports of several values.
    assert isinstance(hpo_pruner(AshaPruner(), [MINIMIZE, MAXIMIZE]), NoPruner)
    assert isinstance(hpo_pruner(AshaPruner(), [MINIMIZE]), PromotingPruner)
