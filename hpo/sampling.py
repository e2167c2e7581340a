"""Which parameters a trial gets: a function of the study file, the trial's number and, for TPE, of the other trials.

A proposal is made without the database, from a list of trials. So the samplers that do not learn propose the same
trials with one worker or many, and a test needs no database.
"""

import copy
import heapq
import math
import warnings
from collections.abc import Sequence
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from hpo.listed import study_of
from hpo.spec import Hyperparameters, Number, Range, StudySpec

TPE_TRIALS = 300  # that TPE learns from, at most
TPE_BEST = 25  # as many as it ever takes for good, of those before the newest
LONG_RANGE = 50  # integers between which TPE sees no gaps
STARTUP_TRIALS = 10  # trials of a value that TPE wants to see; before that the points are quasi-random

_TELLING = (TrialState.COMPLETE, TrialState.PRUNED)
_OLD_BUT_TELLING = (TrialState.COMPLETE, TrialState.RUNNING)


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """The space of a study in Optuna's terms."""
    space: dict[str, BaseDistribution] = {}
    for name, searched in spec.space.items():
        if not isinstance(searched, Range):
            space[name] = CategoricalDistribution(searched.choices)
        elif Hyperparameters.model_fields[name].annotation is int:
            space[name] = IntDistribution(int(searched.low), int(searched.high), log=searched.log)
        else:
            space[name] = FloatDistribution(float(searched.low), float(searched.high), log=searched.log)
    return space


def propose(spec: StudySpec, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """The parameters of the next trial, number ``len(trials)``.

    Args:
        spec: The study file.
        trials: All trials of the study in the order of their numbers, running ones among them.
    """
    number = len(trials)
    space = distributions(spec)
    if not space:
        return {}
    if spec.study.sampler == "random":
        seeds = np.random.SeedSequence(spec.study.seed, spawn_key=(number,))
        point = np.random.default_rng(seeds).random(len(space))
    elif spec.study.sampler == "qmc" or not _enough(trials):
        point = _sobol_point(len(space), spec.study.seed, number)
    else:
        return _propose_tpe(spec.study.seed, space, trials)
    return {name: at(distribution, float(u)) for (name, distribution), u in zip(space.items(), point, strict=True)}


def at(distribution: BaseDistribution, u: float) -> Number:
    """The value of a distribution at ``u`` in [0, 1): its quantile function."""
    match distribution:
        case FloatDistribution(log=True):
            low, high = math.log(distribution.low), math.log(distribution.high)
            value = math.exp(low + u * (high - low))
            return min(max(value, distribution.low), distribution.high)
        case FloatDistribution():
            return distribution.low + u * (distribution.high - distribution.low)
        case IntDistribution(log=True):
            # Each integer owns half a unit on both sides, as in Optuna's own transformation.
            low, high = math.log(distribution.low - 0.5), math.log(distribution.high + 0.5)
            value = round(math.exp(low + u * (high - low)))
            return min(max(value, distribution.low), distribution.high)
        case IntDistribution():
            return distribution.low + int(u * (distribution.high - distribution.low + 1))
        case CategoricalDistribution():
            choice = distribution.choices[int(u * len(distribution.choices))]
            assert isinstance(choice, int | float)
            return choice
    raise TypeError(distribution)


def _sobol_point(dimensions: int, seed: int, number: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    # Slow to import, and the launch itself never needs it.
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    if number:  # by 0 it fails
        sequence.fast_forward(number)
    point: np.ndarray[Any, np.dtype[np.float64]] = sequence.random(1)[0]
    return point


def _propose_tpe(seed: int, space: dict[str, BaseDistribution], trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    number = len(trials)
    trial_seed = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = TPESampler(
            seed=int(trial_seed), multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )
    trial = FrozenTrial(
        number,
        TrialState.RUNNING,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=number,
    )
    searched = {name: _smooth(space[name]) for name in sorted(space) if not space[name].single()}
    point = sampler.sample_relative(study_of(_telling(trials)), trial, searched)
    return {
        name: _nearest(distribution, point[name]) if name in point else at(distribution, 0.0)
        for name, distribution in space.items()
    }


def _smooth(distribution: BaseDistribution) -> BaseDistribution:
    """A long range of integers as real numbers: TPE takes four times as long to weigh each integer by itself."""
    if isinstance(distribution, IntDistribution) and distribution.high - distribution.low >= LONG_RANGE:
        return FloatDistribution(distribution.low - 0.5, distribution.high + 0.5, log=distribution.log)
    return distribution


def _nearest(distribution: BaseDistribution, value: Number) -> Number:
    if isinstance(distribution, IntDistribution):
        return min(max(round(value), distribution.low), distribution.high)
    return value


def _as_far_as_it_came(trial: FrozenTrial) -> FrozenTrial:
    """A trial that has reported, and may be paused, tells as much as one that was pruned there."""
    if trial.state != TrialState.RUNNING or not trial.intermediate_values:
        return trial
    pruned = copy.copy(trial)
    pruned.state = TrialState.PRUNED
    return pruned


def _enough(trials: Sequence[FrozenTrial]) -> bool:
    telling = (trial for trial in trials if trial.state in _TELLING or trial.intermediate_values)
    return sum(1 for _ in islice(telling, STARTUP_TRIALS)) == STARTUP_TRIALS


def _telling(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """What TPE learns from: the best, and the newest, which count most there; so that it takes no longer and longer."""
    trials = [_as_far_as_it_came(trial) for trial in trials]
    if len(trials) <= TPE_TRIALS:
        return trials
    older, newer = trials[: TPE_BEST - TPE_TRIALS], trials[TPE_BEST - TPE_TRIALS :]
    by_state = {state: [trial for trial in older if trial.state is state] for state in _OLD_BUT_TELLING}
    best = heapq.nlargest(TPE_BEST, by_state[TrialState.COMPLETE], key=attrgetter("value"))
    running = by_state[TrialState.RUNNING]
    return [*sorted([*best, *running], key=attrgetter("number")), *newer]
