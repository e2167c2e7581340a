"""What a free worker does next, and where that leads a study."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.pruners import REDUCTION_FACTOR, SuccessiveHalving
from hpo.search.scheduler import Create, Leave, Promote, Prune, Wait, next_action

RUNGS = [1, 3, 9]
ASHA = SuccessiveHalving(RUNGS)

accuracies = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])


def trial(state=TrialState.RUNNING, **reported):
    """One that reported 0.9 in epoch 3: ``trial(at_3=0.9)``."""
    values = {int(name.removeprefix("at_")): value for name, value in reported.items()}
    return create_trial(state=state, value=0.5 if state == TrialState.COMPLETE else None, intermediate_values=values)


def step(*trials, paused=(), budget=3, pruner=ASHA):
    for number, one in enumerate(trials):
        one.number = number
    return next_action(pruner, trials, paused, budget)


def test_the_first_trials_are_created():
    assert step() == Create()
    assert step(trial(), trial()) == Create()
    assert step(trial(at_1=0.9), trial(at_1=0.8), paused={0, 1}) == Create()


def test_who_got_into_the_top_third_goes_on_before_the_next_is_created():
    reached = [trial(at_1=0.9), trial(at_1=0.8), trial(at_1=0.7)]
    assert step(*reached, paused={0, 1, 2}, budget=9) == Promote(0)
    assert step(*reached, paused={1, 2}, budget=9) == Create()


def test_the_best_of_few_waits_until_nobody_trains():
    paused, running = trial(at_1=0.9), trial()
    assert step(paused, running, paused={0}, budget=2) == Wait()
    assert step(paused, trial(TrialState.FAIL), paused={0}, budget=2) == Promote(0)


def test_those_who_wait_for_nothing_are_pruned():
    assert step(trial(TrialState.COMPLETE, at_1=0.9), trial(at_1=0.8), paused={1}, budget=2) == Prune()


def test_where_all_have_ended_a_worker_leaves():
    assert step(trial(TrialState.COMPLETE), trial(TrialState.FAIL), budget=2) == Leave()


def test_a_budget_below_what_is_there_creates_nothing():
    assert step(trial(TrialState.COMPLETE), trial(TrialState.COMPLETE), budget=1) == Leave()
    assert step(trial(TrialState.COMPLETE), trial(), budget=1) == Wait()
    assert step(trial(at_1=0.5), trial(at_1=0.9), paused={0, 1}, budget=1) == Promote(1)


@pytest.mark.parametrize("ended", [TrialState.PRUNED, TrialState.FAIL])
def test_if_the_best_came_to_nothing_the_next_best_gets_its_chance(ended):
    trials = [trial(ended, at_1=0.9), trial(at_1=0.7), trial(at_1=0.8)]
    assert step(*trials, paused={1, 2}) == Promote(2)
    higher = [trial(ended, at_1=0.9, at_3=0.9), trial(at_1=0.7, at_3=0.5), trial(at_1=0.8)]
    assert step(*higher, paused={1, 2}) == Promote(1)
    assert step(*trials, trial(TrialState.COMPLETE, at_1=0.85), paused={1, 2}, budget=4) == Prune()


@pytest.mark.parametrize("pruner", [None, MedianPruner()])
def test_without_rungs_trials_are_created_and_waited_for(pruner):
    assert step(trial(), pruner=pruner) == Create()
    assert step(trial(), trial(), trial(), pruner=pruner) == Wait()
    assert step(*[trial(TrialState.PRUNED)] * 3, pruner=pruner) == Leave()


@dataclass
class SimulatedTrial:
    """What a trial will report, were it to go on, and after how many epochs it ends."""

    epochs: int
    curve: dict[int, float]
    diverges: bool


lives = st.builds(
    SimulatedTrial,
    st.integers(1, 12),
    st.fixed_dictionaries(dict.fromkeys(RUNGS, accuracies)),
    st.sampled_from([False] * 7 + [True]),
)


@dataclass
class Fleet:
    """Workers without a database, who do what they are told by the functions under test, one step at a time."""

    halving: SuccessiveHalving
    budget: int
    lives: list[SimulatedTrial]
    trials: list[FrozenTrial] = field(default_factory=list)
    paused: set[int] = field(default_factory=set)
    held: dict[int, int] = field(default_factory=dict)  # trials by the workers who train them
    idle: set[int] = field(default_factory=set)  # workers who were told to wait
    gone: set[int] = field(default_factory=set)

    def act(self, worker: int) -> None:
        if worker in self.held:
            self.train(worker)
            return
        told = next_action(self.halving, self.trials, self.paused, self.budget)
        (self.idle.add if told == Wait() else self.idle.discard)(worker)
        match told:
            case Promote(number):
                assert number in self.paused
                self.check_promotion(number)
                self.paused.discard(number)
                self.held[worker] = number
            case Create():
                assert len(self.trials) < self.budget
                number = len(self.trials)
                self.trials.append(create_trial(state=TrialState.RUNNING, intermediate_values={}))
                self.trials[number].number = number
                self.held[worker] = number
            case Wait():
                assert self.held, "nobody trains, and it waits"
                assert len(self.trials) == self.budget
            case Prune():
                assert not self.held
                for number in self.paused:
                    self.trials[number].state = TrialState.PRUNED
                self.paused.clear()
            case Leave():
                assert not self.held
                assert not self.paused
                self.gone.add(worker)
        assert len(set(self.held.values())) == len(self.held)

    def train(self, worker: int) -> None:
        """To the next rung, or to the end."""
        number = self.held[worker]
        own, life = self.trials[number], self.lives[number]
        epoch = min((rung for rung in RUNGS if rung > (own.last_step or 0)), default=life.epochs)
        if life.diverges and epoch >= life.epochs:
            own.state = TrialState.PRUNED
        elif epoch >= life.epochs:
            own.state, own.values = TrialState.COMPLETE, [0.5]
            own.intermediate_values = own.intermediate_values | {life.epochs: life.curve.get(life.epochs, 0.5)}
        else:
            own.intermediate_values = own.intermediate_values | {epoch: life.curve[epoch]}
            if self.halving.should_continue(self.trials, number):
                self.check_goes_on(number, epoch)
                return
            self.paused.add(number)
        del self.held[worker]

    def ahead(self, number: int, rung: int) -> tuple[list[FrozenTrial], int]:
        """Those of its bracket that were better there, and how many got there."""
        reached = [
            other
            for other in self.trials
            if rung in other.intermediate_values and self.halving.bracket(other.number) == self.halving.bracket(number)
        ]
        reached.sort(key=lambda other: (-other.intermediate_values[rung], other.number))
        return reached[: reached.index(self.trials[number])], len(reached)

    def check_goes_on(self, number: int, epoch: int) -> None:
        better, reached = self.ahead(number, epoch)
        spared = epoch not in RUNGS[self.halving.bracket(number) :]
        assert spared or len(better) < reached // REDUCTION_FACTOR

    def check_promotion(self, number: int) -> None:
        better, reached = self.ahead(number, self.trials[number].last_step)
        all_there = len(self.trials) >= self.budget and not self.held
        in_vain = all(other.state == TrialState.PRUNED for other in better)
        assert len(better) < reached // REDUCTION_FACTOR or (all_there and in_vain)


@settings(max_examples=300, deadline=None)
@given(
    brackets=st.sampled_from([1, 3]),
    futures=st.lists(lives, min_size=1, max_size=14),
    workers=st.integers(1, 4),
    schedule=st.lists(st.integers(0, 3), max_size=80),
    more=st.integers(0, 4),
)
def test_a_study_ends_whoever_works_when(brackets, futures, workers, schedule, more):
    fleet = Fleet(SuccessiveHalving(RUNGS, brackets), max(1, len(futures) - more), futures)
    for worker in schedule:
        fleet.act(worker % workers)
    for budget in (fleet.budget, len(futures)):  # raised after the end
        fleet.budget, fleet.gone = budget, set()
        moves = 0
        while len(fleet.gone) < workers:
            fleet.act(moves % workers)
            moves += 1
            assert moves < 30 * len(futures) * workers, "it does not end"
        states = [one.state for one in fleet.trials]
        assert len(states) == budget
        assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
        assert TrialState.COMPLETE in states or all(life.diverges for life in futures[:budget])
