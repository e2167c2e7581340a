"""Epoch of a training with the best validation score."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from hpo.data.metrics import Metric
from hpo.models.base import Array, Model

_PREFIX = "best."


class BestEpoch:
    """Validation scores of the best epoch so far, and copies of the models' states after it.

    Of several epochs with the best mean over the folds, the last one counts, because a small validation split has few
    different scores, and the learning rate falls.

    Args:
        metric: Metric of the scores.

    Attributes:
        number: Number of the epoch; 0 before the first.
        scores: Score of each fold.
    """

    def __init__(self, metric: Metric) -> None:
        self._sign = -1 if metric.minimizes else 1
        self.number = 0
        self.scores: list[float] = []
        self._states: list[Mapping[str, Array]] = []

    def observe(self, number: int, scores: list[float], models: Sequence[Model]) -> None:
        """Keep an epoch if no earlier one is better."""
        if self.scores and self._sign * statistics.fmean(scores) < self._sign * statistics.fmean(self.scores):
            return
        self.number, self.scores = number, scores
        self._states = [model.state_dict() for model in models]

    def load_into(self, models: Sequence[Model]) -> None:
        """Restore the states of the models after the epoch."""
        for model, state in zip(models, self._states, strict=True):
            model.load_state_dict(state)

    def arrays(self) -> dict[str, Array]:
        """Return the epoch as named arrays for a checkpoint."""
        arrays = {f"{_PREFIX}number": np.array(self.number), f"{_PREFIX}scores": np.array(self.scores, np.float64)}
        for fold, state in enumerate(self._states):
            arrays |= {f"{_PREFIX}{fold}.{name}": array for name, array in state.items()}
        return arrays

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Restore ``arrays()``. Other names in the mapping are ignored.

        Raises:
            KeyError: if the epoch is missing.
        """
        self.number = int(arrays[f"{_PREFIX}number"])
        self.scores = arrays[f"{_PREFIX}scores"].tolist()
        self._states = [arrays_with_prefix(arrays, f"{_PREFIX}{fold}.") for fold in range(len(self.scores))]


def arrays_with_prefix(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """Return the arrays whose names have a prefix, by their names without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
