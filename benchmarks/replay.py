"""A study in virtual time, on learning curves of a surrogate: the project's own search, or Optuna's."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from benchmarks.curves import Point, Surrogate
from hpo.config.study import StudyConfig
from hpo.search.optuna_adapter import running_trial
from hpo.search.pruners import decision_epochs, pruner_for, report_epochs, should_continue
from hpo.search.samplers import propose
from hpo.search.scheduler import Create, Leave, Promote, Prune, Step, Wait, next_action
from hpo.search.space import distributions

EXAMPLES, FEATURES, CLASSES = 49_000, 197, 10
MULTIPLY_ADDS_PER_SECOND = 45e9  # of one core, measured in a step of 330 units
SECONDS_PER_EPOCH = 0.01  # besides its products
MOST_TRIALS = 400  # after which a study that has not got there is given up


def multiply_adds(hidden_size: int) -> float:
    """Of an epoch: the products of the forward pass, and as many twice in the backward pass."""
    return 3.0 * EXAMPLES * ((FEATURES + 1) * hidden_size + (hidden_size + 1) * CLASSES)


def seconds(hidden_size: int) -> float:
    """That an epoch takes a virtual worker."""
    return multiply_adds(hidden_size) / MULTIPLY_ADDS_PER_SECOND + SECONDS_PER_EPOCH


class Contender(Protocol):
    """A way to search: what it does when a worker is free, and when a trial has reported."""

    epochs: list[int]  # after which it wants to hear of a trial, in ascending order

    def next_action(self, trials: Sequence[FrozenTrial], paused: set[int]) -> Step:
        """What a free worker does."""

    def propose(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """The parameters of the next trial."""

    def leaves(self, trials: Sequence[FrozenTrial], number: int) -> TrialState | None:
        """What becomes of a trial that has reported: None to go on, PRUNED, or RUNNING where it is paused."""

    def hear_end(self, trial: FrozenTrial) -> None:
        """A trial has ended."""


class Ours:
    """The project's own sampler, pruner and scheduling.

    A study that ends without having got there is given as many trials once more, as with a higher ``--trials``.
    """

    def __init__(self, spec: StudyConfig) -> None:
        self._spec = spec
        self._pruner = pruner_for(spec)
        self._budget = spec.study.trials
        self.epochs = sorted(decision_epochs(spec))

    def next_action(self, trials: Sequence[FrozenTrial], paused: set[int]) -> Step:
        step = next_action(self._pruner, trials, paused, self._budget)
        if isinstance(step, Leave) and self._budget < MOST_TRIALS:
            self._budget += self._spec.study.trials
            return self.next_action(trials, paused)
        return step

    def propose(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        return propose(self._spec, trials)

    def leaves(self, trials: Sequence[FrozenTrial], number: int) -> TrialState | None:
        if should_continue(self._pruner, trials, number):
            return None
        return TrialState.RUNNING if self._spec.study.pruner in ("asha", "hyperband") else TrialState.PRUNED

    def hear_end(self, trial: FrozenTrial) -> None:
        """It is in the list of trials."""


class StopOnly(Ours):
    """The same, but a trial that is not among the best of its rung ends there, and the first at a rung goes on."""

    def leaves(self, trials: Sequence[FrozenTrial], number: int) -> TrialState | None:
        own = trials[number].intermediate_values
        rung = max(own)
        better = sum(trial.intermediate_values.get(rung, 0.0) > own[rung] for trial in trials)
        reached = sum(rung in trial.intermediate_values for trial in trials)
        return None if better < max(1, reached // 3) else TrialState.PRUNED


class Stock:
    """Optuna's TPE as it is without arguments, and one of its pruners, asked and told as its documentation does."""

    def __init__(self, spec: StudyConfig, pruner: BasePruner) -> None:
        self._study = optuna.create_study(
            study_name="stock",  # from which Hyperband draws the brackets
            direction="maximize",
            sampler=TPESampler(seed=spec.study.seed),
            pruner=pruner,
        )
        self._space = distributions(spec)
        self._asked: list[optuna.Trial] = []
        self.epochs = sorted(report_epochs(spec.max_epochs))

    def next_action(self, trials: Sequence[FrozenTrial], paused: set[int]) -> Step:
        return Create() if len(trials) < MOST_TRIALS else Leave()

    def propose(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        self._asked.append(self._study.ask())
        return {name: self._asked[-1]._suggest(name, distribution) for name, distribution in self._space.items()}

    def leaves(self, trials: Sequence[FrozenTrial], number: int) -> TrialState | None:
        epoch, value = max(trials[number].intermediate_values.items())
        self._asked[number].report(value, epoch)
        return TrialState.PRUNED if self._asked[number].should_prune() else None

    def hear_end(self, trial: FrozenTrial) -> None:
        complete = trial.state == TrialState.COMPLETE
        self._study.tell(self._asked[trial.number], trial.value if complete else None, state=trial.state)


@dataclass
class Story:
    """What came of a study.

    Attributes:
        best: the compute in multiply-adds, the seconds and the value whenever a complete trial was better than all
            before.
        compute: spent in all.
        seconds: until the end.
        trials: all of them.
    """

    best: list[tuple[float, float, float]] = field(default_factory=list)
    compute: float = 0.0
    seconds: float = 0.0
    trials: list[FrozenTrial] = field(default_factory=list)

    def reached(self, accuracy: float) -> tuple[float, float] | None:
        """The compute and the seconds until a complete trial had this accuracy; None where none had."""
        return next((spent[:2] for spent in self.best if spent[2] >= accuracy), None)

    def best_within(self, compute: float) -> float:
        """The best value that was known when this was spent."""
        return max((value for spent, _, value in self.best if spent <= compute), default=0.0)


@dataclass(order=True)
class _Event:
    """A trial comes to an epoch that matters."""

    time: float
    order: int
    number: int = field(compare=False)
    epoch: int = field(compare=False)


class VirtualStudy:
    """A study that virtual workers train in virtual time, until it is done or ``stop`` says so."""

    def __init__(self, contender: Contender, surrogate: Surrogate, spec: StudyConfig, workers: int) -> None:
        self._contender = contender
        self._surrogate = surrogate
        self._space = distributions(spec)
        self._noise = np.random.default_rng([spec.study.seed, 77])
        self._curves: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self._epochs: list[int] = []  # that each trial has trained
        self._paused: set[int] = set()
        self._events: list[_Event] = []
        self._order = 0
        self._idle = workers
        self.story = Story()

    def run(self, stop: Callable[[Story], bool]) -> Story:
        """Until the contender leaves, or ``stop`` is true after an event."""
        self._put_to_work()
        while self._events and not stop(self.story):
            event = heapq.heappop(self._events)
            self._spend(event)
            self._come_to(event.number, event.epoch)
            self._put_to_work()
        return self.story

    def _spend(self, event: _Event) -> None:
        """Count what all workers have trained until this event."""
        passed = event.time - self.story.seconds
        for number in [event.number, *(other.number for other in self._events)]:
            hidden_size = self.story.trials[number].params["hidden_size"]
            self.story.compute += passed / seconds(hidden_size) * multiply_adds(hidden_size)
        self.story.seconds = event.time

    def _come_to(self, number: int, epoch: int) -> None:
        trial = self.story.trials[number]
        value = float(self._curves[number][epoch - 1])
        self._epochs[number] = epoch
        trial.intermediate_values[epoch] = value
        if epoch == trial.params["epochs"]:
            self._end(trial, TrialState.COMPLETE, value)
            return
        match self._contender.leaves(self.story.trials, number):
            case None:
                self._train(number)
            case TrialState.RUNNING:
                self._paused.add(number)
                self._idle += 1
            case state:
                self._end(trial, state, value)

    def _end(self, trial: FrozenTrial, state: TrialState, value: float) -> None:
        trial.state, trial.value = state, value
        self._idle += 1
        self._contender.hear_end(trial)
        if state == TrialState.COMPLETE and value > self.story.best_within(self.story.compute):
            self.story.best.append((self.story.compute, self.story.seconds, value))

    def _put_to_work(self) -> None:
        while self._idle:
            match self._contender.next_action(self.story.trials, self._paused):
                case Promote(number):
                    self._paused.remove(number)
                case Create():
                    number = self._create()
                case Prune():
                    self._prune_paused()
                    continue
                case Wait() | Leave():
                    return
            self._idle -= 1
            self._train(number)

    def _create(self) -> int:
        params = self._contender.propose(self.story.trials)
        trial = running_trial(len(self.story.trials), params, self._space)
        point = Point(*(params[name] for name in Point._fields))
        self.story.trials.append(trial)
        self._curves.append(self._surrogate.curve(point, self._noise))
        self._epochs.append(0)
        return trial.number

    def _train(self, number: int) -> None:
        trial, trained = self.story.trials[number], self._epochs[number]
        last: int = trial.params["epochs"]
        epoch = min(last, next((epoch for epoch in self._contender.epochs if epoch > trained), last))
        arrives = self.story.seconds + (epoch - trained) * seconds(trial.params["hidden_size"])
        self._order += 1
        heapq.heappush(self._events, _Event(arrives, self._order, number, epoch))

    def _prune_paused(self) -> None:
        for number in sorted(self._paused):
            trial = self.story.trials[number]
            trial.state, trial.value = TrialState.PRUNED, trial.intermediate_values[max(trial.intermediate_values)]
        self._paused.clear()
