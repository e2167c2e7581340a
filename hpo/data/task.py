"""Tasks: the kind of the labels, and what a model's outputs predict."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpo.data.metrics import TaskName, probabilities

Array = NDArray[Any]

# The logarithm of a smaller probability is no longer a useful input of a softmax.
_MIN_PROBABILITY = 1e-300


class Task(Protocol):
    """Kind of prediction."""

    @property
    def name(self) -> TaskName:
        """The name in a study file."""
        ...

    def encode(self, labels: Array) -> tuple[Array, Array]:
        """Return the targets (n,) that a model is trained with, and the classes.

        Raises:
            ValueError: if the task cannot use the labels.
        """
        ...

    def decode(self, outputs: Array, classes: Array) -> Array:
        """Return the predictions (n,) of a model's outputs (n, n_outputs)."""
        ...

    def mean_outputs(self, outputs: Sequence[Array]) -> Array:
        """Return the outputs (n, n_outputs) of several models' mean prediction, unchanged for a single model."""
        ...

    def loss(self, outputs: Array, y: Array) -> float:
        """Return the mean error of outputs (n, n_outputs) for targets (n,): cross-entropy or squared error."""
        ...

    def n_outputs(self, classes: Array) -> int:
        """Return the number of outputs of a model."""
        ...

    def stratify(self, y: Array) -> Array | None:
        """Return the groups (n,) whose shares the splits keep; None for purely random splits."""
        ...


class Classification:
    """Prediction of one of several classes."""

    name: TaskName = "classification"

    def encode(self, labels: Array) -> tuple[Array, Array]:
        """Return the index of each label in the classes, and the sorted classes."""
        classes, y = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            labels_are = "the only label is" if len(labels) == 1 else f"all {len(labels)} labels are"
            advice = "at least two classes are required; add rows of others, or choose another label"
            raise ValueError(f"{labels_are} {classes[0].item()!r}; {advice}")
        return y.astype(np.intp), classes

    def decode(self, outputs: Array, classes: Array) -> Array:
        """Return the class with the largest output of each row."""
        decoded: Array = classes[outputs.argmax(axis=1)]
        return decoded

    def mean_outputs(self, outputs: Sequence[Array]) -> Array:
        """Return the logarithm of the mean probability of each class."""
        if len(outputs) == 1:
            return outputs[0]
        mean: Array = np.log(np.maximum(np.mean([probabilities(each) for each in outputs], axis=0), _MIN_PROBABILITY))
        return mean

    def loss(self, outputs: Array, y: Array) -> float:
        """Return the mean softmax cross-entropy."""
        scores = outputs.astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]).mean())

    def n_outputs(self, classes: Array) -> int:
        """Return the number of classes."""
        return len(classes)

    def stratify(self, y: Array) -> Array | None:
        """Return the classes, so that each split has its share of each class."""
        return y


class Regression:
    """Prediction of a number. It has no classes."""

    name: TaskName = "regression"

    def encode(self, labels: Array) -> tuple[Array, Array]:
        """Return the labels as float64, and no classes."""
        if labels.dtype.kind not in "iuf":
            kind = "text" if labels.dtype.kind == "U" else str(labels.dtype)
            raise ValueError(f"the labels are {kind}, such as {labels[0].item()!r}; regression needs numbers")
        y = labels.astype(np.float64)
        if np.ptp(y) == 0:
            raise ValueError(f"all {len(y)} labels are {labels[0].item()!r}; at least two numbers are required")
        return y, np.empty(0)

    def decode(self, outputs: Array, classes: Array) -> Array:
        """Return the only output of each row."""
        decoded: Array = outputs[:, 0]
        return decoded

    def mean_outputs(self, outputs: Sequence[Array]) -> Array:
        """Return the mean number of each row."""
        mean: Array = outputs[0] if len(outputs) == 1 else np.mean(outputs, axis=0)
        return mean

    def loss(self, outputs: Array, y: Array) -> float:
        """Return the mean squared error."""
        return float(np.mean((outputs[:, 0] - y) ** 2))

    def n_outputs(self, classes: Array) -> int:
        """Return 1."""
        return 1

    def stratify(self, y: Array) -> Array | None:
        """Return None, because no two rows need the same number."""
        return None


TASKS: Mapping[TaskName, Task] = MappingProxyType({"classification": Classification(), "regression": Regression()})
