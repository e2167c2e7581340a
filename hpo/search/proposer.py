"""The parameters of a trial that was allocated without parameters."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import MODEL
from hpo.search.branches import BranchSampler
from hpo.search.enqueue import pending
from hpo.search.sampling.samplers import Sampler, propose
from hpo.search.sampling.tpe import running_trial
from hpo.search.space import ConditionalSpace, Params, Space, needed

NO_PARAMS: Params = MappingProxyType({})


@dataclass(frozen=True)
class Proposal:
    """Parameters of a trial, and whether they were enqueued, so that another trial may have the same ones."""

    params: Params
    is_enqueued: bool


@dataclass(frozen=True)
class Proposer:
    """Source of the parameters of each trial: first the enqueued ones, then the sampler's.

    A proposal of a sampler that does not learn depends only on the trial's number and on the enqueued parameters.
    Each worker can therefore compute the parameters of earlier trials that other workers have not written yet.

    Attributes:
        sampler: The sampler of the study.
        space: The search space, None if only the objective knows it.
        enqueued: The parameters to try first.
        seed: The seed of the study.
        minimizes: Whether less is better. The samplers see negative values then, because greater is better to them.
    """

    sampler: Sampler | BranchSampler
    space: Space | None
    enqueued: Sequence[Params]
    seed: int
    minimizes: bool = False

    def propose(
        self, trials: Sequence[FrozenTrial], taken: Iterable[Params] = (), given: Params = NO_PARAMS
    ) -> Proposal:
        """Return the parameters of trial ``len(trials)``.

        Args:
            trials: The trials before it in the order of their numbers.
            taken: Parameters of later trials.
            given: Parameters that the trial has already.

        Raises:
            StudyFileError: if the sampler has no new point.
        """
        filled: list[FrozenTrial] = []
        for trial in map(_negated, trials) if self.minimizes and self.sampler.learns else trials:
            filled.append(self._filled(trial, filled))
        return self._next(filled, taken, given)

    def _filled(self, trial: FrozenTrial, before: Sequence[FrozenTrial]) -> FrozenTrial:
        """Return a trial with the parameters that its worker will write, if they are known."""
        if not self.space or trial.params or trial.state != TrialState.RUNNING:
            return trial
        if self.sampler.learns and not pending(self.enqueued, before):
            return trial
        params = self._next(before).params
        return running_trial(trial.number, params, needed(self.space, params))

    def _next(self, trials: Sequence[FrozenTrial], taken: Iterable[Params] = (), given: Params = NO_PARAMS) -> Proposal:
        assert self.space is not None, "the objective proposes its parameters itself"
        enqueued = [params for params in pending(self.enqueued, trials) if _has_model_of(params, given)]
        if enqueued:
            return Proposal(enqueued[0], is_enqueued=True)
        if isinstance(self.sampler, BranchSampler):
            assert isinstance(self.space, ConditionalSpace), "only a study that compares models has several samplers"
            params = self.sampler.propose(self.space, trials, self.seed, taken, given.get(MODEL))
        else:
            params = propose(self.sampler, self.space, trials, self.seed, taken)
        return Proposal(params, is_enqueued=False)


def _has_model_of(params: Params, given: Params) -> bool:
    """Return whether parameters are of the given model, if a model is given."""
    return MODEL not in given or params.get(MODEL) == given[MODEL]


def _negated(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of a trial with negative values."""
    negated = copy.copy(trial)
    negated.intermediate_values = {step: -value for step, value in trial.intermediate_values.items()}
    if trial.value is not None:
        negated.value = -trial.value
    return negated
