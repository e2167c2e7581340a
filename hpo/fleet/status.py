"""Status of a study at one moment, and the interface that shows it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, Self

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.runner.objective import Objective
from hpo.search.space import needed
from hpo.storage.study import count_beyond
from hpo.storage.tables.leases import ActiveTrial
from hpo.storage.trial_cache import TrialView, stray_trials

# The budget of a study that only time limits.
UNLIMITED = 2**31 - 1

NO_NAMES: Mapping[int, str] = MappingProxyType({})

# Function that returns display names by trial number. A trial without one is shown as its number.
TrialNames = Callable[[Sequence[FrozenTrial]], Mapping[int, str]]


@dataclass(frozen=True)
class RunningTrial:
    """Trial that a worker trains; ``value`` is its latest report, ``n_steps`` is None if it is unknown."""

    number: int
    step: int
    n_steps: int | None
    value: float | None


@dataclass(frozen=True)
class Leader:
    """Trial of the best report; ``state`` is running, paused, or the state of its end."""

    number: int
    step: int
    value: float
    state: str


@dataclass(frozen=True)
class StudyStatus:
    """Counts of a study's trials by state, its best trial and its running trials.

    Attributes:
        budget: The number of trials that the study will have.
        strays: The numbers of the trials that another program runs.
        beyond: The number of trials that another program enqueued and that are beyond the budget.
        promoted: The number of trials beyond their first rung that are neither finished nor paused.
        leader: The trial of the best report, None if a trial is complete or none has reported.
        names: Display names by trial number. A trial without one is shown as its number.
        metric: The name of the values.
        step_name: The name of a step.
    """

    budget: int
    complete: int
    pruned: int
    failed: int
    paused: int
    promoted: int
    best: FrozenTrial | None
    running: list[RunningTrial]
    leader: Leader | None = None
    strays: Sequence[int] = ()
    beyond: int = 0
    names: Mapping[int, str] = field(default_factory=dict)
    metric: str = "accuracy"
    step_name: str = "epoch"

    def name(self, number: int) -> str:
        """Return the name of a trial for messages."""
        return display_name(number, self.names)

    @property
    def is_unlimited(self) -> bool:
        """Whether only time limits the number of trials."""
        return self.budget >= UNLIMITED

    @property
    def finished(self) -> int:
        """Number of finished trials."""
        return self.complete + self.pruned + self.failed

    @property
    def tried(self) -> int:
        """Number of trials that have finished or reached a rung; few trials are promoted from there."""
        return self.finished + self.paused + self.promoted


class ProgressListener(Protocol):
    """Receiver of a study's status and of messages about it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, status: StudyStatus) -> None:
        """Show the status of the study."""

    def note(
        self, message: str, *, level: int = logging.INFO, trial: str | None = None, worker: int | None = None
    ) -> None:
        """Report a message about the study, a trial or a worker."""


def display_name(number: int, names: Mapping[int, str]) -> str:
    """Return the name of a trial for messages: its display name, or its number."""
    return names.get(number, str(number))


def own_numbers(_: Sequence[FrozenTrial]) -> Mapping[int, str]:
    """Name each trial by its own number."""
    return NO_NAMES


def study_status(
    objective: Objective,
    budget: int,
    view: TrialView,
    active: Sequence[ActiveTrial],
    trial_names: TrialNames = own_numbers,
    best_trained: int | None = None,
    direction: StudyDirection = StudyDirection.MAXIMIZE,
) -> StudyStatus:
    """Combine trials and leases into a status.

    A trial in ``active`` that is newer than ``view`` is left out. The best trial is the best that hpo trained, because
    only such a trial can be exported.
    """
    trials, paused = view.trials, view.paused
    unpaused = [progress for progress in active if progress.number not in paused]
    states = [trial.state for trial in trials]
    # The view shows no infinite value.
    best = next((trial for trial in trials if trial.number == best_trained and trial.value is not None), None)
    return StudyStatus(
        budget=max(budget, len(trials) - count_beyond(trials, budget)),
        complete=states.count(TrialState.COMPLETE),
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        paused=len(paused),
        promoted=sum(progress.promoted for progress in unpaused),
        best=best,
        running=[
            _running_trial(objective, trials[progress.number], progress.epoch)
            for progress in unpaused
            if progress.owned and progress.number < len(trials) and _has_params(objective, trials[progress.number])
        ],
        leader=_leader(view, direction) if best is None else None,
        strays=tuple(stray_trials(view, active)),
        beyond=count_beyond(trials, budget),
        names=trial_names(trials),
        metric=objective.metric.rpartition(" ")[2],
        step_name="epoch" if objective.ticks else "step",
    )


def _leader(view: TrialView, direction: StudyDirection) -> Leader | None:
    sign = -1 if direction == StudyDirection.MINIMIZE else 1
    reports = [(value, trial, step) for trial in view.trials for step, value in trial.intermediate_values.items()]
    if not reports:
        return None
    value, trial, step = max(reports, key=lambda report: (sign * report[0], -report[1].number, -report[2]))
    state = trial.state.name.lower() if trial.state.is_finished() else "running"
    return Leader(trial.number, step, value, "paused" if trial.number in view.paused else state)


def _has_params(objective: Objective, trial: FrozenTrial) -> bool:
    """Return whether a trial has all parameters, which are written after its number."""
    return trial.params.keys() >= needed(objective.space or {}, trial.params).keys()


def _running_trial(objective: Objective, trial: FrozenTrial, checkpoint_step: int) -> RunningTrial:
    reported = max(trial.intermediate_values, default=0)
    return RunningTrial(
        number=trial.number,
        step=max(checkpoint_step, reported),
        n_steps=objective.n_steps(trial.params),
        value=trial.intermediate_values.get(reported),
    )
