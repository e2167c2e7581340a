"""Which parameters a trial gets: a function of the study file, the trial's number and the trials before it.

A proposal is made without the database, from a list of trials. So the samplers that do not learn propose the same
trials with one worker or many, and a test needs no database. No two trials of a study get the same parameters.
"""

import copy
import heapq
import itertools
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.errors import StudyFileError
from hpo.search.grid import grid_point, grid_size
from hpo.search.optuna_adapter import running_trial, study_from_trials
from hpo.search.space import Space, at, combinations, distributions, points_after

TPE_TRIALS = 300  # that TPE learns from, at most
TPE_BEST = 25  # as many as it ever takes for good, of those before the newest
LONG_RANGE = 50  # integers between which TPE sees no gaps
TPE_PROPOSALS = 4  # among which the cheapest is chosen
EXPLORE_EVERY = 3  # of so many trials one does not follow TPE
STARTUP_TRIALS = 10  # trials of a value that TPE wants to see; before that the points are quasi-random
ATTEMPTS = 100  # at a point that no trial has, before all are looked through
LEARNED_ATTEMPTS = 3  # of those by what has been learned: it may have found its one best point

_SOBOL_BLOCK = 256  # points that are made at once

_OBSERVED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)
_ON_THE_WAY = (TrialState.PRUNED, TrialState.RUNNING)
_OLD_BUT_TELLING = (TrialState.COMPLETE, TrialState.RUNNING)

_LEARNING = ("tpe", "cmaes", "gp")

_params = attrgetter("params")


def check_feasible(spec: StudyConfig, budget: int) -> None:
    """See that so many trials can be proposed.

    Raises:
        StudyFileError: there are not as many combinations.
    """
    if space := distributions(spec):
        _check_points(spec, space, budget)


def propose(spec: StudyConfig, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """The parameters of the next trial, number ``len(trials)``, which no other has; where nothing is searched, none.

    Args:
        spec: The study file.
        trials: All trials of the study in the order of their numbers, running ones among them.

    Raises:
        StudyFileError: there are trials of all combinations.
    """
    space = distributions(spec)
    if not space:
        return {}
    _check_points(spec, space, len(trials) + 1)
    candidates = islice(_candidates(spec, space, trials), ATTEMPTS)
    params = next(candidates)
    if params not in map(_params, trials):
        return params
    taken = {frozenset(taken.items()) for taken in map(_params, trials)}
    others = itertools.chain(candidates, points_after(space, params))
    return next(other for other in others if frozenset(other.items()) not in taken)


def _check_points(spec: StudyConfig, space: Space, budget: int) -> None:
    grid = spec.study.sampler == "random-grid"
    count = grid_size(space, spec.study.seed) if grid else combinations(space)
    if count < budget:
        raise StudyFileError(
            f"space: only {count} combinations, but {budget} trials are asked for; "
            f"ask for at most {count}, or search more of them"
        )


def _candidates(spec: StudyConfig, space: Space, trials: Sequence[FrozenTrial]) -> Iterator[dict[str, Any]]:
    """What the next trial could be, the best first."""
    seed, number = spec.study.seed, len(trials)
    known = _with_last_value_as_final(trials) if spec.study.sampler in _LEARNING else []
    match spec.study.sampler:
        case "random":
            return _random(space, seed, number)
        case "random-grid":
            return (grid_point(space, seed, later) for later in range(number, grid_size(space, seed)))
        case "cmaes" if combinations(space) > 1:
            from hpo.search.cmaes import evolved

            learned = evolved(space, seed, known)
        case "tpe" if _has_startup_trials(known) and number % EXPLORE_EVERY:
            learned = _prefer_cheapest(
                space, _sample_with_optuna(_tpe(seed, number), space, number, _select_observations(known))
            )
        case "gp" if _has_startup_trials(known):
            learned = _sample_with_optuna(_gp(seed, number), space, number, _select_observations(known))
        case _:
            return _quasi_random(space, seed, number)
    return itertools.chain(islice(learned, LEARNED_ATTEMPTS), _quasi_random(space, seed, number))


def _random(space: Space, seed: int, number: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
    while True:
        yield _to_params(space, rng.random(len(space)))


def _quasi_random(space: Space, seed: int, number: int) -> Iterator[dict[str, Any]]:
    """The sequence from this number on."""
    for later in itertools.count(number):
        block, index = divmod(later, _SOBOL_BLOCK)
        yield _to_params(space, _sobol_block(len(space), seed, block)[index])


def _to_params(space: Space, point: "np.ndarray[Any, np.dtype[np.float64]]") -> dict[str, Any]:
    return {name: at(distribution, float(u)) for (name, distribution), u in zip(space.items(), point, strict=True)}


@lru_cache(maxsize=16)
def _sobol_block(dimensions: int, seed: int, block: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    # Slow to import, and the launch itself never needs it.
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    if block:  # by 0 it fails
        sequence.fast_forward(block * _SOBOL_BLOCK)
    points: np.ndarray[Any, np.dtype[np.float64]] = sequence.random(_SOBOL_BLOCK)
    return points


def _tpe(seed: int, number: int) -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(
            seed=_trial_seed(seed, number), multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )


def _gp(seed: int, number: int) -> BaseSampler:
    # It imports PyTorch.
    from optuna.samplers import GPSampler

    return GPSampler(seed=_trial_seed(seed, number), n_startup_trials=STARTUP_TRIALS)


def _trial_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])


def _sample_with_optuna(
    sampler: BaseSampler, space: Space, number: int, trials: Sequence[FrozenTrial]
) -> Iterator[dict[str, Any]]:
    """What one of Optuna's samplers proposes again and again for trial ``number``."""
    study, trial = study_from_trials(trials), running_trial(number, {}, {})
    searched = {name: _smooth(space[name]) for name in sorted(space) if not space[name].single()}
    while True:
        point = sampler.sample_relative(study, trial, searched)
        yield {
            name: _nearest(distribution, point[name]) if name in point else at(distribution, 0.0)
            for name, distribution in space.items()
        }


def _prefer_cheapest(space: Space, proposals: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of every ``TPE_PROPOSALS`` the one with the fewest epochs: TPE does not know what a trial costs.

    After the expected improvement per second of Snoek et al. 2012, arXiv:1206.2944, section 3.2.
    """
    if "epochs" not in space:
        yield from proposals
    while alternatives := list(islice(proposals, TPE_PROPOSALS)):
        yield min(alternatives, key=itemgetter("epochs"))


def _smooth(distribution: BaseDistribution) -> BaseDistribution:
    """A long range of integers as real numbers: TPE takes four times as long to weigh each integer by itself."""
    if isinstance(distribution, IntDistribution) and distribution.high - distribution.low >= LONG_RANGE:
        return FloatDistribution(distribution.low - 0.5, distribution.high + 0.5, log=distribution.log)
    return distribution


def _nearest(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, IntDistribution):
        return min(max(round(value), distribution.low), distribution.high)
    return value


def _with_last_value_as_final(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Trials that were pruned, or are paused or running, as if they were complete with their last value.

    TPE takes complete trials for better than all others: the first few, however bad, would hold its attention.
    """
    return [trial if trial.state is TrialState.COMPLETE else _with_last_value(trial) for trial in trials]


def _with_last_value(trial: FrozenTrial) -> FrozenTrial:
    if trial.state not in _ON_THE_WAY or not trial.intermediate_values:
        return trial
    completed = copy.copy(trial)
    completed.state, completed.value = TrialState.COMPLETE, trial.intermediate_values[max(trial.intermediate_values)]
    return completed


def _has_startup_trials(trials: Sequence[FrozenTrial]) -> bool:
    telling = (trial for trial in trials if trial.state in _OBSERVED_STATES)
    return sum(1 for _ in islice(telling, STARTUP_TRIALS)) == STARTUP_TRIALS


def _select_observations(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """What TPE learns from: the best, and the newest, which count most there; so that it takes no longer and longer."""
    if len(trials) <= TPE_TRIALS:
        return trials
    older, newer = trials[: TPE_BEST - TPE_TRIALS], trials[TPE_BEST - TPE_TRIALS :]
    by_state = {state: [trial for trial in older if trial.state is state] for state in _OLD_BUT_TELLING}
    best = heapq.nlargest(TPE_BEST, by_state[TrialState.COMPLETE], key=attrgetter("value"))
    running = by_state[TrialState.RUNNING]
    return [*sorted([*best, *running], key=attrgetter("number")), *newer]
