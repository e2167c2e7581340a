"""Neural net in NumPy: forward pass, loss, backward pass and a step of gradient descent.

The net has L hidden layers of rectified linear units, and a softmax or one number. The inputs end in a constant 1, the
factor of the bias::

    h_0 = X,    h_l = [max(0, h_{l-1} [W_l; b_l]), 1]  for l = 1 to L,    scores = h_L [W_{L+1}; b_{L+1}]
    loss = mean over the batch of the error of an example  +  regularization * sum over l of ||W_l||^2

The error is the cross-entropy ``-log softmax(scores)[y]``, half of the squared residual ``(scores - y)^2 / 2``, or that
of Huber (1964), which is linear where the residual is beyond 1: ``|scores - y| - 1 / 2``. The penalty leaves out the
biases. Training can drop hidden units and smooth labels. All results go into buffers that are allocated once, so that a
step allocates no array of the size of a batch or of the weights. The caller decides with ``np.errstate`` whether an
overflow warns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.intp]
# Class indices, or numbers.
Targets = NDArray[Any]
Loss = Literal["cross_entropy", "squared", "huber"]
Optimizer = Literal["sgd", "adam"]

# Constants of Adam, as Kingma and Ba (2015, arXiv:1412.6980) recommend.
ADAM_DECAY = 0.999
ADAM_EPSILON = 1e-8

# Adam sets parameters and moments below this size to zero, every so many steps. The penalty shrinks the weights of
# unused units to subnormal numbers, and a step on these takes ten times as long. A second moment counts by its root.
ADAM_NEGLIGIBLE = 1e-18
ADAM_CLEANING_STEPS = 64

# Words of 8 bytes that are drawn at a time.
_RANDOM_WORDS = 2048


@dataclass(frozen=True)
class _Batch:
    """Buffers of the forward and the backward pass of a batch. Row i belongs to example i.

    The backward pass replaces ``hidden`` and ``class_scores`` by the gradients of the loss with respect to them.

    Attributes:
        hidden: Outputs of each hidden layer, (n, units + 1). The last column is the constant 1.
        zeros: Zeros in the shape of ``hidden``.
        active: Masks in the shape of ``hidden``.
        scores: Inputs of the softmax, (n, classes).
        class_scores: Transposed scores, (classes, n), in contiguous memory.
        normalizer: Maximum, then sum, of each example's exponentials, (n,).
        numbers: 0 to n - 1.
    """

    hidden: list[Array]
    zeros: list[Array]
    active: list[NDArray[np.bool_]]
    scores: Array
    class_scores: Array
    normalizer: Array
    numbers: Labels

    @classmethod
    def empty(cls, rows: int, hidden_sizes: Sequence[int], classes: int, dtype: DTypeLike) -> Self:
        shapes = [(rows, size + 1) for size in hidden_sizes]
        return cls(
            hidden=[np.ones(shape, dtype) for shape in shapes],
            zeros=[np.zeros(shape, dtype) for shape in shapes],
            active=[np.empty(shape, np.bool_) for shape in shapes],
            scores=np.empty((rows, classes), dtype),
            class_scores=np.empty((classes, rows), dtype),
            normalizer=np.empty(rows, dtype),
            numbers=np.arange(rows),
        )

    def first(self, rows: int) -> Self:
        """Return views of the same memory for a batch of fewer examples."""
        classes = len(self.class_scores)
        return type(self)(
            hidden=[array[:rows] for array in self.hidden],
            zeros=[array[:rows] for array in self.zeros],
            active=[array[:rows] for array in self.active],
            scores=self.scores[:rows],
            class_scores=self.class_scores.reshape(-1)[: classes * rows].reshape(classes, rows),
            normalizer=self.normalizer[:rows],
            numbers=self.numbers[:rows],
        )


class Dropout:
    """Random masks of the hidden units that a step drops: inverted dropout (Srivastava et al. 2014).

    Args:
        probability: Probability that a unit is dropped, from 0 to below 1, rounded to a multiple of 1/256 below 1.
        max_units: Largest size of a mask: the units of the widest layer times the batch size.
        rng: Source of the random bytes.

    Attributes:
        drops: Whether any unit can be dropped.
        kept_scale: Factor of the kept units, 1 / the probability that a unit is kept.
    """

    def __init__(self, probability: float, max_units: int, rng: np.random.Generator) -> None:
        # A unit is dropped if its random byte is below this threshold.
        self._threshold = min(round(probability * 256), 255)
        self.drops = self._threshold > 0
        self.kept_scale = 256 / (256 - self._threshold)
        self._random = np.empty(-(-max_units // 8) if self.drops else 0, np.uint64)
        self._rng = rng

    def draw(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Fill and return the mask, which is true for the units that are kept."""
        words = self._random[: -(-mask.size // 8)]
        # random_raw allocates its result. All words at once would need an array of the size of a batch.
        for start in range(0, len(words), _RANDOM_WORDS):
            block = words[start : start + _RANDOM_WORDS]
            block[:] = self._rng.bit_generator.random_raw(len(block))
        random_bytes = words.view(np.uint8)[: mask.size].reshape(mask.shape)
        return np.greater_equal(random_bytes, self._threshold, out=mask)


@dataclass(frozen=True, eq=False)
class NetSettings:
    """Loss and optimizer of a net.

    Attributes:
        regularization: Factor of the sum of the squared weights in the loss.
        momentum: Share of the velocity that a step keeps, from 0 to below 1. For Adam, the decay of the first moment.
        dropout: Probability that a step drops a hidden unit of an example, as in `Dropout`.
        loss: Error of an example.
        optimizer: Rule of a step.
        class_weights: Factor of the error of an example of each class, (classes,); None for 1.
    """

    regularization: float = 0.0
    momentum: float = 0.0
    dropout: float = 0.0
    loss: Loss = "cross_entropy"
    optimizer: Optimizer = "sgd"
    class_weights: Array | None = None


class MLP:
    """Neural net with the state of its optimizer and the buffers of one batch.

    Args:
        sizes: Units of each layer: features, hidden sizes, outputs. The constants are not counted.
        settings: Loss and optimizer.
        batch_size: Largest number of examples of a batch.
        rng: Source of the initial weights (see `initialize`), and then of the units to drop.
        dtype: Type of all arithmetic, and of the ``X`` of each method.

    Attributes:
        parameters: Vector of all parameters, layer by layer: the weights of a layer, then its biases.
        gradients: Gradients of the parameters, from a call of `compute_gradients` until the next step. They belong to
            the loss without the penalty.
        velocity: Velocity of the parameters, for Adam the first moment of their gradients; empty without either.
        second_moment: Second moment of the gradients; empty without Adam.
        weights: Views of the weights of each layer, (inputs, units).
        weight_gradients: Views of their gradients.
        biases: Views of the biases of each layer, (units,).
        bias_gradients: Views of their gradients.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        settings: NetSettings,
        *,
        batch_size: int,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.regularization = settings.regularization
        self.momentum = settings.momentum
        self._is_adam = settings.optimizer == "adam"
        count = count_parameters(sizes)
        self.parameters, self.gradients = np.zeros((2, count), dtype)
        self.velocity = np.zeros(count if self.momentum or self._is_adam else 0, dtype)
        self.second_moment = np.zeros(count if self._is_adam else 0, dtype)
        # The number of steps, as a part of the state.
        self._steps = np.zeros(1 if self._is_adam else 0, dtype)
        self._scratch = np.empty(count if self._is_adam else 0, dtype)
        self._loss = settings.loss
        self._class_weights = None if settings.class_weights is None else settings.class_weights.astype(dtype)
        self._layers, self._layer_gradients = _layers(self.parameters, sizes), _layers(self.gradients, sizes)
        self.weights, self.biases = _split(self._layers)
        self.weight_gradients, self.bias_gradients = _split(self._layer_gradients)
        self._weight_scratch = _split(_layers(self._scratch, sizes))[0] if self._is_adam else []
        self._velocities = _split(_layers(self.velocity, sizes))[0] if len(self.velocity) else []
        self._full_batch = self._batch = _Batch.empty(batch_size, sizes[1:-1], sizes[-1], dtype)
        self._dropout = Dropout(settings.dropout, batch_size * (max(sizes[1:-1], default=0) + 1), rng)
        initialize(self.parameters, sizes, rng)

    def step(self, X: Array, y: Targets, learning_rate: float, label_smoothing: float = 0.0) -> float:
        """Take a step of gradient descent; return the loss before it, without the penalty.

        The step of Adam is that of Kingma and Ba (2015, arXiv:1412.6980, algorithm 1), for the gradient of the loss
        with the penalty. Otherwise the step uses heavy-ball momentum (Polyak 1964; Sutskever et al. 2013, section 2),
        and the penalty is part of the gradient::

            gradient = gradient of the mean error + 2 * regularization * W
            velocity = momentum * velocity - learning_rate * gradient,    parameters += velocity

        Args:
            X: Inputs (n, features + 1), as in `compute_gradients`.
            y: Class indices, or numbers (n,).
            learning_rate: Learning rate of the step.
            label_smoothing: Share of the smoothed labels, as in `compute_gradients`.

        Raises:
            ValueError: if the shapes do not match the net.
        """
        if self._is_adam:
            error = self.compute_gradients(X, y, label_smoothing=label_smoothing)
            self._step_adam(learning_rate)
            return error
        error = self.compute_gradients(X, y, learning_rate, label_smoothing)
        decay = 2 * self.regularization * learning_rate
        if self.momentum:
            np.multiply(self.velocity, self.momentum, out=self.velocity)
            np.subtract(self.velocity, self.gradients, out=self.velocity)
            for W, decayed, velocity in zip(self.weights, self.weight_gradients, self._velocities, strict=True):
                # The velocity has taken up the gradients, so that their buffer is free.
                np.multiply(W, decay, out=decayed)
                np.subtract(velocity, decayed, out=velocity)
            np.add(self.parameters, self.velocity, out=self.parameters)
        else:
            for W in self.weights:
                np.multiply(W, 1 - decay, out=W)
            np.subtract(self.parameters, self.gradients, out=self.parameters)
        return error

    def _step_adam(self, learning_rate: float) -> None:
        """Update the parameters from their gradients. The buffer of the gradients is free afterwards."""
        gradients, first, second, scratch = self.gradients, self.velocity, self.second_moment, self._scratch
        for W, gradient, penalty in zip(self.weights, self.weight_gradients, self._weight_scratch, strict=True):
            np.multiply(W, 2 * self.regularization, out=penalty)
            np.add(gradient, penalty, out=gradient)
        self._steps += 1
        steps = int(self._steps[0])
        _decay_to(first, gradients, self.momentum, scratch)
        np.multiply(gradients, gradients, out=gradients)
        _decay_to(second, gradients, ADAM_DECAY, scratch)
        # The root of the second moment, without its bias.
        np.sqrt(second, out=scratch)
        np.multiply(scratch, 1 / sqrt(1 - ADAM_DECAY**steps), out=scratch)
        np.add(scratch, ADAM_EPSILON, out=scratch)
        np.divide(first, scratch, out=scratch)
        np.multiply(scratch, learning_rate / (1 - self.momentum**steps), out=scratch)
        np.subtract(self.parameters, scratch, out=self.parameters)
        if steps % ADAM_CLEANING_STEPS == 0:
            self._zero_negligible()

    def _zero_negligible(self) -> None:
        limits = (ADAM_NEGLIGIBLE, ADAM_NEGLIGIBLE, ADAM_NEGLIGIBLE**2)
        for array, limit in zip((self.parameters, self.velocity, self.second_moment), limits, strict=True):
            np.abs(array, out=self._scratch)
            np.greater_equal(self._scratch, limit, out=self._scratch)
            np.multiply(array, self._scratch, out=array)

    def compute_gradients(self, X: Array, y: Targets, scale: float = 1.0, label_smoothing: float = 0.0) -> float:
        """Return the loss of a batch without the penalty, and compute its gradients.

        ``gradients`` then holds the gradients times ``scale``. Each call draws the units to drop anew.

        Args:
            X: Inputs (n, features + 1) with n from 1 to ``batch_size``. The last column is 1.
            y: Class indices (n,) from 0 to classes - 1, or numbers.
            scale: Factor of the gradients. A step passes its learning rate here, which saves a pass over the weights.
            label_smoothing: Share of each label, from 0 to below 1, that is spread evenly over all classes (Szegedy et
                al. 2016, arXiv:1512.00567, section 7). Only for the cross-entropy.

        Raises:
            ValueError: if the shapes do not match the net.
        """
        self._forward(X, dropping=self._dropout.drops)
        match self._loss:
            case "cross_entropy":
                error = self._softmax(y, scale, label_smoothing)
            case "squared":
                error = self._squared(y, scale)
            case "huber":
                error = self._huber(y, scale)
        self._backward(X)
        return error

    def penalty(self) -> float:
        """Return the share of the weights in the loss: regularization * sum of ||W||^2."""
        return self.regularization * sum(float(np.vdot(W, W)) for W in self.weights)

    def scores(self, X: Array) -> Array:
        """Return the outputs (n, outputs) for any number of examples (n, features + 1)."""
        scores = np.empty((len(X), self.sizes[-1]), self.parameters.dtype)
        for start in range(0, len(X), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            scores[chunk] = self._forward(X[chunk])
        return scores

    def layers(self) -> list[tuple[Array, Array]]:
        """Return copies of the weights (inputs, units) and biases (units,) of each layer."""
        return [(W.copy(), b.copy()) for W, b in zip(self.weights, self.biases, strict=True)]

    def is_finite(self) -> bool:
        """Return whether all weights and biases are finite."""
        return bool(np.isfinite(self.parameters).all())

    def state(self) -> Array:
        """Return a copy of the parameters, followed by the state of the optimizer, in one vector."""
        return np.concatenate([self.parameters, *self._optimizer_state])

    def load(self, state: Array) -> None:
        """Restore a vector that `state` returned."""
        arrays = [self.parameters, *self._optimizer_state]
        parts = np.split(state, np.cumsum([len(array) for array in arrays[:-1]]))
        for array, part in zip(arrays, parts, strict=True):
            array[...] = part

    @property
    def _optimizer_state(self) -> list[Array]:
        return [self.velocity, self.second_moment, self._steps]

    def _forward(self, X: Array, dropping: bool = False) -> Array:
        if len(X) != len(self._batch.scores):
            self._batch = self._full_batch.first(len(X))
        batch, inputs = self._batch, X
        for layer, hidden, zeros, mask in zip(self._layers, batch.hidden, batch.zeros, batch.active, strict=False):
            np.matmul(inputs, layer, out=hidden[:, :-1])
            # NumPy needs less than half the time for two arrays that it needs for an array and a number.
            np.maximum(hidden, zeros, out=hidden)
            if dropping:
                self._apply_mask(hidden, self._dropout.draw(mask))
            inputs = hidden
        return np.matmul(inputs, self._layers[-1], out=batch.scores)

    def _softmax(self, y: Labels, scale: float, label_smoothing: float) -> float:
        """Return the mean of log(sum of exp(scores)) - sum of targets * scores.

        ``class_scores`` becomes the gradient (softmax - targets) / n * ``scale``.
        """
        batch = self._batch
        scores, normalizer, n = batch.class_scores, batch.normalizer, len(batch.scores)
        # Reductions and broadcasts over short rows take several times as long.
        np.copyto(scores, batch.scores.T)
        # Subtracting the maximum does not change the softmax, and exp cannot overflow.
        np.subtract(scores, np.maximum.reduce(scores, axis=0, out=normalizer), out=scores)
        if self._class_weights is not None:
            return self._weighted_softmax(y, scale, label_smoothing, self._class_weights[y])
        flat, label_places = scores.reshape(-1), y * n + batch.numbers
        label_scores = (1 - label_smoothing) * float(flat[label_places].sum())
        if label_smoothing:
            label_scores += label_smoothing / len(scores) * float(flat.sum())
        np.exp(scores, out=scores)
        np.add.reduce(scores, axis=0, out=normalizer)
        cross_entropy = (float(np.log(normalizer).sum()) - label_scores) / n
        np.divide(scale / n, normalizer, out=normalizer)
        np.multiply(scores, normalizer, out=scores)
        flat[label_places] -= (1 - label_smoothing) * scale / n
        if label_smoothing:
            np.subtract(scores, label_smoothing / len(scores) * scale / n, out=scores)
        return cross_entropy

    def _weighted_softmax(self, y: Labels, scale: float, label_smoothing: float, weights: Array) -> float:
        """Return the mean of the cross-entropies times the weights (n,); otherwise as `_softmax`."""
        batch = self._batch
        scores, normalizer, n = batch.class_scores, batch.normalizer, len(batch.scores)
        targets = np.full_like(scores, label_smoothing / len(scores))
        targets[y, batch.numbers] += 1 - label_smoothing
        label_scores = np.add.reduce(targets * scores, axis=0)
        np.exp(scores, out=scores)
        np.add.reduce(scores, axis=0, out=normalizer)
        errors = np.log(normalizer) - label_scores
        np.divide(scores, normalizer, out=scores)
        np.subtract(scores, targets, out=scores)
        np.multiply(scores, weights * (scale / n), out=scores)
        return float(np.vdot(errors, weights)) / n

    def _squared(self, y: Array, scale: float) -> float:
        """Return the mean of half of the squared residuals; ``class_scores`` becomes its gradient * ``scale``."""
        residuals, n = self._residuals(y)
        error = float(np.vdot(residuals, residuals)) / (2 * n)
        np.multiply(residuals, scale / n, out=residuals)
        return error

    def _huber(self, y: Array, scale: float) -> float:
        """Return the mean of Huber's errors; ``class_scores`` becomes its gradient * ``scale``."""
        residuals, n = self._residuals(y)
        clipped = np.clip(residuals, -1, 1)
        error = float(np.vdot(clipped, residuals) - np.vdot(clipped, clipped) / 2) / n
        np.multiply(clipped, scale / n, out=residuals)
        return error

    def _residuals(self, y: Array) -> tuple[Array, int]:
        """Return scores - y (n,) in the memory of ``class_scores``, and n."""
        residuals = self._batch.class_scores[0]
        np.subtract(self._batch.scores[:, 0], y, out=residuals)
        return residuals, len(residuals)

    def _backward(self, X: Array) -> None:
        outer = self._batch.class_scores.T
        for layer in reversed(range(len(self.weights))):
            inputs = self._batch.hidden[layer - 1] if layer else X
            np.matmul(inputs.T, outer, out=self._layer_gradients[layer])
            if layer:
                # Dropped units are zero, so that they are not active either.
                active = np.greater(inputs, 0, out=self._batch.active[layer - 1])
                inner = inputs[:, :-1]
                np.matmul(outer, self.weights[layer].T, out=inner)
                self._apply_mask(inputs, active)
                outer = inner

    def _apply_mask(self, hidden: Array, mask: NDArray[np.bool_]) -> None:
        """Set masked units to zero and scale the kept units; the constant stays 1.

        The operations include the constant column, because without it they take several times as long.
        """
        np.multiply(hidden, mask, out=hidden)
        if self._dropout.drops:
            np.multiply(hidden, self._dropout.kept_scale, out=hidden)
            hidden[:, -1] = 1


def _decay_to(moment: Array, sample: Array, decay: float, scratch: Array) -> None:
    """Set a moment to ``decay * moment + (1 - decay) * sample``."""
    np.multiply(moment, decay, out=moment)
    np.multiply(sample, 1 - decay, out=scratch)
    np.add(moment, scratch, out=moment)


def count_parameters(sizes: Sequence[int]) -> int:
    """Return the number of weights and biases of a net with these layer sizes."""
    return sum((inputs + 1) * units for inputs, units in pairwise(sizes))


def initialize(parameters: Array, sizes: Sequence[int], rng: np.random.Generator) -> None:
    """Draw the weights into a vector of all parameters; the biases do not change.

    The weights are normal. Their variance is 2 / inputs before a rectifier (He et al. 2015, arXiv:1502.01852), and
    1 / inputs before the softmax.
    """
    weights, _ = _split(_layers(parameters, sizes))
    gains = [2.0] * (len(weights) - 1) + [1.0]
    for W, gain in zip(weights, gains, strict=True):
        np.multiply(rng.standard_normal(W.shape, W.dtype.type), sqrt(gain / len(W)), out=W)


def _layers(vector: Array, sizes: Sequence[int]) -> list[Array]:
    """Return views of each layer's weights, with the biases as the last row."""
    shapes = [(inputs + 1, units) for inputs, units in pairwise(sizes)]
    ends = np.cumsum([prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)]


def _split(layers: list[Array]) -> tuple[list[Array], list[Array]]:
    """Return views of the weights and of the biases of each layer."""
    return [layer[:-1] for layer in layers], [layer[-1] for layer in layers]
