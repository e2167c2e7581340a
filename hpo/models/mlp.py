"""Neural net in NumPy: forward pass, loss, backward pass and a step of gradient descent.

The net has L hidden layers of rectified linear units and a softmax. The inputs end in a constant 1, the factor of the
bias::

    h_0 = X,    h_l = [max(0, h_{l-1} [W_l; b_l]), 1]  for l = 1 to L,    scores = h_L [W_{L+1}; b_{L+1}]
    loss = mean over the batch of -log softmax(scores)[y]  +  regularization * sum over l of ||W_l||^2

The penalty leaves out the biases. Training can drop hidden units and smooth labels. All results go into buffers that
are allocated once, so that a step allocates no array of the size of a batch or of the weights. The caller decides with
``np.errstate`` whether an overflow warns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.intp]

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


class MLP:
    """Neural net with the state of its optimizer and the buffers of one batch.

    Args:
        sizes: Units of each layer: features, hidden sizes, classes. The constants are not counted.
        batch_size: Largest number of examples of a batch.
        regularization: Factor of the sum of the squared weights in the loss.
        momentum: Share of the velocity that a step keeps, from 0 to below 1.
        rng: Source of the initial weights (see `initialize`), and then of the units to drop.
        dropout: Probability that a step drops a hidden unit of an example, as in `Dropout`.
        dtype: Type of all arithmetic, and of the ``X`` of each method.

    Attributes:
        parameters: Vector of all parameters, layer by layer: the weights of a layer, then its biases.
        gradients: Gradients of the parameters, from a call of `cross_entropy` until the next step. They belong to the
            cross-entropy without the penalty.
        velocity: Velocity of the parameters; empty without momentum.
        weights: Views of the weights of each layer, (inputs, units).
        weight_gradients: Views of their gradients.
        biases: Views of the biases of each layer, (units,).
        bias_gradients: Views of their gradients.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        regularization: float,
        momentum: float,
        rng: np.random.Generator,
        dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.regularization = regularization
        self.momentum = momentum
        count = count_parameters(sizes)
        self.parameters, self.gradients = np.zeros((2, count), dtype)
        self.velocity = np.zeros(count if momentum else 0, dtype)
        self._layers, self._layer_gradients = _layers(self.parameters, sizes), _layers(self.gradients, sizes)
        self.weights, self.biases = _split(self._layers)
        self.weight_gradients, self.bias_gradients = _split(self._layer_gradients)
        self._velocities = _split(_layers(self.velocity, sizes))[0] if momentum else []
        self._full_batch = self._batch = _Batch.empty(batch_size, sizes[1:-1], sizes[-1], dtype)
        self._dropout = Dropout(dropout, batch_size * (max(sizes[1:-1], default=0) + 1), rng)
        initialize(self.parameters, sizes, rng)

    def step(self, X: Array, y: Labels, learning_rate: float, label_smoothing: float = 0.0) -> float:
        """Take a step of gradient descent; return the cross-entropy before it.

        The step uses heavy-ball momentum (Polyak 1964; Sutskever et al. 2013, section 2), and the penalty is part of
        the gradient::

            gradient = gradient of the cross-entropy + 2 * regularization * W
            velocity = momentum * velocity - learning_rate * gradient,    parameters += velocity

        Args:
            X: Inputs (n, features + 1), as in `cross_entropy`.
            y: Class indices (n,).
            learning_rate: Learning rate of the step.
            label_smoothing: Share of the smoothed labels, as in `cross_entropy`.

        Raises:
            ValueError: if the shapes do not match the net.
        """
        cross_entropy = self.cross_entropy(X, y, learning_rate, label_smoothing)
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
        return cross_entropy

    def cross_entropy(self, X: Array, y: Labels, scale: float = 1.0, label_smoothing: float = 0.0) -> float:
        """Return the loss of a batch without the penalty, and compute its gradients.

        ``gradients`` then holds the gradients times ``scale``. Each call draws the units to drop anew.

        Args:
            X: Inputs (n, features + 1) with n from 1 to ``batch_size``. The last column is 1.
            y: Class indices (n,) from 0 to classes - 1.
            scale: Factor of the gradients. A step passes its learning rate here, which saves a pass over the weights.
            label_smoothing: Share of each label, from 0 to below 1, that is spread evenly over all classes (Szegedy et
                al. 2016, arXiv:1512.00567, section 7).

        Raises:
            ValueError: if the shapes do not match the net.
        """
        self._forward(X, dropping=self._dropout.drops)
        cross_entropy = self._softmax(y, scale, label_smoothing)
        self._backward(X)
        return cross_entropy

    def penalty(self) -> float:
        """Return the share of the weights in the loss: regularization * sum of ||W||^2."""
        return self.regularization * sum(float(np.vdot(W, W)) for W in self.weights)

    def scores(self, X: Array) -> Array:
        """Return the inputs of the softmax (n, classes) for any number of examples (n, features + 1)."""
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
        """Return a copy of the parameters, followed by the velocity, in one vector."""
        return np.concatenate([self.parameters, self.velocity])

    def load(self, state: Array) -> None:
        """Restore a vector that `state` returned."""
        self.parameters[...], self.velocity[...] = np.split(state, [len(self.parameters)])

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
