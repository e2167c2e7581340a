"""Next action of an idle worker, and the course of a whole study."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from reported_trials import number_trials

from hpo.search.pruning.asha import REDUCTION_FACTOR, SuccessiveHalving
from hpo.search.pruning.pruners import MedianPruner, NoPruner
from hpo.search.scheduler import Adopt, PrunePaused, Resume, Start, Stop, Wait, min_complete_of, next_action

RUNGS = [1, 3, 9]
ASHA = SuccessiveHalving(RUNGS)

accuracies = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])


def make_trial(state=TrialState.RUNNING, **reports):
    """Return a trial with reports; ``at_3=0.9`` is the report of step 3."""
    values = {int(name.removeprefix("at_")): value for name, value in reports.items()}
    return create_trial(state=state, value=0.5 if state == TrialState.COMPLETE else None, intermediate_values=values)


def action(*trials, paused=(), budget=3, pruner=ASHA, min_complete=1, is_closing=False):
    return next_action(pruner, number_trials(list(trials)), paused, budget, min_complete, is_closing=is_closing)


def test_first_trials_start():
    assert action() == Start()
    assert action(make_trial(), make_trial()) == Start()
    assert action(make_trial(at_1=0.9), make_trial(at_1=0.8), paused={0, 1}) == Start()


def test_promotion_precedes_new_trial():
    trials = [make_trial(at_1=0.9), make_trial(at_1=0.8), make_trial(at_1=0.7)]
    assert action(*trials, paused={0, 1, 2}, budget=9) == Resume(0)
    assert action(*trials, paused={1, 2}, budget=9) == Start()


def test_best_trial_of_each_rung_is_promoted_before_end_of_time():
    best, other = make_trial(at_1=0.9), make_trial(at_1=0.8)
    assert action(best, other, paused={0, 1}, is_closing=True) == Resume(0)
    assert action(make_trial(at_1=0.9, at_3=0.7), other, paused={0, 1}, is_closing=True) == Resume(0)
    # Trial 0 runs again, and the other worker goes on with the search.
    assert action(best, other, paused={1}, is_closing=True) == Start()
    assert action(make_trial(TrialState.COMPLETE, at_1=0.7), other, paused={1}, is_closing=True) == Resume(1)


def test_best_of_few_waits_for_running_trials():
    paused, running = make_trial(at_1=0.9), make_trial()
    assert action(paused, running, paused={0}, budget=2) == Wait()
    assert action(paused, make_trial(TrialState.FAIL), paused={0}, budget=2) == Resume(0)


def test_trials_without_promotion_are_pruned():
    trials = make_trial(TrialState.COMPLETE, at_1=0.9), make_trial(at_1=0.8)
    assert action(*trials, paused={1}, budget=2) == PrunePaused()


def test_worker_stops_after_last_trial():
    assert action(make_trial(TrialState.COMPLETE), make_trial(TrialState.FAIL), budget=2) == Stop()


def test_budget_below_number_of_trials_starts_none():
    assert action(make_trial(TrialState.COMPLETE), make_trial(TrialState.COMPLETE), budget=1) == Stop()
    assert action(make_trial(TrialState.COMPLETE), make_trial(), budget=1) == Wait()
    assert action(make_trial(at_1=0.5), make_trial(at_1=0.9), paused={0, 1}, budget=1) == Resume(1)


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_next_best_is_promoted_after_best_has_no_result(state):
    trials = [make_trial(state, at_1=0.9), make_trial(at_1=0.7), make_trial(at_1=0.8)]
    assert action(*trials, paused={1, 2}) == Resume(2)
    higher = [make_trial(state, at_1=0.9, at_3=0.9), make_trial(at_1=0.7, at_3=0.5), make_trial(at_1=0.8)]
    assert action(*higher, paused={1, 2}) == Resume(1)
    complete = make_trial(TrialState.COMPLETE, at_1=0.85)
    assert action(*trials, complete, paused={1, 2}, budget=4) == PrunePaused()


def test_best_paused_trials_complete_after_budget():
    done, paused = make_trial(TrialState.COMPLETE, at_1=0.9), [make_trial(at_1=value) for value in (0.3, 0.5, 0.4)]
    assert action(done, *paused, paused={1, 2, 3}, budget=5, min_complete=3) == Start()
    assert action(done, *paused, paused={1, 2, 3}, budget=4, min_complete=3) == Resume(2)
    # Trial 2 runs again, and trial 3 does not wait for its end.
    assert action(done, *paused, paused={1, 3}, budget=4, min_complete=3) == Resume(3)
    assert action(done, *paused, paused={1}, budget=4, min_complete=3) == Wait()
    assert action(done, done, done, paused[0], paused={3}, budget=4, min_complete=3) == PrunePaused()


def test_trial_that_may_complete_is_awaited():
    done, running, paused = make_trial(TrialState.COMPLETE, at_1=0.9), make_trial(), make_trial(at_1=0.3)
    assert action(done, running, paused, paused={2}, min_complete=2) == Wait()
    assert action(done, make_trial(TrialState.PRUNED), paused, paused={2}, min_complete=2) == Resume(2)
    assert action(done, running, paused, paused={2}, min_complete=3) == Resume(2)


def test_failed_trial_is_replaced_by_next_best():
    failed = make_trial(TrialState.FAIL, at_1=0.9)
    assert action(failed, make_trial(at_1=0.1), make_trial(at_1=0.2), paused={1, 2}, min_complete=9) == Resume(2)
    assert action(failed, make_trial(at_1=0.1), failed, paused={1}, min_complete=9) == Resume(1)


@pytest.mark.parametrize(("confirm", "complete"), [(0, 1), (1, 3), (3, 9), (10, 30)])
def test_three_trials_complete_for_each_confirmed_one(confirm, complete):
    assert min_complete_of(confirm) == complete


@pytest.mark.parametrize("pruner", [NoPruner(), MedianPruner(9)])
def test_pruner_without_pauses_starts_and_waits(pruner):
    assert action(make_trial(), pruner=pruner) == Start()
    assert action(make_trial(), make_trial(), make_trial(), pruner=pruner) == Wait()
    assert action(*[make_trial(TrialState.PRUNED) for _ in range(3)], pruner=pruner) == Stop()


# Whole studies


@dataclass
class Future:
    """Future of a trial: its number of epochs, its values at the rungs, and whether it diverges at its end."""

    epochs: int
    curve: dict[int, float]
    diverges: bool


futures = st.builds(
    Future,
    st.integers(1, 12),
    st.fixed_dictionaries(dict.fromkeys(RUNGS, accuracies)),
    st.sampled_from([False] * 7 + [True]),
)


@dataclass
class SimulatedWorkers:
    """Workers without a database that take one action at a time.

    Attributes:
        held: The running trials by their workers.
        stopped: The workers that have stopped.
    """

    halving: SuccessiveHalving
    budget: int
    min_complete: int
    futures: list[Future]
    trials: list[FrozenTrial] = field(default_factory=list)
    paused: set[int] = field(default_factory=set)
    held: dict[int, int] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)

    def act(self, worker: int) -> None:
        if worker in self.held:
            self.train(worker)
            return
        match next_action(self.halving, self.trials, self.paused, self.budget, self.min_complete):
            case Resume(number):
                assert number in self.paused
                self.check_promotion(number)
                self.paused.discard(number)
                self.held[worker] = number
            case Start():
                assert len(self.trials) < self.budget
                number = len(self.trials)
                self.trials.append(create_trial(state=TrialState.RUNNING, intermediate_values={}))
                self.trials[number].number = number
                self.held[worker] = number
            case Wait():
                assert self.held, "a worker waits, but no trial runs"
                assert len(self.trials) == self.budget
            case PrunePaused():
                assert not self.held
                for number in self.paused:
                    self.trials[number].state = TrialState.PRUNED
                self.paused.clear()
            case Stop():
                assert not self.held
                assert not self.paused
                self.stopped.add(worker)
        assert len(set(self.held.values())) == len(self.held)

    def train(self, worker: int) -> None:
        """Train a trial to its next rung or to its end."""
        number = self.held[worker]
        trial, future = self.trials[number], self.futures[number]
        epoch = min((rung for rung in RUNGS if rung > (trial.last_step or 0)), default=future.epochs)
        if future.diverges and epoch >= future.epochs:
            trial.state = TrialState.PRUNED
        elif epoch >= future.epochs:
            trial.state, trial.values = TrialState.COMPLETE, [0.5]
            last = {future.epochs: future.curve.get(future.epochs, 0.5)}
            trial.intermediate_values = trial.intermediate_values | last
        else:
            trial.intermediate_values = trial.intermediate_values | {epoch: future.curve[epoch]}
            if self.halving.should_continue(self.trials, number):
                self.check_decision(number, epoch)
                return
            self.paused.add(number)
        del self.held[worker]

    def rank(self, number: int, rung: int) -> tuple[list[FrozenTrial], int]:
        """Return the better trials of its bracket at a rung, and the number of all trials at the rung."""
        bracket = self.halving.bracket(number)
        reached = [
            trial
            for trial in self.trials
            if rung in trial.intermediate_values and self.halving.bracket(trial.number) == bracket
        ]
        reached.sort(key=lambda trial: (-trial.intermediate_values[rung], trial.number))
        return reached[: reached.index(self.trials[number])], len(reached)

    def check_decision(self, number: int, epoch: int) -> None:
        better, reached = self.rank(number, epoch)
        skips_rung = epoch not in RUNGS[self.halving.bracket(number) :]
        assert skips_rung or len(better) < reached // REDUCTION_FACTOR

    def check_promotion(self, number: int) -> None:
        better, reached = self.rank(number, self.trials[number].last_step)
        is_used_up = len(self.trials) >= self.budget
        n_viable = sum(trial.state != TrialState.PRUNED for trial in better)
        n_complete = sum(trial.state == TrialState.COMPLETE for trial in self.trials)
        is_missing = n_viable < self.min_complete and n_complete + len(self.held) < self.min_complete
        is_best_of_few = not self.held and not n_viable
        assert len(better) < reached // REDUCTION_FACTOR or (is_used_up and (is_missing or is_best_of_few))


@settings(max_examples=300, deadline=None)
@given(
    brackets=st.sampled_from([1, 3]),
    futures=st.lists(futures, min_size=1, max_size=14),
    workers=st.integers(1, 4),
    schedule=st.lists(st.integers(0, 3), max_size=80),
    more=st.integers(0, 4),
    min_complete=st.integers(1, 15),
)
def test_study_ends_for_any_schedule(brackets, futures, workers, schedule, more, min_complete):
    study = SimulatedWorkers(SuccessiveHalving(RUNGS, brackets), max(1, len(futures) - more), min_complete, futures)
    n_viable = sum(not future.diverges for future in futures[: study.budget])
    for worker in schedule:
        study.act(worker % workers)
    # The budget is raised after the end of the study.
    for budget in (study.budget, len(futures)):
        study.budget, study.stopped = budget, set()
        moves = 0
        while len(study.stopped) < workers:
            study.act(moves % workers)
            moves += 1
            assert moves < 30 * len(futures) * workers, "the study does not end"
        states = [trial.state for trial in study.trials]
        assert len(states) == budget
        assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
        # A higher budget comes after the trials that were not needed have been pruned.
        assert states.count(TrialState.COMPLETE) >= min(min_complete, n_viable)
        assert TrialState.COMPLETE in states or all(future.diverges for future in futures[:budget])


def test_enqueued_trial_precedes_new_trial():
    assert action(make_trial(), make_trial(TrialState.WAITING), budget=9) == Adopt(1)
    beyond = make_trial(TrialState.COMPLETE), make_trial(TrialState.WAITING)
    assert action(*beyond, budget=1) == Stop()
