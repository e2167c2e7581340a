"""One trial's training: a generator, one result per epoch.

Its whole state (weights, velocity, random numbers, epoch) is saved to bytes and restored from them, and the
rest of the training is then the same to the last bit.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.config.study import Hyperparameters
from hpo.models.mlp import MLP, Array, accuracy

if TYPE_CHECKING:  # scikit-learn comes with the data, PyTorch with its net
    from hpo.data.cache import Split
    from hpo.models.mlp_torch import TorchMLP


_FORMAT = 2  # of the saved state: a new number makes those of former versions start over
_LENGTH_BYTES = 4
_LEAST_VARIANCE = 1e-12  # of an input, relative to the largest: below it there is nothing but rounding
_ROWS = 256  # rows worked on at a time


class DivergenceError(ArithmeticError):
    """The loss or a weight is no finite number any more."""


@dataclass(frozen=True)
class Epoch:
    """A finished epoch.

    ``number`` counts from 1. ``train_loss`` is the mean cross-entropy of the epoch's examples, each with the weights
    that met it, and the penalty of the weights at its end.
    """

    number: int
    train_loss: float


class Trainer:
    """The training of one trial, a pure function of its arguments on one kind of processor.

    Args:
        train: the training split: ``X`` float32 of shape (n, features + 1), its last column 1, which may be a
            read-only memory map and is never copied as a whole; ``y`` class indices of shape (n,). ``X`` may have
            a multiple of n rows: in each epoch, each example is one of its variants at random, rows i, i + n, ...
        classes: how many classes there are.
        hyperparameters: of the trial. A batch is at most the whole split.
        seed: the study's seed and the trial's number.

    Attributes:
        epoch: how many epochs are finished.

    Raises:
        ValueError: a label is not among the classes, ``X`` does not end in the constant column, or its rows are no
            multiple of the labels.
    """

    def __init__(self, train: "Split", classes: int, hyperparameters: Hyperparameters, seed: tuple[int, int]) -> None:
        self._X, self._y = np.asarray(train.X), np.asarray(train.y)
        if self._y.min() < 0 or self._y.max() >= classes:
            raise ValueError(f"labels from {self._y.min()} to {self._y.max()}; 0 to {classes - 1} are allowed")
        if self._X[0, -1] != 1:
            raise ValueError(f"the last column of X starts with {self._X[0, -1]}; the constant 1 is needed there")
        rows, columns = self._X.shape
        examples = len(self._y)
        if rows % examples:
            raise ValueError(f"{rows} rows of X; a multiple of the {examples} labels is needed")
        self._variants = rows // examples
        batch_size = min(hyperparameters.batch_size, examples)
        self._hyperparameters = hyperparameters
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self._network = _network_of(hyperparameters.backend)(
            [columns - 1, *hyperparameters.hidden_sizes, classes],
            batch_size=batch_size,
            regularization=hyperparameters.regularization,
            momentum=hyperparameters.momentum,
            rng=self._rng,
            dropout=hyperparameters.dropout,
        )
        self._input_scale = _input_scale(self._X, hyperparameters.whitening, hyperparameters.input_scale)
        self._batch_X = np.empty((batch_size, columns), np.float32)
        self._made_from = json.dumps(
            {
                "format": _FORMAT,
                "sizes": self._network.sizes,
                "examples": examples,
                "variants": self._variants,
                "seed": seed,
                "hyperparameters": hyperparameters.model_dump(),
            }
        )
        self.epoch = 0

    def epochs(self, after_step: Callable[[], None] = lambda: None) -> Iterator[Epoch]:
        """Train on from where the state is, epoch by epoch, to the last of the trial.

        Args:
            after_step: called after each step; what it raises leaves the training in the middle of an epoch, not to
                be saved.

        Raises:
            DivergenceError: as soon as an epoch's loss, or a weight after it, is not finite.
        """
        while self.epoch < self._hyperparameters.epochs:
            loss = self._train_epoch(after_step)
            if not (math.isfinite(loss) and self._network.is_finite()):
                raise DivergenceError(f"epoch {self.epoch + 1}: the loss or a weight is not finite (loss {loss})")
            self.epoch += 1
            yield Epoch(self.epoch, loss)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def accuracy(self, split: "Split") -> float:
        """The fraction of a split's examples that the net, as it is now, classifies correctly."""
        X = np.asarray(split.X)[: len(split.y)]
        return accuracy(np.concatenate([self._network.scores(inputs) for inputs in self._inputs(X)]), split.y)

    def weights(self) -> list[tuple[Array, Array]]:
        """Copies of the weights (inputs, units) and biases (units,) of each layer, for inputs as they are in ``X``."""
        layers = self._network.layers()
        if self._input_scale is not None:
            first = layers[0][0]
            np.multiply(first, self._input_scale[:-1, np.newaxis], out=first)
        return layers

    def save(self) -> bytes:
        """The state, for `restore`: the length of what follows, a description in JSON, parameters, velocity.

        An ``.npz`` takes nearly twice as long to make.
        """
        arrays = self._network.state().tobytes()
        about = {
            "made_from": self._made_from,
            "epoch": self.epoch,
            "rng": self._rng.bit_generator.state,
            "checksum": zlib.crc32(arrays),
        }
        described = json.dumps(about).encode()
        return len(described).to_bytes(_LENGTH_BYTES) + described + arrays

    def restore(self, state: bytes) -> None:
        """Take up a state that `save` gave to a training made from the same arguments.

        Raises:
            ValueError: the state is damaged, or of a training made from others. Nothing has changed then.
        """
        about, arrays = _read(state)
        if about["made_from"] != self._made_from:
            raise ValueError(f"the state of another training: made from {about['made_from']}, not {self._made_from}")
        self.epoch = about["epoch"]
        self._rng.bit_generator.state = about["rng"]
        self._network.load(arrays)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def _train_epoch(self, after_step: Callable[[], None]) -> float:
        """The mean loss of an epoch, which sees every example once."""
        examples, batch_size = len(self._y), self._network.batch_size
        learning_rate = self._hyperparameters.learning_rate * self._hyperparameters.learning_rate_decay**self.epoch
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
            after_step()
        return total / examples + self._network.penalty()

    def _inputs(self, X: Array) -> Iterator[Array]:
        """Rows of ``X`` as the net takes them, chunk by chunk where they have to be scaled."""
        if self._input_scale is None:
            yield X
            return
        for start in range(0, len(X), len(self._batch_X)):
            rows = X[start : start + len(self._batch_X)]
            yield np.multiply(rows, self._input_scale, out=self._batch_X[: len(rows)])


def _network_of(backend: str) -> "type[MLP] | type[TorchMLP]":
    if backend == "torch":
        # A second, and much memory, for those who ask for it.
        from hpo.models.mlp_torch import TorchMLP

        return TorchMLP
    return MLP


def _input_scale(X: Array, whitening: float, factor: float) -> Array | None:
    """What to multiply each column by, None for nothing; the constant column keeps its 1."""
    if whitening == 0 and factor == 1:
        return None
    inputs = X[:, :-1]
    multipliers = _whitening_multipliers(inputs, whitening) if whitening else np.ones(inputs.shape[1])
    return np.append(multipliers * factor, 1).astype(np.float32)


def _whitening_multipliers(X: Array, whitening: float) -> Array:
    """1 / each column's standard deviation ** ``whitening``, times what keeps the sum of the variances.

    So a learning rate means what it meant. Columns that do not vary get the smallest multiplier, which is finite.
    """
    variances = _variances(X)
    largest = variances.max(initial=0.0)
    if not largest:
        return np.ones(X.shape[1])
    multipliers = np.where(variances > _LEAST_VARIANCE * largest, variances, largest) ** (-whitening / 2)
    return np.asarray(multipliers * np.sqrt(variances.sum() / (variances * multipliers**2).sum()))


def _variances(X: Array) -> Array:
    """Of each column, whose mean is near zero, without a copy of ``X``."""
    total, squares = np.zeros((2, X.shape[1]))
    for start in range(0, len(X), _ROWS):
        rows = X[start : start + _ROWS].astype(np.float64)
        total += rows.sum(axis=0)
        squares += np.square(rows, out=rows).sum(axis=0)
    return squares / len(X) - (total / len(X)) ** 2


def _read(state: bytes) -> tuple[dict[str, Any], Array]:
    start = _LENGTH_BYTES + int.from_bytes(state[:_LENGTH_BYTES])
    try:
        about = json.loads(state[_LENGTH_BYTES:start])
        whole = about["checksum"] == zlib.crc32(state[start:])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not the state of a training: {error}") from error
    if not whole:
        raise ValueError("not the state of a training: its checksum is wrong")
    return about, np.frombuffer(state, np.float32, offset=start)
