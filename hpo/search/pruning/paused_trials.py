"""View of a study in which paused trials are pruned, for samplers that learn.

A paused trial is RUNNING in the database, so that Optuna's samplers would not learn from it, and with ASHA most trials
of a study are paused until its end.
"""

import copy
from collections.abc import Container
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hpo.search.pruning.asha_pruner import AshaPruner
from hpo.search.sampling.reseeding import DelegatingSampler


class LearningFromPausedTrials(DelegatingSampler):
    """Sampler that takes the paused trials of a study with an ``AshaPruner`` for pruned trials."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Pass the call with the view."""
        return super().infer_relative_search_space(_view(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Pass the call with the view."""
        return super().sample_relative(_view(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Pass the call with the view."""
        return super().sample_independent(_view(study), trial, param_name, param_distribution)


def _view(study: Study) -> Study:
    if not isinstance(study.pruner, AshaPruner):
        return study
    view = copy.copy(study)
    view._storage = _PausedAsPruned(study, study.pruner)  # type: ignore[assignment]  # it has what samplers call
    # Optuna caches the trials of a study here.
    view._thread_local = type(study._thread_local)()
    return view


class _PausedAsPruned:
    """Storage in which the paused trials of one study are pruned. All other calls pass.

    Args:
        study: The study.
        pruner: Its pruner, whose decisions are a function of the trials.
    """

    def __init__(self, study: Study, pruner: AshaPruner) -> None:
        self._study = study
        self._pruner = pruner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of the study, paused ones as pruned."""
        trials = self._study._storage.get_all_trials(study_id, deepcopy=deepcopy)
        paused = self._pruner.stopped(trials, self._study.direction)
        shown = [_as_pruned(trial) if trial.number in paused else trial for trial in trials]
        return shown if states is None else [trial for trial in shown if trial.state in states]


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    pruned = copy.copy(trial)
    pruned.state = TrialState.PRUNED
    return pruned
