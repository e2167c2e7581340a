"""An Optuna study that is a list of trials, for the samplers and pruners that want one; it has no database."""

from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState


class _Listed(InMemoryStorage):
    """Shows the trials of a list, which it neither copies nor changes."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._listed = trials

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        if states is None:
            return list(self._listed)
        return [trial for trial in self._listed if trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """A sampler's word to those who would ask the same study; nobody else does."""


def study_of(trials: Sequence[FrozenTrial]) -> optuna.Study:
    """A study of these trials, of which the highest value is the best."""
    return optuna.create_study(storage=_Listed(trials), direction="maximize")
