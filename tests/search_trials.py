"""Spaces and lists of trials for tests of samplers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.sampling.samplers import make_sampler, propose
from hpo.search.space import Params, Space

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "regularization": FloatDistribution(0.0, 0.01),
    "hidden_size": IntDistribution(32, 400),
    "epochs": IntDistribution(100, 500, log=True),
    "batch_size": CategoricalDistribution([50, 100, 200]),
    "momentum": CategoricalDistribution([0.0, 0.9]),
}
# The space of studies/cifar10_random_grid.toml.
REPORT_SPACE = {
    "learning_rate": FloatDistribution(1e-7, 1e-2, log=True),
    "regularization": FloatDistribution(1e-7, 1e-2, log=True),
    "hidden_size": IntDistribution(32, 400),
    "epochs": IntDistribution(100, 500),
}
NOT_LEARNING = ["random", "random-grid", "qmc"]


def select(*names: str) -> Space:
    """Return some parameters of the space."""
    return {name: SPACE[name] for name in names}


def propose_with(name: str, trials: Sequence[FrozenTrial], space: Space = SPACE, seed: int = 0) -> Params:
    """Propose the parameters of the next trial of a study."""
    return propose(make_sampler(name, "epochs"), space, trials, seed)


def make_trial(
    params: Params,
    value: float | None,
    state: TrialState = TrialState.COMPLETE,
    space: Space = SPACE,
    number: int | None = None,
) -> FrozenTrial:
    """Return a trial. A running or failed trial has no value."""
    value = None if state in (TrialState.RUNNING, TrialState.FAIL) else value
    trial = create_trial(state=state, params=dict(params), distributions=dict(space), value=value)
    if number is not None:
        trial.number = number
    return trial


def make_failed(count: int) -> list[FrozenTrial]:
    """Return failed trials without parameters."""
    return [create_trial(state=TrialState.FAIL)] * count


def distances(params: Params) -> tuple[float, float]:
    """Return the distances from the optimum in units of the ranges: learning rate 1e-3, hidden size 100."""
    return math.log10(params["learning_rate"] / 1e-3) / 3, (params["hidden_size"] - 100) / 368


def loss(params: Params) -> float:
    """Return the squared distance from the optimum."""
    return sum(distance**2 for distance in distances(params))


def make_history(name: str, count: int, space: Space = SPACE, seed: int = 0) -> list[FrozenTrial]:
    """Return the trials that a single worker creates. Their value is one minus the loss."""
    trials: list[FrozenTrial] = []
    while len(trials) < count:
        params = propose_with(name, trials, space, seed)
        trials.append(make_trial(params, 1 - loss(params), space=space))
    return trials


def make_random_trials(count: int, seed: int = 0) -> list[FrozenTrial]:
    """Return trials with random parameters and random values."""
    rng = np.random.default_rng(seed)
    trials: list[FrozenTrial] = []
    for number in range(count):
        trials.append(make_trial(propose_with("random", trials, seed=seed), float(rng.random()), number=number))
    return trials


def exhaust(
    name: str,
    count: int,
    space: Space,
    states: Sequence[TrialState],
    values: Sequence[float],
    seed: int = 0,
) -> list[FrozenTrial]:
    """Return trials of a study, with states and values in turn."""
    trials: list[FrozenTrial] = []
    for number in range(count):
        params = propose_with(name, trials, space, seed)
        state, value = states[number % len(states)], values[number % len(values)]
        trials.append(make_trial(params, value, state, space, number))
    return trials


def count_points(trials: Sequence[FrozenTrial]) -> int:
    """Return the number of distinct parameters."""
    return len({tuple(trial.params.items()) for trial in trials})


def is_in_space(params: Params, space: Space) -> bool:
    """Return whether each parameter is in its distribution."""
    return all(_contains(space, name, value) for name, value in params.items())


def _contains(space: Space, name: str, value: Any) -> bool:
    return space[name]._contains(space[name].to_internal_repr(value))
