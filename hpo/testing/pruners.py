"""Contract of a pruner, as tests that an implementation inherits."""

import copy
from collections.abc import Callable

import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo.search.pruning.pruners import Pruner, report_steps
from hpo.search.sampling.tpe import running_trial
from hpo.search.scheduler import PrunePaused, Resume, Start, Stop, Wait, next_action


class SimulatedStudy:
    """Study whose trials report the values of given curves. Its workers take turns.

    Args:
        pruner: The pruner of the study.
        value: Returns the value of a trial of this number after a step.
        max_steps: The number of steps of each trial.
        budget: The number of trials.

    Attributes:
        trials: The trials in the order of their numbers.
        paused: The numbers of the paused trials.
    """

    def __init__(self, pruner: Pruner, value: Callable[[int, int], float], max_steps: int, budget: int) -> None:
        self.trials: list[FrozenTrial] = []
        self.paused: set[int] = set()
        self._pruner = pruner
        self._value = value
        self._budget = budget
        self._stops = sorted({*pruner.decision_steps(), max_steps})

    def run(self, n_workers: int) -> list[FrozenTrial]:
        """Run all trials to their end, and return them."""
        running: dict[int, FrozenTrial] = {}
        # At each stop, a trial takes one turn to run and one turn to start or to resume. Two turns end the study.
        turns = 2 * self._budget * len(self._stops) + 2
        for turn in range(n_workers * turns):
            worker = turn % n_workers
            if worker in running:
                if not self._continues(running[worker]):
                    del running[worker]
                continue
            match next_action(self._pruner, self.trials, self.paused, self._budget):
                case Resume(number):
                    self.paused.remove(number)
                    running[worker] = self.trials[number]
                case Start():
                    running[worker] = running_trial(len(self.trials), {}, {})
                    self.trials.append(running[worker])
                case PrunePaused():
                    self._prune_paused()
                case Wait():
                    assert running, "a worker waits, but no trial runs"
                case Stop():
                    return self.trials
        raise AssertionError("the study does not end")

    def _continues(self, trial: FrozenTrial) -> bool:
        """Run a trial to its next decision, and return whether it continues."""
        step = next(step for step in self._stops if step > (trial.last_step or 0))
        trial.intermediate_values[step] = self._value(trial.number, step)
        if step == self._stops[-1]:
            _finish(trial, TrialState.COMPLETE)
        elif self._pruner.should_continue(self.trials, trial.number):
            return True
        elif self._pruner.pauses:
            self.paused.add(trial.number)
        else:
            _finish(trial, TrialState.PRUNED)
        return False

    def _prune_paused(self) -> None:
        for number in self.paused:
            _finish(self.trials[number], TrialState.PRUNED)
        self.paused.clear()


def _finish(trial: FrozenTrial, state: TrialState) -> None:
    trial.state, trial.value = state, trial.intermediate_values[max(trial.intermediate_values)]


class PrunerContract:
    """Tests of the protocol ``Pruner``. A subclass provides ``make_pruner``.

    Attributes:
        max_steps: The number of steps of the longest trial.
    """

    max_steps = 100

    def make_pruner(self) -> Pruner:
        """Return a pruner for trials of ``max_steps`` steps."""
        raise NotImplementedError

    def test_decision_steps_are_steps_of_trial(self) -> None:
        """Check the steps of the decisions."""
        assert all(1 <= step <= self.max_steps for step in self.make_pruner().decision_steps())

    def test_trial_without_report_continues(self) -> None:
        """Check a trial that has not reported a value, unlike other trials."""
        trials = [*self._make_trials(step=self.max_steps, n_complete=9), running_trial(10, {}, {})]
        assert self.make_pruner().should_continue(trials, 10)

    def test_trial_continues_at_other_reports(self) -> None:
        """Check that a bad trial can only stop at the decision steps."""
        pruner = self.make_pruner()
        for step in report_steps(self.max_steps) - pruner.decision_steps():
            assert pruner.should_continue(self._make_trials(step, n_complete=9), 9)

    def test_decision_is_function_of_trials(self) -> None:
        """Check that a decision is repeatable and changes no trial."""
        pruner = self.make_pruner()
        for step in pruner.decision_steps():
            trials = self._make_trials(step, n_complete=5)
            before = copy.deepcopy(trials)
            decision = pruner.should_continue(trials, 5)
            assert self.make_pruner().should_continue(trials, 5) == decision
            assert pruner.should_continue(trials, 5) == decision
            assert trials == before

    def test_promoted_trial_is_paused(self) -> None:
        """Check that only a paused trial of a pausing pruner is promoted."""
        pruner = self.make_pruner()
        for step in pruner.decision_steps():
            trials = self._make_trials(step, n_complete=0, n_running=9)
            assert pruner.next_promotion(trials, set()) is None
            paused = {2, 3, 4, 5, 6, 7}
            promoted = pruner.next_promotion(trials, paused), pruner.next_promotion(trials, paused, min_promoted=9)
            assert set(promoted) <= ({None, *paused} if pruner.pauses else {None})

    @pytest.mark.parametrize("offset", [0.0, -100.0])
    @pytest.mark.parametrize("n_workers", [1, 4])
    @pytest.mark.parametrize("budget", [1, 2, 10])
    def test_study_ends(self, budget: int, n_workers: int, offset: float) -> None:
        """Check that each trial ends.

        A pruner that pauses completes at least one trial.
        """
        pruner = self.make_pruner()

        def value(number: int, step: int) -> float:
            return offset + (number * 7 % 10) / 10 * step / self.max_steps

        trials = SimulatedStudy(pruner, value, self.max_steps, budget).run(n_workers)
        assert len(trials) == budget
        states = {trial.state for trial in trials}
        assert states <= {TrialState.COMPLETE, TrialState.PRUNED}
        assert TrialState.COMPLETE in states or not pruner.pauses

    def _make_trials(self, step: int, n_complete: int, n_running: int = 1) -> list[FrozenTrial]:
        """Return trials with a report at this step, in the order of their values."""
        trials = [running_trial(number, {}, {}) for number in range(n_complete + n_running)]
        for trial in trials:
            trial.intermediate_values = {step: -float(trial.number)}
        for trial in trials[:n_complete]:
            _finish(trial, TrialState.COMPLETE)
        return trials
