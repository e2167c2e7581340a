"""Tasks: the kind of the labels, and the score of a model's outputs."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpo.config.study import StudyConfig

Array = NDArray[Any]


class Task(Protocol):
    """Kind of prediction.

    Attributes:
        metric: The name of the score. A greater score is better.
    """

    metric: str

    def encode(self, labels: Array) -> tuple[Array, Array]:
        """Return the targets (n,) that a model is trained with, and the classes.

        Raises:
            ValueError: if the task cannot use the labels.
        """
        ...

    def decode(self, outputs: Array, classes: Array) -> Array:
        """Return the predicted labels (n,) of a model's outputs (n, n_outputs)."""
        ...

    def n_outputs(self, classes: Array) -> int:
        """Return the number of outputs of a model."""
        ...

    def score(self, outputs: Array, y: Array) -> float:
        """Return the score of a model's outputs (n, n_outputs) for the targets (n,)."""
        ...

    def stratify(self, y: Array) -> Array | None:
        """Return the groups (n,) whose shares the splits keep; None for purely random splits."""
        ...


class Classification:
    """Prediction of one of several classes, scored by accuracy."""

    metric = "accuracy"

    def encode(self, labels: Array) -> tuple[Array, Array]:
        """Return the index of each label in the classes, and the sorted classes."""
        classes, y = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            labels_are = "the only label is" if len(labels) == 1 else f"all {len(labels)} labels are"
            raise ValueError(f"{labels_are} {classes[0].item()!r}; at least two classes are required")
        return y.astype(np.intp), classes

    def decode(self, outputs: Array, classes: Array) -> Array:
        """Return the class with the largest output of each row."""
        decoded: Array = classes[outputs.argmax(axis=1)]
        return decoded

    def n_outputs(self, classes: Array) -> int:
        """Return the number of classes."""
        return len(classes)

    def score(self, outputs: Array, y: Array) -> float:
        """Return the share of rows whose largest output is that of their class."""
        return float((outputs.argmax(axis=1) == y).mean())

    def stratify(self, y: Array) -> Array | None:
        """Return the classes, so that each split has its share of each class."""
        return y


def task_of(config: StudyConfig) -> Task:
    """Return the task of a study. Classification is the only task."""
    return Classification()
