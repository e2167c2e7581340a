"""Studies in virtual time on the learning curves of a surrogate, with the search of hpo or of Optuna."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from benchmarks.curves import Floats, Point
from hpo.config.study import StudyConfig
from hpo.models.nets.hyperparameters import FLOAT_HYPERPARAMETERS, max_epochs
from hpo.search.pruning.pruners import make_pruner, report_steps
from hpo.search.sampling.samplers import make_sampler, propose
from hpo.search.sampling.tpe import running_trial
from hpo.search.scheduler import Action, PrunePaused, Resume, Start, Stop, Wait, next_action
from hpo.search.space import Params, Space, build_space

EXAMPLES, FEATURES, CLASSES = 49_000, 197, 10
# Speed of one core in a step of 330 units, as measured.
MULTIPLY_ADDS_PER_SECOND = 45e9
# Time of an epoch without its matrix products.
EPOCH_OVERHEAD_S = 0.01
# Trials of a study that does not reach its target.
MAX_TRIALS = 400


def multiply_adds(hidden_size: int) -> float:
    """Return the multiply-adds of an epoch.

    The backward pass has twice as many as the forward pass.
    """
    return 3.0 * EXAMPLES * ((FEATURES + 1) * hidden_size + (hidden_size + 1) * CLASSES)


def seconds(hidden_size: int) -> float:
    """Return the seconds of an epoch in a virtual worker."""
    return multiply_adds(hidden_size) / MULTIPLY_ADDS_PER_SECOND + EPOCH_OVERHEAD_S


def space_of(config: StudyConfig) -> Space:
    """Return the search space of a study."""
    return build_space(config, FLOAT_HYPERPARAMETERS)


class CurveModel(Protocol):
    """Model of learning curves."""

    def curve(self, point: Point, rng: np.random.Generator) -> Floats:
        """Return the accuracies of a trial after each epoch."""


class Search(Protocol):
    """Search method: the action of an idle worker, and the decision about a trial that has reported.

    Attributes:
        epochs: The epochs after which it decides about a trial, ascending.
    """

    epochs: list[int]

    def next_action(self, trials: Sequence[FrozenTrial], paused: set[int]) -> Action:
        """Return the action of an idle worker."""

    def propose(self, trials: Sequence[FrozenTrial]) -> Params:
        """Return the parameters of the next trial."""

    def stop_state(self, trials: Sequence[FrozenTrial], number: int) -> TrialState | None:
        """Return the state of a trial that stops after its report.

        A paused trial is RUNNING. The state of a trial that continues is None.
        """

    def on_end(self, trial: FrozenTrial) -> None:
        """Handle the end of a trial."""


class HpoSearch:
    """Sampler, pruner and scheduler of hpo.

    A study that ends before its target gets its number of trials again, as with a higher ``--trials``.
    """

    def __init__(self, config: StudyConfig, min_complete: int = 1, max_trials: int = MAX_TRIALS) -> None:
        self._config = config
        self._min_complete = min_complete
        self._max_trials = max_trials
        self._space = space_of(config)
        self._sampler = make_sampler(config.study.sampler, "epochs")
        self._pruner = make_pruner(config.study.pruner, max_epochs(config))
        self._budget = config.study.trials
        self.epochs = sorted(self._pruner.decision_steps())

    def next_action(self, trials: Sequence[FrozenTrial], paused: set[int]) -> Action:
        action = next_action(self._pruner, trials, paused, self._budget, self._min_complete)
        if action == Stop() and self._budget < self._max_trials:
            self._budget += self._config.study.trials
            return self.next_action(trials, paused)
        return action

    def propose(self, trials: Sequence[FrozenTrial]) -> Params:
        return propose(self._sampler, self._space, trials, self._config.study.seed)

    def stop_state(self, trials: Sequence[FrozenTrial], number: int) -> TrialState | None:
        if self._pruner.should_continue(trials, number):
            return None
        return TrialState.RUNNING if self._pruner.pauses else TrialState.PRUNED

    def on_end(self, trial: FrozenTrial) -> None:
        """Do nothing, because the list of trials has the trial."""


class StopOnlySearch(HpoSearch):
    """Search of hpo that prunes a trial instead of pausing it. The first trial at a rung continues."""

    def stop_state(self, trials: Sequence[FrozenTrial], number: int) -> TrialState | None:
        rung, own = max(trials[number].intermediate_values.items())
        reached = [trial.intermediate_values[rung] for trial in trials if rung in trial.intermediate_values]
        n_better = sum(value > own for value in reached)
        return None if n_better < max(1, len(reached) // 3) else TrialState.PRUNED


class OptunaSearch:
    """Optuna's TPE with default arguments and one of its pruners, used as in its documentation."""

    def __init__(self, config: StudyConfig, pruner: BasePruner) -> None:
        # Hyperband draws the brackets from the name.
        self._study = optuna.create_study(
            study_name="stock", direction="maximize", sampler=TPESampler(seed=config.study.seed), pruner=pruner
        )
        self._space = space_of(config)
        self._asked: list[optuna.Trial] = []
        self.epochs = sorted(report_steps(max_epochs(config)))

    def next_action(self, trials: Sequence[FrozenTrial], paused: set[int]) -> Action:
        return Start() if len(trials) < MAX_TRIALS else Stop()

    def propose(self, trials: Sequence[FrozenTrial]) -> Params:
        self._asked.append(self._study.ask())
        return {name: self._asked[-1]._suggest(name, distribution) for name, distribution in self._space.items()}

    def stop_state(self, trials: Sequence[FrozenTrial], number: int) -> TrialState | None:
        epoch, value = max(trials[number].intermediate_values.items())
        self._asked[number].report(value, epoch)
        return TrialState.PRUNED if self._asked[number].should_prune() else None

    def on_end(self, trial: FrozenTrial) -> None:
        complete = trial.state == TrialState.COMPLETE
        self._study.tell(self._asked[trial.number], trial.value if complete else None, state=trial.state)


@dataclass
class Progress:
    """Progress of a study.

    Attributes:
        best: The compute in multiply-adds, the seconds and the value of each complete trial that was better than all
            complete trials before.
        compute: The multiply-adds of all trials.
        seconds: The virtual time.
        trials: All trials.
    """

    best: list[tuple[float, float, float]] = field(default_factory=list)
    compute: float = 0.0
    seconds: float = 0.0
    trials: list[FrozenTrial] = field(default_factory=list)

    def cost_of(self, accuracy: float) -> tuple[float, float] | None:
        """Return the compute and seconds until an accuracy, None if not reached."""
        return next((cost[:2] for cost in self.best if cost[2] >= accuracy), None)

    def best_within(self, compute: float) -> float:
        """Return the best accuracy within this compute, 0 without a complete trial."""
        return max((value for spent, _, value in self.best if spent <= compute), default=0.0)


@dataclass(order=True)
class _Event:
    """Arrival of a trial at an epoch at which it reports or ends."""

    time: float
    order: int
    number: int = field(compare=False)
    epoch: int = field(compare=False)


class VirtualStudy:
    """Study that virtual workers train in virtual time.

    Args:
        search: The search method.
        surrogate: The model of the learning curves.
        config: The study file.
        workers: The number of workers.

    Attributes:
        progress: The progress until now.
    """

    def __init__(self, search: Search, surrogate: CurveModel, config: StudyConfig, workers: int) -> None:
        self._search = search
        self._surrogate = surrogate
        self._space = space_of(config)
        self._noise = np.random.default_rng([config.study.seed, 77])
        self._curves: list[Floats] = []
        self._trained_epochs: list[int] = []
        self._paused: set[int] = set()
        self._events: list[_Event] = []
        self._n_events = 0
        self._n_idle = workers
        self.progress = Progress()

    def run(self, stop: Callable[[Progress], bool]) -> Progress:
        """Train until the search stops, or ``stop`` returns true after an event."""
        self._assign_workers()
        while self._events and not stop(self.progress):
            event = heapq.heappop(self._events)
            self._add_cost(event)
            self._report(event.number, event.epoch)
            self._assign_workers()
        return self.progress

    def _add_cost(self, event: _Event) -> None:
        """Add the compute of all workers until this event."""
        passed = event.time - self.progress.seconds
        for number in [event.number, *(other.number for other in self._events)]:
            hidden_size = self.progress.trials[number].params["hidden_size"]
            self.progress.compute += passed / seconds(hidden_size) * multiply_adds(hidden_size)
        self.progress.seconds = event.time

    def _report(self, number: int, epoch: int) -> None:
        trial = self.progress.trials[number]
        value = float(self._curves[number][epoch - 1])
        self._trained_epochs[number] = epoch
        trial.intermediate_values[epoch] = value
        if epoch == trial.params["epochs"]:
            self._end(trial, TrialState.COMPLETE, value)
            return
        match self._search.stop_state(self.progress.trials, number):
            case None:
                self._train(number)
            case TrialState.RUNNING:
                self._paused.add(number)
                self._n_idle += 1
            case state:
                self._end(trial, state, value)

    def _end(self, trial: FrozenTrial, state: TrialState, value: float) -> None:
        trial.state, trial.value = state, value
        self._n_idle += 1
        self._search.on_end(trial)
        if state == TrialState.COMPLETE and value > self.progress.best_within(self.progress.compute):
            self.progress.best.append((self.progress.compute, self.progress.seconds, value))

    def _assign_workers(self) -> None:
        while self._n_idle:
            match self._search.next_action(self.progress.trials, self._paused):
                case Resume(number):
                    self._paused.remove(number)
                case Start():
                    number = self._create()
                case PrunePaused():
                    self._prune_paused()
                    continue
                case Wait() | Stop():
                    return
            self._n_idle -= 1
            self._train(number)

    def _create(self) -> int:
        params = self._search.propose(self.progress.trials)
        trial = running_trial(len(self.progress.trials), params, self._space)
        point = Point(*(params[name] for name in Point._fields))
        self.progress.trials.append(trial)
        self._curves.append(self._surrogate.curve(point, self._noise))
        self._trained_epochs.append(0)
        return trial.number

    def _train(self, number: int) -> None:
        trial, trained = self.progress.trials[number], self._trained_epochs[number]
        last: int = trial.params["epochs"]
        epoch = min(last, next((epoch for epoch in self._search.epochs if epoch > trained), last))
        arrival = self.progress.seconds + (epoch - trained) * seconds(trial.params["hidden_size"])
        self._n_events += 1
        heapq.heappush(self._events, _Event(arrival, self._n_events, number, epoch))

    def _prune_paused(self) -> None:
        for number in sorted(self._paused):
            trial = self.progress.trials[number]
            trial.state, trial.value = TrialState.PRUNED, trial.intermediate_values[max(trial.intermediate_values)]
        self._paused.clear()
