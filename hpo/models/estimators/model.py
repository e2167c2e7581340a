"""Estimator as a model that trains in epochs."""

import copy
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.division.splits import Split
from hpo.data.task import Task
from hpo.models.estimators.budget import Budget, budget_of, refusals_of, train
from hpo.models.estimators.fitted import ESTIMATOR, FittedEstimator, dump, input_dtype, load

Array = NDArray[Any]

# A checkpoint does not have a larger ensemble, because packing 500 trees takes 2 s. A resumed training then grows the
# same ensemble again.
MAX_STATE_BYTES = 8 * 10**6
# Rows of the training split that the training loss is computed on.
LOSS_ROWS = 1000

_EPOCH = "epoch"


class EstimatorModel:
    """`hpo.models.base.Model` of an estimator with scikit-learn's interface.

    Args:
        estimator: The estimator, which is not trained.
        split: The training split. If ``X`` has a multiple of n rows, all variants of an example are rows.
        task: The task.
        classes: The classes of the data.
        stops: The steps after which the model predicts. An ensemble grows at these steps and at its last step only.
            None for every step.
        allowed: Packages whose classes may be loaded from a checkpoint, besides the known ones.
    """

    def __init__(
        self,
        estimator: Any,
        split: Split,
        task: Task,
        classes: Array,
        stops: Collection[int] | None = None,
        allowed: Collection[str] = (),
    ) -> None:
        self._untrained = estimator
        self._budget: Budget = budget_of(estimator)
        self._X = np.ascontiguousarray(split.X[:, :-1], input_dtype(estimator))
        self._y = np.tile(split.y, len(split.X) // len(split.y))
        self._task = task
        self._classes = classes if len(classes) else None
        self._stops = stops if self._budget.can_skip else None
        self._allowed = allowed
        self._loss = 0.0
        self._is_large = False
        self._start_over()

    def fit_epoch(self, on_step: Callable[[], None]) -> float:
        """Train for one step of the budget; return the loss on the first rows of the training split.

        Between two stops, the model stays as it is and the loss is that of the last stop, at first 0.

        Raises:
            RefusalError: if the estimator refuses its parameters or the data.
        """
        self._train_to(self._epoch + 1)
        on_step()
        return self._loss

    def predict(self, X: Array) -> Array:
        """Return the outputs (n, n_outputs) for inputs (n, k + 1).

        Raises:
            RefusalError: if the estimator refuses its parameters or the data only when it predicts.
        """
        return self._outputs(X[:, :-1])

    def state_dict(self) -> dict[str, Array]:
        """Return the number of finished steps, and the estimator unless it is a large ensemble."""
        state = {_EPOCH: np.array(self._epoch), "loss": np.array(self._loss)}
        if not self._is_large:
            packed = dump(self._estimator)
            self._is_large = self._budget.can_skip and len(packed) > MAX_STATE_BYTES
            if not self._is_large:
                state[ESTIMATOR] = np.frombuffer(packed, np.uint8)
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Restore a state. If it has no estimator, the training is repeated."""
        epoch = int(state[_EPOCH])
        self._start_over()
        if ESTIMATOR not in state:
            for step in range(1, epoch + 1):
                self._train_to(step)
            return
        self._estimator = load(state[ESTIMATOR].tobytes(), self._allowed)
        self._epoch, self._loss = epoch, float(state["loss"])

    def is_finite(self) -> bool:
        """Return whether the last loss is finite."""
        return math.isfinite(self._loss)

    def fitted(self) -> FittedEstimator:
        """Return a copy of the estimator."""
        return copy.deepcopy(self._fitted())

    def _fitted(self) -> FittedEstimator:
        n_outputs = 1 if self._classes is None else len(self._classes)
        return FittedEstimator(self._estimator, self._X.shape[1], n_outputs)

    def _outputs(self, X: Array) -> Array:
        with refusals_of(self._estimator):
            return self._fitted().outputs(X)

    def _start_over(self) -> None:
        self._estimator = copy.deepcopy(self._untrained)
        self._epoch, self._loss, self._is_large = 0, 0.0, False

    def _train_to(self, step: int) -> None:
        if self._stops is None or step in self._stops or step == self._budget.steps:
            train(self._budget, self._estimator, self._X, self._y, step, self._classes)
            self._loss = self._compute_loss()
        self._epoch = step

    def _compute_loss(self) -> float:
        outputs = self._outputs(self._X[:LOSS_ROWS])
        return float(self._task.loss(outputs, self._y[:LOSS_ROWS])) if np.isfinite(outputs).all() else math.nan
