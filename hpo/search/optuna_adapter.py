"""An Optuna study that is a list of trials, for the samplers and pruners that want one; it has no database."""

from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState


class TrialListStorage(InMemoryStorage):
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


def study_from_trials(trials: Sequence[FrozenTrial]) -> optuna.Study:
    """A study of these trials, of which the highest value is the best."""
    return optuna.create_study(storage=TrialListStorage(trials), direction="maximize")


def running_trial(number: int, params: dict[str, Any], space: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial that was just created; in a list its id is its number."""
    return FrozenTrial(
        number,
        TrialState.RUNNING,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params=params,
        distributions=space,
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=number,
    )
