"""Neural net that is trained on a split by stochastic gradient descent."""

from collections.abc import Callable, Iterator, Mapping
from math import cos, log2, pi
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from hpo.data.division.splits import Split
from hpo.data.task import Task
from hpo.models.fitted import FittedNet
from hpo.models.nets.hyperparameters import Hyperparameters
from hpo.models.nets.mlp import MLP, Array, NetSettings

if TYPE_CHECKING:
    # PyTorch is imported only for a trial that uses it.
    from hpo.models.nets.mlp_torch import TorchMLP

# Inputs with a smaller variance, relative to the largest variance, vary by rounding errors only.
_MIN_RELATIVE_VARIANCE = 1e-12
_BLOCK_ROWS = 256

# An epoch has about this number of steps if the batch size is "auto", between its smallest and its largest value.
_AUTO_STEPS = 25
_AUTO_SMALLEST, _AUTO_LARGEST = 32, 1024


class NetModel:
    """`hpo.models.base.Model` of a neural net: batches, learning rate decay and scaling of the inputs.

    Args:
        network_type: Implementation of the net.
        hyperparameters: Hyperparameters of the trial. A batch has at most all examples.
        train: Training split. ``X`` may be a read-only memory map, and is never copied as a whole. If ``X`` has a
            multiple of n rows, each epoch takes a random variant of each example: row i, i + n, ...
        n_classes: Number of classes; None for the prediction of a number.
        rng: Source of the initial weights, the order of the examples, their variants, and the units to drop.

    Raises:
        ValueError: if a label is not a class index, ``X`` does not end in the constant column, or its number of rows is
            not a multiple of the number of labels.
    """

    def __init__(
        self,
        network_type: "type[MLP] | type[TorchMLP]",
        hyperparameters: Hyperparameters,
        train: Split,
        n_classes: int | None,
        rng: np.random.Generator,
    ) -> None:
        self._X, self._y = np.asarray(train.X), np.asarray(train.y)
        self._variants = _count_variants(self._X, self._y, n_classes)
        self._target = None
        if n_classes is None:
            self._target = _fit_target(self._y)
            self._y = ((self._y - self._target.mean) / self._target.scale).astype(np.float32)
        columns = self._X.shape[1]
        batch_size = _batch_size(hyperparameters.batch_size, len(self._y))
        self._hyperparameters = hyperparameters
        self._rng = rng
        self._network = network_type(
            [columns - 1, *hyperparameters.hidden_sizes, n_classes or 1],
            NetSettings(
                hyperparameters.regularization,
                hyperparameters.momentum,
                hyperparameters.dropout,
                "cross_entropy" if n_classes else hyperparameters.loss,
                hyperparameters.optimizer,
                _class_weights(self._y, n_classes, hyperparameters.class_weight),
            ),
            batch_size=batch_size,
            rng=rng,
        )
        self._input_scale = _input_scale(self._X, hyperparameters.whitening, hyperparameters.input_scale)
        self._batch_X = np.empty((batch_size, columns), np.float32)
        self._epoch = 0

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def fit_epoch(self, on_step: Callable[[], None]) -> float:
        """Train on each example once, in random order.

        Returns:
            Mean error of the examples, each before the step of its batch, plus the penalty after the last step.
        """
        examples, batch_size = len(self._y), self._network.batch_size
        learning_rate = _learning_rate(self._hyperparameters, self._epoch)
        smoothing = self._hyperparameters.label_smoothing
        order = self._rng.permutation(examples)
        labels = self._y[order]
        rows = order
        if self._variants > 1:
            rows = order + examples * self._rng.integers(self._variants, size=examples)
        total = 0.0
        for start in range(0, examples, batch_size):
            y = labels[start : start + batch_size]
            X = self._batch_X[: len(y)]
            # The default mode of np.take buffers its output.
            np.take(self._X, rows[start : start + batch_size], axis=0, out=X, mode="clip")
            if self._input_scale is not None:
                np.multiply(X, self._input_scale, out=X)
            total += self._network.step(X, y, learning_rate, smoothing) * len(y)
            on_step()
        self._epoch += 1
        return total / examples + self._network.penalty()

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def predict(self, X: Array) -> Array:
        """Return the inputs of the softmax (n, n_classes), or the predicted numbers (n, 1)."""
        scores = self._scores(np.asarray(X))
        return scores if self._target is None else scores.astype(np.float64) * self._target.scale + self._target.mean

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters and the velocity in one vector, and the number of finished epochs."""
        return {"network": self._network.state(), "epoch": np.array(self._epoch)}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Restore arrays that `state_dict` returned."""
        self._network.load(state["network"])
        self._epoch = int(state["epoch"])

    def is_finite(self) -> bool:
        """Return whether all weights and biases are finite."""
        return self._network.is_finite()

    def fitted(self) -> FittedNet:
        """Return copies of the weights and biases of each layer, for inputs and targets that are not scaled."""
        layers = self._network.layers()
        if self._target is not None:
            W, b = (array.astype(np.float64) for array in layers[-1])
            layers[-1] = W * self._target.scale, b * self._target.scale + self._target.mean
        if self._input_scale is not None:
            first = layers[0][0]
            np.multiply(first, self._input_scale[:-1, np.newaxis], out=first)
        return FittedNet(layers)

    def _scores(self, X: Array) -> Array:
        if self._input_scale is None:
            return self._network.scores(X)
        return np.concatenate([self._network.scores(inputs) for inputs in self._scaled(X, self._input_scale)])

    def _scaled(self, X: Array, input_scale: Array) -> Iterator[Array]:
        """Yield the scaled rows in blocks of the batch size. A block is valid until the next."""
        for start in range(0, len(X), len(self._batch_X)):
            rows = X[start : start + len(self._batch_X)]
            yield np.multiply(rows, input_scale, out=self._batch_X[: len(rows)])


class NetType:
    """`hpo.models.base.ModelType` of the net in NumPy."""

    requires: tuple[str, ...] = ()

    def build(
        self, hyperparameters: Hyperparameters, train: Split, task: Task, classes: Array, rng: np.random.Generator
    ) -> NetModel:
        """Return an untrained net.

        Raises:
            ValueError: as `NetModel`.
        """
        return NetModel(self._network_type(), hyperparameters, train, len(classes) or None, rng)

    def warm_up(self) -> None:
        """Do nothing, because NumPy needs no initialization."""

    def _network_type(self) -> "type[MLP] | type[TorchMLP]":
        return MLP


class TorchNetType(NetType):
    """`hpo.models.base.ModelType` of the net in PyTorch."""

    requires = ("torch",)

    def warm_up(self) -> None:
        """Import PyTorch, and take a step with a net."""
        from hpo.models.nets.mlp_torch import warm_up

        warm_up()

    def _network_type(self) -> "type[TorchMLP]":
        from hpo.models.nets.mlp_torch import TorchMLP

        return TorchMLP


NUMPY_NET = NetType()
TORCH_NET = TorchNetType()


class _Target(NamedTuple):
    """Mean and standard deviation of the training targets."""

    mean: float
    scale: float


def _fit_target(y: Array) -> _Target:
    scale = float(y.std())
    return _Target(float(y.mean()), scale if scale > 0 else 1.0)


def _batch_size(batch_size: int | Literal["auto"], examples: int) -> int:
    """Return the examples of a step: at most all, and a power of 2 for "auto"."""
    if batch_size != "auto":
        return min(batch_size, examples)
    ideal = min(max(examples / _AUTO_STEPS, _AUTO_SMALLEST), _AUTO_LARGEST)
    return min(1 << round(log2(ideal)), examples)


def _learning_rate(hyperparameters: Hyperparameters, epoch: int) -> float:
    """Return the learning rate after some finished epochs."""
    rate = hyperparameters.learning_rate * hyperparameters.learning_rate_decay**epoch
    if hyperparameters.schedule == "cosine":
        rate *= (1 + cos(pi * epoch / hyperparameters.epochs)) / 2
    return rate


def _class_weights(y: Array, n_classes: int | None, class_weight: str) -> Array | None:
    """Return n / (classes * n of the class) for each class, None without weights."""
    if n_classes is None or class_weight == "none":
        return None
    counts = np.bincount(y, minlength=n_classes)
    return np.asarray(len(y) / (n_classes * np.maximum(counts, 1)))


def _count_variants(X: Array, y: Array, n_classes: int | None) -> int:
    """Check a training split; return the number of rows of each example."""
    if n_classes is not None and (y.min() < 0 or y.max() >= n_classes):
        raise ValueError(f"labels from {y.min()} to {y.max()}; 0 to {n_classes - 1} are allowed")
    if X[0, -1] != 1:
        raise ValueError(f"the last column of X starts with {X[0, -1]}; the constant 1 is needed there")
    if len(X) % len(y):
        raise ValueError(f"{len(X)} rows of X; a multiple of the {len(y)} labels is needed")
    return len(X) // len(y)


def _input_scale(X: Array, whitening: float, factor: float) -> Array | None:
    """Return the factor of each column, or None if all are 1. The constant column keeps its 1."""
    if whitening == 0 and factor == 1:
        return None
    inputs = X[:, :-1]
    multipliers = _whitening_multipliers(inputs, whitening) if whitening else np.ones(inputs.shape[1])
    return np.append(multipliers * factor, 1).astype(np.float32)


def _whitening_multipliers(X: Array, whitening: float) -> Array:
    """Return 1 / standard deviation ** ``whitening`` of each column, times a common factor.

    The factor keeps the sum of the variances, so that a learning rate keeps its effect. Constant columns get the
    smallest multiplier, which is finite.
    """
    variances = _variances(X)
    largest = variances.max(initial=0.0)
    if not largest:
        return np.ones(X.shape[1])
    multipliers = np.where(variances > _MIN_RELATIVE_VARIANCE * largest, variances, largest) ** (-whitening / 2)
    return np.asarray(multipliers * np.sqrt(variances.sum() / (variances * multipliers**2).sum()))


def _variances(X: Array) -> Array:
    """Return the variance of each column, without a copy of ``X``.

    The difference of the mean square and the squared mean is accurate, because the means are near zero.
    """
    total, squares = np.zeros((2, X.shape[1]))
    for start in range(0, len(X), _BLOCK_ROWS):
        rows = X[start : start + _BLOCK_ROWS].astype(np.float64)
        total += rows.sum(axis=0)
        squares += np.square(rows, out=rows).sum(axis=0)
    return squares / len(X) - (total / len(X)) ** 2
