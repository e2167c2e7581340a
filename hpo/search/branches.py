"""Search in a conditional space: each model of a study has a sampler, a pruner and trials of its own.

The samplers and pruners know nothing of other models. They see the trials of one model.
"""

import copy
import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import nlargest
from typing import TypeVar

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import MODEL, StudyConfig
from hpo.errors import StudyFileError
from hpo.search.pruning.pruners import Pruner, make_pruner
from hpo.search.sampling import samplers
from hpo.search.sampling.samplers import Sampler, check_count, make_sampler, propose
from hpo.search.sampling.tpe import running_trial
from hpo.search.space import ConditionalSpace, Params, Space, params_key

Value = TypeVar("Value")

# Trials of each model before a model is preferred.
STARTUP_TRIALS = 5
# One of this many trials takes the models in turn, so that each keeps being tried.
EXPLORE_EVERY = 3
# The best trials decide which model is preferred: this share of the trials with a value, and at most this number.
BEST_SHARE = 0.25
MAX_BEST = 25


@dataclass(frozen=True)
class BranchSampler:
    """Samplers of the models of a study.

    Attributes:
        samplers: The sampler of each model.
    """

    samplers: Mapping[str, Sampler]

    @property
    def learns(self) -> bool:
        """Whether a proposal depends on the results of the trials."""
        return any(sampler.learns for sampler in self.samplers.values())

    def propose(
        self,
        space: ConditionalSpace,
        trials: Sequence[FrozenTrial],
        seed: int,
        taken: Iterable[Params] = (),
        model: str | None = None,
    ) -> Params:
        """Return the parameters of trial ``len(trials)``, which no former trial has.

        Args:
            space: The search space.
            trials: All trials of the study in the order of their numbers. Greater values are better.
            seed: The seed of the study.
            taken: Parameters of later trials, which the trial does not get either.
            model: The model of the trial; None to choose it.

        Raises:
            StudyFileError: if no model has a new point.
        """
        taken = list(taken)
        if model is None:
            model = self._choose(self._free(space, trials, taken, seed), trials, seed)
        own = [_without_model(params) for params in taken if params.get(MODEL) == model]
        n_known = sum(trial.params.get(MODEL) == model for trial in trials) + len(own)
        n_left = self._n_points(space, model, seed) - n_known
        view = branch_trials(space, model, _with_few_unknown(trials, n_left - 1))
        return {MODEL: model, **propose(self.samplers[model], space.branches[model].space, view, seed, own)}

    def n_points(self, space: ConditionalSpace, seed: int) -> float:
        """Return the number of different points that the samplers can propose."""
        return sum(self._n_points(space, name, seed) for name in space.branches)

    def _n_points(self, space: ConditionalSpace, name: str, seed: int) -> float:
        parameters = space.branches[name].space
        return self.samplers[name].n_points(parameters, seed) if parameters else 1

    def _free(
        self, space: ConditionalSpace, trials: Sequence[FrozenTrial], taken: Sequence[Params], seed: int
    ) -> list[str]:
        """Return the models that have a point that no trial has.

        A running trial without parameters can take a point of any model. A model with at most as many points as there
        are such trials is left out, unless this leaves out all models.
        """
        known = [trial.params for trial in trials if MODEL in trial.params]
        used = Counter(
            str(params[MODEL]) for params in {params_key(params): params for params in [*known, *taken]}.values()
        )
        n_unknown = sum(map(_is_unknown, trials))
        left = {name: self._n_points(space, name, seed) - used[name] for name in space.branches}
        free = [name for name, count in left.items() if count > n_unknown] or [
            name for name, count in left.items() if count > 0
        ]
        if not free:
            raise StudyFileError("space: no model has a combination that no trial has; use fewer --trials")
        return free

    def _choose(self, names: Sequence[str], trials: Sequence[FrozenTrial], seed: int) -> str:
        number = len(trials)
        if not self.learns or number < STARTUP_TRIALS * len(names):
            return names[number % len(names)]
        if number % EXPLORE_EVERY == 0:
            return names[number // EXPLORE_EVERY % len(names)]
        best = _models_of_best(trials)
        weights = np.array([1.0 + best[name] for name in names])
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, len(names))))
        return names[int(rng.choice(len(names), p=weights / weights.sum()))]


@dataclass(frozen=True)
class BranchPruner:
    """Pruners of the models of a study. A trial is compared with the trials of its model only.

    Attributes:
        pruners: The pruner of each model.
        minimizes: Whether less is better.
    """

    pruners: Mapping[str, Pruner]
    minimizes: bool = False

    @property
    def _sign(self) -> int:
        return -1 if self.minimizes else 1

    @property
    def pauses(self) -> bool:
        """Whether a trial that does not continue is paused."""
        return any(pruner.pauses for pruner in self.pruners.values())

    def decision_steps(self) -> frozenset[int]:
        """Return the steps whose reports need a decision for a model."""
        return frozenset().union(*(pruner.decision_steps() for pruner in self.pruners.values()))

    def should_continue(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        """Return whether trial ``number`` continues after its last report."""
        name = trials[number].params.get(MODEL)
        pruner = self.pruners.get(str(name))
        if pruner is None or trials[number].last_step not in pruner.decision_steps():
            return True
        return pruner.should_continue(_masked(trials, str(name)), number)

    def next_promotion(
        self, trials: Sequence[FrozenTrial], paused: Container[int], min_promoted: int = 0
    ) -> int | None:
        """Return the number of the trial to promote next: the best of the models' trials by the last report."""
        promotions = [
            pruner.next_promotion(_masked(trials, name), paused, min_promoted) for name, pruner in self.pruners.items()
        ]
        numbers = [number for number in promotions if number is not None]
        return max(numbers, key=lambda number: (self._sign * _last_value(trials[number]), -number), default=None)


def make_branch_sampler(name: str, space: ConditionalSpace) -> BranchSampler:
    """Return the samplers of a study that compares models.

    Args:
        name: The name of the sampler in the study file.
        space: The space of the study.

    Raises:
        StudyFileError: if no sampler has this name.
    """
    return BranchSampler({key: make_sampler(name, branch.cost_parameter) for key, branch in space.branches.items()})


def make_branch_pruner(name: str, space: ConditionalSpace, *, minimizes: bool = False) -> BranchPruner:
    """Return the pruners of a study that compares models.

    Args:
        name: The name of the pruner in the study file.
        space: The space of the study.
        minimizes: Whether less is better.

    Raises:
        StudyFileError: if no pruner has this name.
    """
    pruners = {key: make_pruner(name, branch.max_steps, minimizes=minimizes) for key, branch in space.branches.items()}
    return BranchPruner(pruners, minimizes)


def check_feasible(config: StudyConfig, space: Space, budget: int) -> None:
    """Check the sampler, the pruner and the budget of a study.

    Raises:
        StudyFileError: if the sampler or the pruner does not exist, or the space has fewer points than the budget.
    """
    if not isinstance(space, ConditionalSpace):
        samplers.check_feasible(config, space, budget)
        return
    samplers.check_feasible(config, {}, budget)
    count = make_branch_sampler(config.study.sampler, space).n_points(space, config.study.seed)
    check_count(count, budget)


def branch_trials(space: ConditionalSpace, name: str, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials of a model, numbered from 0, without the parameter of the model.

    A running trial without parameters can be a trial of the model, and is in the list.
    """
    own: list[FrozenTrial] = []
    for trial in trials:
        if trial.params.get(MODEL) == name:
            branch = copy.copy(trial)
            branch.number = len(own)
            branch.params = _without_model(trial.params)
            branch.distributions = _without_model(trial.distributions)
            own.append(branch)
        elif _is_unknown(trial):
            own.append(running_trial(len(own), {}, {}))
    return own


def _without_model(params: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in params.items() if name != MODEL}


def _is_unknown(trial: FrozenTrial) -> bool:
    return MODEL not in trial.params and not trial.state.is_finished()


def _with_few_unknown(trials: Sequence[FrozenTrial], limit: float) -> list[FrozenTrial]:
    """Return the trials, with at most a number of the running trials without parameters.

    Such a trial can take a point of any model, but not the last points of all models.
    """
    unknown = [trial.number for trial in trials if _is_unknown(trial)]
    surplus = set(unknown[int(min(len(unknown), max(0, limit))) :])
    return [trial for trial in trials if trial.number not in surplus]


def _models_of_best(trials: Collection[FrozenTrial]) -> Counter[str]:
    """Return how many of the best trials each model has. A trial without a value counts with its last report."""
    values = []
    for trial in trials:
        value = trial.value
        if value is None and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        if trial.state != TrialState.FAIL and value is not None and math.isfinite(value) and MODEL in trial.params:
            values.append((value, -trial.number, str(trial.params[MODEL])))
    best = nlargest(min(MAX_BEST, math.ceil(BEST_SHARE * len(values))), values)
    return Counter(name for _, _, name in best)


def _last_value(trial: FrozenTrial) -> float:
    return trial.intermediate_values[max(trial.intermediate_values)]


def _masked(trials: Sequence[FrozenTrial], name: str) -> list[FrozenTrial]:
    """Return the trials, with a failed trial without reports in the place of each trial of another model."""
    return [trial if trial.params.get(MODEL) == name else _failed(trial.number) for trial in trials]


@lru_cache(maxsize=10_000)
def _failed(number: int) -> FrozenTrial:
    trial = running_trial(number, {}, {})
    trial.state = TrialState.FAIL
    return trial
