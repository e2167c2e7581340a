"""Metrics of predictions, by scikit-learn's definitions.

A metric sees the outputs of a model: a column for each class, whose softmax is the class's probability, or one column
with the predicted number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpo.config.study import StudyConfig
from hpo.errors import StudyFileError

Array = NDArray[Any]
TaskName = Literal["classification", "regression"]


@dataclass(frozen=True)
class Metric:
    """Value of predictions.

    Attributes:
        name: The name, as in a study file.
        task: The task whose predictions it values.
        function: Returns the value of outputs (n, n_outputs) for targets (n,).
        minimizes: Whether less is better.
        needs_all_classes: Whether each class needs a row.
        min_rows: The smallest number of rows that have a value.
    """

    name: str
    task: TaskName
    function: Callable[[Array, Array], float]
    minimizes: bool = False
    needs_all_classes: bool = False
    min_rows: int = 1

    def is_defined(self, y: Array, classes: Array) -> bool:
        """Return whether the metric has a value for these targets (n,)."""
        has_all_classes = not self.needs_all_classes or len(np.unique(y)) == len(classes)
        return has_all_classes and len(y) >= self.min_rows

    def score(self, outputs: Array, y: Array) -> float:
        """Return the value of outputs (n, n_outputs) for targets (n,): indices of classes, or numbers."""
        return self.function(outputs, y)


def probabilities(outputs: Array) -> NDArray[np.float64]:
    """Return the softmax (n, c) of outputs (n, c)."""
    shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def _accuracy(outputs: Array, y: Array) -> float:
    return float((outputs.argmax(axis=1) == y).mean())


# scikit-learn takes longer to import than the rest of a worker, and most studies use the accuracy.


def _balanced_accuracy(outputs: Array, y: Array) -> float:
    from sklearn.metrics import recall_score

    # balanced_accuracy_score warns of a predicted class without a row.
    return float(recall_score(y, outputs.argmax(axis=1), labels=np.unique(y), average="macro"))


def _f1_macro(outputs: Array, y: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y, outputs.argmax(axis=1), average="macro", zero_division=0.0))


def _roc_auc(outputs: Array, y: Array) -> float:
    from sklearn.metrics import roc_auc_score

    shares = probabilities(outputs)
    if shares.shape[1] == 2:
        return float(roc_auc_score(y, shares[:, 1]))
    return float(roc_auc_score(y, shares, multi_class="ovr", labels=np.arange(shares.shape[1])))


def _average_precision(outputs: Array, y: Array) -> float:
    from sklearn.metrics import average_precision_score

    shares = probabilities(outputs)
    if shares.shape[1] == 2:
        return float(average_precision_score(y, shares[:, 1]))
    return float(average_precision_score(np.eye(shares.shape[1])[y], shares))


def _log_loss(outputs: Array, y: Array) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(y, probabilities(outputs), labels=np.arange(outputs.shape[1])))


def _r2(outputs: Array, y: Array) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(y, outputs[:, 0]))


def _rmse(outputs: Array, y: Array) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(y, outputs[:, 0]))


def _mae(outputs: Array, y: Array) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(y, outputs[:, 0]))


_ALL = (
    Metric("accuracy", "classification", _accuracy),
    Metric("balanced_accuracy", "classification", _balanced_accuracy),
    Metric("f1_macro", "classification", _f1_macro),
    Metric("roc_auc", "classification", _roc_auc, needs_all_classes=True),
    Metric("average_precision", "classification", _average_precision, needs_all_classes=True),
    Metric("log_loss", "classification", _log_loss, minimizes=True),
    Metric("r2", "regression", _r2, min_rows=2),
    Metric("rmse", "regression", _rmse, minimizes=True),
    Metric("mae", "regression", _mae, minimizes=True),
)
# Metrics by their name in a study file.
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
DEFAULT_METRICS: Mapping[TaskName, str] = MappingProxyType({"classification": "accuracy", "regression": "r2"})


def metric_of(config: StudyConfig, task: TaskName) -> Metric:
    """Return the metric of a study.

    Raises:
        StudyFileError: if no metric has this name, or if it is not one of the task.
    """
    allowed = [name for name, metric in METRICS.items() if metric.task == task]
    name = config.study.metric or DEFAULT_METRICS[task]
    if name not in allowed:
        raise StudyFileError(f"{config.path}: study.metric: {', '.join(allowed)} is allowed for {task}, not {name!r}")
    return METRICS[name]
