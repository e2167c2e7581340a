"""Wrappers that make a script's Optuna sampler independent of the worker that asks it.

A worker has its own instance of the sampler. Before each call, the wrapper sets the sampler's random number generators
from the seed, the number of the trial and the step of sampling. The parameters of a trial then depend on its number and
on the other trials, but neither on the process nor on the trials that the process has run.

========================  =====================================================================================
sampler                   besides its generators
========================  =====================================================================================
RandomSampler             nothing; with one worker, a seeded sampler keeps one stream (``ReplayedRandomSampler``)
TPESampler                with ``group=True``, the groups are computed again for each trial, because their order
                          depends on the order in which a process has seen the trials
GPSampler                 the last fit, from which the next fit would start, is dropped
CmaEsSampler              nothing; the optimizer is in the attributes of the trials
NSGAII-, NSGAIIISampler   the parents are selected before the parameters are drawn, so that each trial sees them in
                          the same order; the generations are in the attributes of the trials and of the study
QMCSampler                a trial gets the point of its number instead of the next value of a counter in the study,
                          which two workers can read at once; workers share the seed of a scrambled sequence
GridSampler               nothing; its order is fixed by its own seed, which is the same in each process
BruteForceSampler         nothing
PartialFixedSampler       as its base sampler
others                    their state beyond the generators of NumPy and of ``random`` remains as it is
========================  =====================================================================================
"""

import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.random import Generator, RandomState, SeedSequence
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseGASampler, BaseSampler, QMCSampler, RandomSampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

# The steps of sampling.
_BEFORE, _SELECTION, _RELATIVE, _INDEPENDENT, _AFTER = range(5)
# The system attributes of a trial with the parameters that no sampler draws. Optuna writes the first for an enqueued
# trial, and hpo the second for a trial that a script adds.
_FIXED_PARAMS, GIVEN_PARAMS = "fixed_params", "hpo:given_params"
# A seed from the entropy of the system is this large, except with a probability of 2**-32. A seed of Optuna is smaller.
_ENTROPY = 2**32
# 128 bits.
_SEED_WORDS = 4
# The attributes of GPSampler and of TPESampler that are derived from former trials.
_FITS = frozenset({"_gprs_cache_list", "_constraints_gprs_cache_list"})
_GROUPS = "_group_decomposed_search_space"
# Generators can be attributes of a sampler's attribute, for example of a strategy, or elements of it.
_DEPTH = 2
# Further elements of a list are data, for example the points of a grid.
_MAX_ELEMENTS = 100
# Objects in a sampler without generators.
_LEAVES = (
    str,
    bytes,
    int,
    float,
    type,
    np.ndarray,
    BaseDistribution,
    BasePruner,
    BaseStorage,
    FrozenTrial,
    Study,
)

AnyGenerator = RandomState | Generator | random.Random


class DelegatingSampler(BaseSampler):
    """Sampler that passes each call to another sampler.

    Args:
        sampler: The other sampler.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler

    @property
    def wrapped(self) -> BaseSampler:
        """The other sampler."""
        return self._sampler

    def __str__(self) -> str:
        return str(self._sampler)

    def __getattr__(self, name: str) -> Any:
        # A copy has no attributes at first.
        if name == "_sampler":
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def reseed_rng(self) -> None:
        """Pass the call."""
        self._sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass the call."""
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Pass the call."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Pass the call."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Pass the call."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass the call."""
        self._sampler.after_trial(study, trial, state, values)


class ReseededSampler(DelegatingSampler):
    """Sampler whose generators are set anew for each step of each trial.

    Args:
        sampler: The sampler of the script.
        default_seed: The seed if the script has not seeded the sampler.

    Attributes:
        seed: The seed of all trials. It depends on the sampler's own seed, if it has one.
    """

    def __init__(self, sampler: BaseSampler, default_seed: int) -> None:
        super().__init__(sampler)
        seed = find_seed(sampler)
        self.seed = default_seed if seed is None else seed
        self._share_sequences()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Reseed the sampler and pass the call."""
        self._reseed(trial.number, _BEFORE)
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Pass the call, without the state that the sampler keeps of former trials."""
        for part in _samplers_in(self._sampler):
            _forget_trials(part)
        return super().infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Reseed the sampler and pass the call."""
        self._reseed(trial.number, _SELECTION)
        for part in _samplers_in(self._sampler):
            if isinstance(part, BaseGASampler):
                # The trial that selects a generation's parents would see them in another order than all later trials.
                part.get_parent_population(study, part.get_trial_generation(study, trial))
        self._reseed(trial.number, _RELATIVE)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Reseed the sampler and pass the call."""
        # A resumed trial has its recorded parameters, so that the next parameter has the same index.
        self._reseed(trial.number, _INDEPENDENT, len(trial.params))
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Reseed the sampler and pass the call."""
        self._reseed(trial.number, _AFTER)
        super().after_trial(study, trial, state, values)

    def _reseed(self, number: int, *key: int) -> None:
        """Set all generators to one stream, as Optuna's samplers do with their seed."""
        self._number = number
        stream = SeedSequence(self.seed, spawn_key=(number, *key))
        # A sampler may have created further generators since the last call.
        for generator in generators_in(self._sampler):
            _set_stream(generator, stream)

    def _share_sequences(self) -> None:
        """Give quasi-random samplers the same sequence in each process, and a point for each trial number."""
        for part in _samplers_in(self._sampler):
            if isinstance(part, QMCSampler):
                attributes = vars(part)
                attributes["_find_sample_id"] = self._point_of_trial
                if attributes["_seed"] >= _ENTROPY:
                    attributes["_seed"] = self.seed

    def _point_of_trial(self, study: Study, search_space: Mapping[str, BaseDistribution]) -> int:
        # Trial 0 samples independently, so that trial 1 gets the first point, as in plain Optuna.
        return max(self._number - 1, 0)


class ReplayedRandomSampler(DelegatingSampler):
    """Seeded random sampler of a study with one worker, with the same stream as without hpo.

    A process that has not run the earlier trials draws their recorded parameters again.

    Args:
        sampler: The sampler of the script, before its first draw.
    """

    def __init__(self, sampler: RandomSampler) -> None:
        super().__init__(sampler)
        # The newest trial whose parameters have been drawn from the stream.
        self._newest = -1

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw the next value of the stream, after the values of all earlier trials."""
        # A promoted trial has a lower number than the newest one.
        if trial.number > self._newest:
            self._replay(study, trial)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _replay(self, study: Study, trial: FrozenTrial) -> None:
        for past in (*self._missed_trials(study, trial.number), trial):
            for name, distribution in _drawn_params(past):
                super().sample_independent(study, past, name, distribution)
        self._newest = trial.number

    def _missed_trials(self, study: Study, number: int) -> Sequence[FrozenTrial]:
        """Return the earlier trials whose parameters this process has not drawn, in the order of their numbers."""
        if number == self._newest + 1:
            return ()
        # With Optuna's HyperbandPruner, the study shows only the trials of a bracket.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)  # as Optuna's samplers
        return sorted((past for past in trials if self._newest < past.number < number), key=attrgetter("number"))


def _drawn_params(trial: FrozenTrial) -> Iterator[tuple[str, BaseDistribution]]:
    """Yield the parameters that the sampler has drawn, in the order of the draws."""
    fixed = {*trial.system_attrs.get(_FIXED_PARAMS, ()), *trial.system_attrs.get(GIVEN_PARAMS, ())}
    for name, distribution in trial.distributions.items():
        if name not in fixed and not distribution.single():
            yield name, distribution


def reseeded(sampler: BaseSampler, default_seed: int, workers: int) -> DelegatingSampler:
    """Return a sampler that proposes the same parameters in each worker.

    Args:
        sampler: The sampler of the script, before its first draw.
        default_seed: The seed if the script has not seeded the sampler.
        workers: The number of workers of the study.
    """
    # A subclass may draw in another way.
    if workers == 1 and type(sampler) is RandomSampler and find_seed(sampler) is not None:
        return ReplayedRandomSampler(sampler)
    return ReseededSampler(sampler, default_seed)


def find_seed(sampler: BaseSampler) -> int | None:
    """Return a number that depends on the sampler's own seed, None without a seed.

    The sampler is not changed.
    """
    for generator in generators_in(sampler):
        if _is_seeded(generator):
            return _draw(copy.deepcopy(generator))
    return None


def _is_seeded(generator: AnyGenerator) -> bool:
    match generator:
        case RandomState():
            # NumPy keeps the sequence of a seed only if it comes from the entropy of the system.
            return getattr(generator, "_bit_generator").seed_seq is None  # noqa: B009  # missing in the stubs
        case Generator():
            entropy = getattr(generator.bit_generator.seed_seq, "entropy", None)
            return not isinstance(entropy, int) or entropy < _ENTROPY
    # The state of Python's generator does not show its origin.
    return False


def _draw(generator: AnyGenerator) -> int:
    match generator:
        case RandomState():
            return int(generator.randint(_ENTROPY, dtype=np.uint32))
        case Generator():
            return int(generator.integers(_ENTROPY))
    return generator.getrandbits(32)


def _set_stream(generator: AnyGenerator, stream: SeedSequence) -> None:
    match generator:
        case RandomState():
            generator.seed(stream.generate_state(_SEED_WORDS))
        case Generator():
            bits = generator.bit_generator
            bits.state = type(bits)(stream).state
        case random.Random():
            generator.seed(stream.generate_state(_SEED_WORDS).tobytes())


def generators_in(sampler: BaseSampler) -> Iterator[AnyGenerator]:
    """Yield the random number generators of a sampler and of its parts, each once, in a fixed order."""
    for part in _parts(sampler):
        if isinstance(part, LazyRandomState):
            yield part.rng
        elif isinstance(part, AnyGenerator):
            yield part


def _samplers_in(sampler: BaseSampler) -> Iterator[BaseSampler]:
    return (part for part in _parts(sampler) if isinstance(part, BaseSampler))


def _parts(sampler: BaseSampler) -> Iterator[object]:
    """Yield a sampler, the samplers in it, their attributes, and the attributes of these, each once."""
    seen: set[int] = set()

    def walk(value: object, depth: int) -> Iterator[object]:
        if value is None or isinstance(value, _LEAVES) or id(value) in seen:
            return
        seen.add(id(value))
        yield value
        is_sampler = isinstance(value, BaseSampler)
        if is_sampler or depth > 0:
            for child in _children(value):
                yield from walk(child, _DEPTH if is_sampler else depth - 1)

    yield from walk(sampler, _DEPTH)


def _children(value: object) -> Iterable[object]:
    match value:
        case LazyRandomState():
            return ()
        case dict():
            return list(islice(value.values(), _MAX_ELEMENTS))
        case list() | tuple():
            return value[:_MAX_ELEMENTS]
    return list(getattr(value, "__dict__", {}).values())


def _forget_trials(sampler: BaseSampler) -> None:
    """Drop the state that a sampler of Optuna derives from the trials in the order in which it sees them."""
    attributes = vars(sampler)
    for name in _FITS.intersection(attributes):
        attributes[name] = None
    if attributes.get(_GROUPS) is not None:
        # As the constructor of TPESampler.
        attributes[_GROUPS] = _GroupDecomposedSearchSpace(include_pruned=True)
