"""The neural net: forward, loss, backward, one step of gradient descent.

L hidden layers of rectified linear units, then a softmax. Inputs end in a constant 1, which stands for the bias::

    h_0 = X,    h_l = [max(0, h_{l-1} [W_l; b_l]), 1]  for l = 1 to L,    scores = h_L [W_{L+1}; b_{L+1}]
    loss = mean over the batch of -log softmax(scores)[y]  +  regularization * sum over l of ||W_l||^2

Biases are not penalised. In training, hidden units can be dropped and labels smoothed. Everything is written into
buffers made once: a step allocates nothing of the size of a batch or of the weights. Overflow is the caller's to
silence or to hear of, with ``np.errstate``.
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

_RANDOM_WORDS = 2048  # of 8 bytes, drawn at a time


@dataclass(frozen=True)
class _Batch:
    """What a batch's pass leaves behind; row i belongs to example i.

    ``hidden`` ends in the constant column. The backward pass turns ``hidden`` and ``class_scores`` (classes, n) in
    place into the gradients of the loss with respect to them.
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
        """The same memory, for a batch of fewer examples."""
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
    """Draws the hidden units that a step does without (Srivastava et al. 2014, the inverted form).

    Args:
        probability: of a unit to be dropped, from 0 to below 1; rounded to a 256th below 1.
        most: units of a layer for a whole batch, at most.
        rng: draws them.

    Attributes:
        drops: whether any unit is ever dropped.
        kept_scale: what the others are multiplied by, 1 / the probability to be kept.
    """

    def __init__(self, probability: float, most: int, rng: np.random.Generator) -> None:
        self._dropped_bytes = min(round(probability * 256), 255)  # of the 256 values of a random byte
        self.drops = self._dropped_bytes > 0
        self.kept_scale = 256 / (256 - self._dropped_bytes)
        self._random = np.empty(-(-most // 8) if self.drops else 0, np.uint64)
        self._rng = rng

    def draw(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Fill ``mask``: true for the units that are kept, those whose random byte is not below the threshold."""
        words = self._random[: -(-mask.size // 8)]
        # One array of all the words would be of the size of a batch.
        for start in range(0, len(words), _RANDOM_WORDS):
            some = words[start : start + _RANDOM_WORDS]
            some[:] = self._rng.bit_generator.random_raw(len(some))
        random_bytes = words.view(np.uint8)[: mask.size].reshape(mask.shape)
        return np.greater_equal(random_bytes, self._dropped_bytes, out=mask)


class MLP:
    """A net with its optimizer's state and the buffers of one batch.

    Args:
        sizes: units of every layer: features, hidden sizes, classes; constants are not counted.
        batch_size: the largest batch, in examples.
        regularization: the factor of the sum of the squared weights in the loss.
        momentum: what a step keeps of the velocity, from 0 to below 1.
        rng: draws the weights: normal, variance 2 / inputs before a rectifier (He et al. 2015,
            arXiv:1502.01852), 1 / inputs before the softmax; biases are zero. Then the units to drop.
        dropout: the probability that a step does without a hidden unit of an example, as in `Dropout`.
        dtype: of all arithmetic, and of the ``X`` of every method.

    Attributes:
        parameters, gradients: vectors: the weights of a layer, then its biases, layer by layer. The gradients are
            those of the cross-entropy alone, from `cross_entropy` on until the next step.
        velocity: the same, or empty without momentum.
        weights, weight_gradients: views of them, shape (inputs, units) for each layer.
        biases, bias_gradients: views of them, shape (units,) for each layer.
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
        """Descend once, and return the cross-entropy from before the step; arguments as in `cross_entropy`.

        Heavy-ball momentum (Polyak 1964; as in Sutskever et al. 2013, section 2), with the penalty in the gradient::

            gradient = that of the cross-entropy + 2 * regularization * W
            velocity = momentum * velocity - learning_rate * gradient,    parameters += velocity
        """
        cross_entropy = self.cross_entropy(X, y, learning_rate, label_smoothing)
        decay = 2 * self.regularization * learning_rate
        if self.momentum:
            np.multiply(self.velocity, self.momentum, out=self.velocity)
            np.subtract(self.velocity, self.gradients, out=self.velocity)
            for W, decayed, velocity in zip(self.weights, self.weight_gradients, self._velocities, strict=True):
                np.multiply(W, decay, out=decayed)  # where the gradients are not needed any more
                np.subtract(velocity, decayed, out=velocity)
            np.add(self.parameters, self.velocity, out=self.parameters)
        else:
            for W in self.weights:
                np.multiply(W, 1 - decay, out=W)
            np.subtract(self.parameters, self.gradients, out=self.parameters)
        return cross_entropy

    def cross_entropy(self, X: Array, y: Labels, scale: float = 1.0, label_smoothing: float = 0.0) -> float:
        """The loss of a batch without the penalty; ``gradients`` then holds its gradients times ``scale``.

        Other units are dropped in each call.

        Args:
            X: shape (n, features + 1), its last column 1, with n from 1 to ``batch_size``.
            y: class indices from 0 to classes - 1, shape (n,).
            scale: a step's learning rate, applied here to the scores' gradient: a pass over the weights less.
            label_smoothing: from 0 to below 1, the share of each example that all classes have in equal parts
                (Szegedy et al. 2016, arXiv:1512.00567, section 7); the rest is of the class ``y``.

        Raises:
            ValueError: the shapes do not fit.
        """
        self._forward(X, dropping=self._dropout.drops)
        cross_entropy = self._softmax(y, scale, label_smoothing)
        self._backward(X)
        return cross_entropy

    def penalty(self) -> float:
        """What the weights add to the loss."""
        return self.regularization * sum(float(np.vdot(W, W)) for W in self.weights)

    def scores(self, X: Array) -> Array:
        """What the softmax is taken of, shape (n, classes), for any number of examples (n, features + 1)."""
        scores = np.empty((len(X), self.sizes[-1]), self.parameters.dtype)
        for start in range(0, len(X), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            scores[chunk] = self._forward(X[chunk])
        return scores

    def layers(self) -> list[tuple[Array, Array]]:
        """Copies of the weights (inputs, units) and the biases (units,) of each layer."""
        return [(W.copy(), b.copy()) for W, b in zip(self.weights, self.biases, strict=True)]

    def is_finite(self) -> bool:
        """Whether every weight and bias is a finite number."""
        return bool(np.isfinite(self.parameters).all())

    def state(self) -> Array:
        """All that steps change, for `load`: a copy of the parameters and behind them the velocity."""
        return np.concatenate([self.parameters, self.velocity])

    def load(self, state: Array) -> None:
        """Take up what `state` gave."""
        self.parameters[...], self.velocity[...] = np.split(state, [len(self.parameters)])

    def _forward(self, X: Array, dropping: bool = False) -> Array:
        if len(X) != len(self._batch.scores):
            self._batch = self._full_batch.first(len(X))
        batch, inputs = self._batch, X
        for layer, hidden, zeros, mask in zip(self._layers, batch.hidden, batch.zeros, batch.active, strict=False):
            np.matmul(inputs, layer, out=hidden[:, :-1])
            # NumPy compares two arrays in less than half the time that it takes to compare an array and a number.
            np.maximum(hidden, zeros, out=hidden)
            if dropping:
                self._keep(hidden, self._dropout.draw(mask))
            inputs = hidden
        return np.matmul(inputs, self._layers[-1], out=batch.scores)

    def _softmax(self, y: Labels, scale: float, label_smoothing: float) -> float:
        """The mean of log(sum of exp(scores)) - the targets' mean of the scores.

        ``class_scores`` becomes its gradient, (softmax - targets) / n, times ``scale``.
        """
        batch = self._batch
        scores, normalizer, n = batch.class_scores, batch.normalizer, len(batch.scores)
        np.copyto(scores, batch.scores.T)  # reductions and broadcasts over short rows take several times as long
        # The softmax stays the same, and exp cannot overflow.
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
                active = np.greater(inputs, 0, out=self._batch.active[layer - 1])  # zero are the dropped units, too
                inner = inputs[:, :-1]
                np.matmul(outer, self.weights[layer].T, out=inner)
                self._keep(inputs, active)
                outer = inner

    def _keep(self, hidden: Array, mask: NDArray[np.bool_]) -> None:
        """Zero for what is not in the mask, and of the rest what dropout makes of it; the constant stays 1.

        The whole array is passed in one go: without its last column it takes several times as long.
        """
        np.multiply(hidden, mask, out=hidden)
        if self._dropout.drops:
            np.multiply(hidden, self._dropout.kept_scale, out=hidden)
            hidden[:, -1] = 1


def accuracy(scores: Array, y: Labels) -> float:
    """The fraction of examples whose highest score is their class's."""
    return float(np.mean(scores.argmax(axis=1) == y))


def count_parameters(sizes: Sequence[int]) -> int:
    """How many weights and biases a net of these sizes has."""
    return sum((inputs + 1) * units for inputs, units in pairwise(sizes))


def initialize(parameters: Array, sizes: Sequence[int], rng: np.random.Generator) -> None:
    """Draw the weights into a vector of all parameters, as `MLP` says; the biases are left as they are."""
    weights, _ = _split(_layers(parameters, sizes))
    gains = [2.0] * (len(weights) - 1) + [1.0]
    for W, gain in zip(weights, gains, strict=True):
        np.multiply(rng.standard_normal(W.shape, W.dtype.type), sqrt(gain / len(W)), out=W)


def _layers(vector: Array, sizes: Sequence[int]) -> list[Array]:
    """Views of a vector of all parameters: for each layer the weights and, in the last row, the biases."""
    shapes = [(inputs + 1, units) for inputs, units in pairwise(sizes)]
    ends = np.cumsum([prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)]


def _split(layers: list[Array]) -> tuple[list[Array], list[Array]]:
    """Views of the weights and of the biases of each layer."""
    return [layer[:-1] for layer in layers], [layer[-1] for layer in layers]
