"""TPE and Gaussian process: adapters of Optuna's samplers to a list of trials.

The samplers run on an Optuna study that shows the list. TPE (Bergstra et al. 2011) proposes the cheapest of several
points, and leaves each third trial to exploration.
"""

import copy
import heapq
import warnings
from collections.abc import Container, Iterator, Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.space import Params, Space, from_unit

# Trials that a model learns from at most, so that the time of a proposal does not grow with the study.
MAX_OBSERVATIONS = 300
# The best trials among the observations, which can be older than the newest. TPE never counts more trials as good.
BEST_OBSERVATIONS = 25
# Length from which TPE treats a range of integers as real numbers.
LONG_RANGE = 50
# Proposals of which the cheapest is chosen.
PROPOSALS_PER_TRIAL = 4
# One of this many trials does not follow TPE.
EXPLORE_EVERY = 3
# Complete or pruned trials that a model needs.
STARTUP_TRIALS = 10

_OBSERVED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)
_PARTIAL_STATES = (TrialState.PRUNED, TrialState.RUNNING)


class TreeParzenEstimator:
    """Tree-structured Parzen estimator with exploration and a preference for cheap trials.

    Args:
        cost_parameter: The parameter that the cost of a trial grows with, None if there is none.
    """

    def __init__(self, cost_parameter: str | None = None) -> None:
        self._cost_parameter = cost_parameter

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield proposals of the model without end.

        The first trials and each third trial get no proposals.
        """
        number = len(trials)
        if not _has_startup_trials(trials) or number % EXPLORE_EVERY == 0:
            return iter(())
        proposals = _sample_with_optuna(
            make_optuna_tpe(_trial_seed(seed, number)), space, number, _select_observations(trials)
        )
        return _prefer_cheapest(proposals, self._cost_parameter if self._cost_parameter in space else None)


class GaussianProcess:
    """Gaussian process, which needs PyTorch and a second or more per proposal."""

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        """Yield proposals of the model without end; the first trials get none."""
        number = len(trials)
        if not _has_startup_trials(trials):
            return iter(())
        return _sample_with_optuna(_optuna_gp(seed, number), space, number, _select_observations(trials))


class TrialListStorage(InMemoryStorage):
    """Optuna storage that shows a list of trials, without copies and without changes.

    Args:
        trials: The trials of its only study.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._listed = trials

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the listed trials in the given states."""
        if states is None:
            return list(self._listed)
        return [trial for trial in self._listed if trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Ignore the attribute, because no other process reads this study."""


def study_from_trials(trials: Sequence[FrozenTrial], *, minimizes: bool = False) -> optuna.Study:
    """Return a study of these trials in memory."""
    direction = StudyDirection.MINIMIZE if minimizes else StudyDirection.MAXIMIZE
    return optuna.create_study(storage=TrialListStorage(trials), direction=direction)


def running_trial(number: int, params: Params, space: Space) -> FrozenTrial:
    """Return a new trial, whose id is its number."""
    return FrozenTrial(
        number,
        TrialState.RUNNING,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params=dict(params),
        distributions=dict(space),
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=number,
    )


def with_last_value_as_final(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Return the trials, with unfinished and pruned trials as complete.

    The value of such a trial is its last intermediate value. Optuna's TPE ranks complete trials above all others, so
    the first complete trials would dominate its model.
    """
    return [trial if trial.state is TrialState.COMPLETE else _with_last_value(trial) for trial in trials]


def _with_last_value(trial: FrozenTrial) -> FrozenTrial:
    if trial.state not in _PARTIAL_STATES or not trial.intermediate_values:
        return trial
    completed = copy.copy(trial)
    completed.state, completed.value = TrialState.COMPLETE, trial.intermediate_values[max(trial.intermediate_values)]
    return completed


def _has_startup_trials(trials: Sequence[FrozenTrial]) -> bool:
    observed = (trial for trial in trials if trial.state in _OBSERVED_STATES)
    return sum(1 for _ in islice(observed, STARTUP_TRIALS)) == STARTUP_TRIALS


def _select_observations(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Return the best and the newest trials, to which TPE gives most weight."""
    if len(trials) <= MAX_OBSERVATIONS:
        return trials
    n_newest = MAX_OBSERVATIONS - BEST_OBSERVATIONS
    older, newer = trials[:-n_newest], trials[-n_newest:]
    complete = [trial for trial in older if trial.state is TrialState.COMPLETE]
    running = [trial for trial in older if trial.state is TrialState.RUNNING]
    best = heapq.nlargest(BEST_OBSERVATIONS, complete, key=attrgetter("value"))
    return [*sorted([*best, *running], key=attrgetter("number")), *newer]


def _sample_with_optuna(
    sampler: BaseSampler, space: Space, number: int, trials: Sequence[FrozenTrial]
) -> Iterator[Params]:
    """Yield proposals of an Optuna sampler for trial ``number``, without end."""
    study, trial = study_from_trials(trials), running_trial(number, {}, {})
    searched = {name: _relax(space[name]) for name in sorted(space) if not space[name].single()}
    while True:
        point = sampler.sample_relative(study, trial, searched)
        yield {
            name: _round(distribution, point[name]) if name in point else from_unit(distribution, 0.0)
            for name, distribution in space.items()
        }


def _prefer_cheapest(proposals: Iterator[Params], cost_parameter: str | None) -> Iterator[Params]:
    """Yield the cheapest proposal of each group.

    The model does not know the cost of a trial. The idea is the expected improvement per second of Snoek et al. 2012,
    arXiv:1206.2944, section 3.2.
    """
    if cost_parameter is None:
        yield from proposals
        return
    while group := list(islice(proposals, PROPOSALS_PER_TRIAL)):
        yield min(group, key=itemgetter(cost_parameter))


def _relax(distribution: BaseDistribution) -> BaseDistribution:
    """Return a long range of integers as a range of floats.

    TPE evaluates it four times as fast.
    """
    if isinstance(distribution, IntDistribution) and distribution.high - distribution.low >= LONG_RANGE:
        return FloatDistribution(distribution.low - 0.5, distribution.high + 0.5, log=distribution.log)
    return distribution


def _round(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, IntDistribution):
        return min(max(round(value), distribution.low), distribution.high)
    return value


def make_optuna_tpe(seed: int | None) -> TPESampler:
    """Return Optuna's TPE with the settings of hpo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)


def _optuna_gp(seed: int, number: int) -> BaseSampler:
    # It imports PyTorch.
    from optuna.samplers import GPSampler

    return GPSampler(seed=_trial_seed(seed, number), n_startup_trials=STARTUP_TRIALS)


def _trial_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])
