"""The neural net: forward, loss, backward, one step of gradient descent.

L hidden layers of rectified linear units, then a softmax::

    h_0 = X,    h_l = max(0, h_{l-1} W_l + b_l)  for l = 1 to L,    scores = h_L W_{L+1} + b_{L+1}
    loss = mean over the batch of -log softmax(scores)[y]  +  regularization * sum over l of ||W_l||^2

Biases are not penalised. Everything is written into buffers made once: a step allocates nothing of the size
of a batch or of the weights. Overflow is the caller's to silence or to hear of, with ``np.errstate``.
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


@dataclass(frozen=True)
class _Batch:
    """What a batch's pass leaves behind; row i belongs to example i.

    ``scores`` turns in place into the gradient of the loss with respect to the scores.
    """

    hidden: list[Array]
    zeros: list[Array]
    active: list[NDArray[np.bool_]]
    hidden_gradients: list[Array]
    scores: Array
    one_hot: Array
    normalizer: Array

    @classmethod
    def empty(cls, rows: int, hidden_sizes: Sequence[int], classes: int, dtype: DTypeLike) -> Self:
        return cls(
            hidden=[np.empty((rows, size), dtype) for size in hidden_sizes],
            zeros=[np.zeros((rows, size), dtype) for size in hidden_sizes],
            active=[np.empty((rows, size), np.bool_) for size in hidden_sizes],
            hidden_gradients=[np.empty((rows, size), dtype) for size in hidden_sizes],
            scores=np.empty((rows, classes), dtype),
            one_hot=np.empty((rows, classes), dtype),
            normalizer=np.empty(rows, dtype),
        )

    def first(self, rows: int) -> Self:
        """The same memory, for a batch of fewer examples."""
        return type(self)(
            hidden=[array[:rows] for array in self.hidden],
            zeros=[array[:rows] for array in self.zeros],
            active=[array[:rows] for array in self.active],
            hidden_gradients=[array[:rows] for array in self.hidden_gradients],
            scores=self.scores[:rows],
            one_hot=self.one_hot[:rows],
            normalizer=self.normalizer[:rows],
        )


class Network:
    """A net with its optimizer's state and the buffers of one batch.

    Args:
        sizes: units of every layer: features, hidden sizes, classes.
        batch_size: the largest batch, in examples.
        regularization: the factor of the sum of the squared weights in the loss.
        momentum: what a step keeps of the velocity, from 0 to below 1.
        rng: draws the weights: normal, variance 2 / inputs before a rectifier (He et al. 2015,
            arXiv:1502.01852), 1 / inputs before the softmax; biases are zero.
        dtype: of all arithmetic, and of the ``X`` of every method.

    Attributes:
        parameters, gradients: vectors: all weights, layer by layer, then all biases.
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
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.regularization = regularization
        self.momentum = momentum
        weight_count = sum(inputs * units for inputs, units in pairwise(sizes))
        self.parameters, self.gradients = np.zeros((2, weight_count + sum(sizes[1:])), dtype)
        self.velocity = np.zeros(self.parameters.size if momentum else 0, dtype)
        self.weights, self.biases = _layers(self.parameters, sizes)
        self.weight_gradients, self.bias_gradients = _layers(self.gradients, sizes)
        self._penalised = self.parameters[:weight_count]
        self._penalised_gradients = self.gradients[:weight_count]
        self._penalty_gradients = np.empty_like(self._penalised)
        self._full_batch = self._batch = _Batch.empty(batch_size, sizes[1:-1], sizes[-1], dtype)
        self._identity = np.eye(sizes[-1], dtype=dtype)
        self._scores_by_class = np.empty((sizes[-1], batch_size), dtype)
        self._ones = np.ones(max(batch_size, sizes[-1]), dtype)
        self._initialize(rng)

    def step(self, X: Array, y: Labels, learning_rate: float) -> float:
        """Descend once, and return the loss from before the step; arguments as in `loss_and_gradients`.

        Heavy-ball momentum (Polyak 1964; as in Sutskever et al. 2013, section 2)::

            velocity = momentum * velocity - learning_rate * gradient,    parameters += velocity
        """
        loss = self.loss_and_gradients(X, y, scale=learning_rate)
        if self.momentum:
            np.multiply(self.velocity, self.momentum, out=self.velocity)
            np.subtract(self.velocity, self.gradients, out=self.velocity)
            np.add(self.parameters, self.velocity, out=self.parameters)
        else:
            np.subtract(self.parameters, self.gradients, out=self.parameters)
        return loss

    def loss_and_gradients(self, X: Array, y: Labels, scale: float = 1.0) -> float:
        """The loss of a batch, penalty included; ``gradients`` then holds its gradients times ``scale``.

        Args:
            X: shape (n, features), with n from 1 to ``batch_size``.
            y: class indices from 0 to classes - 1, shape (n,).
            scale: a step's learning rate, applied here to the scores' gradient: a pass over the weights less.

        Raises:
            ValueError: the shapes do not fit.
        """
        scores = self._forward(X)
        loss = self._cross_entropy(scores, y, scale)
        self._backward(X)
        return loss + self._penalty(scale)

    def scores(self, X: Array) -> Array:
        """What the softmax is taken of, shape (n, classes), for any number of examples (n, features)."""
        scores = np.empty((len(X), self.sizes[-1]), self.parameters.dtype)
        for start in range(0, len(X), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            scores[chunk] = self._forward(X[chunk])
        return scores

    def _initialize(self, rng: np.random.Generator) -> None:
        gains = [2.0] * (len(self.weights) - 1) + [1.0]
        for W, gain in zip(self.weights, gains, strict=True):
            deviation = sqrt(gain / len(W))
            np.multiply(rng.standard_normal(W.shape, W.dtype.type), deviation, out=W)

    def _forward(self, X: Array) -> Array:
        if len(X) != len(self._batch.scores):
            self._batch = self._full_batch.first(len(X))
        inputs = X
        for layer, outputs in enumerate(self._batch.hidden):
            np.matmul(inputs, self.weights[layer], out=outputs)
            np.add(outputs, self.biases[layer], out=outputs)
            # NumPy compares two arrays in half the time that it takes to compare an array and a number.
            np.maximum(outputs, self._batch.zeros[layer], out=outputs)
            inputs = outputs
        scores = self._batch.scores
        np.matmul(inputs, self.weights[-1], out=scores)
        return np.add(scores, self.biases[-1], out=scores)

    def _cross_entropy(self, scores: Array, y: Labels, scale: float) -> float:
        """The mean of log(sum of exp(scores)) - scores[y].

        ``scores`` becomes its gradient, (softmax - one hot) / n, times ``scale``.
        """
        n, classes = len(scores), self.sizes[-1]
        one_hot, normalizer = self._batch.one_hot, self._batch.normalizer
        np.take(self._identity, y, axis=0, out=one_hot, mode="clip")  # the default mode buffers its output
        self._subtract_row_maxima(scores)
        label_scores = float(np.vdot(scores, one_hot))
        np.exp(scores, out=scores)
        np.matmul(scores, self._ones[:classes], out=normalizer)
        np.divide(scores, normalizer[:, np.newaxis], out=scores)
        np.subtract(scores, one_hot, out=scores)
        np.multiply(scores, scale / n, out=scores)
        np.log(normalizer, out=normalizer)
        return (float(normalizer.sum()) - label_scores) / n

    def _subtract_row_maxima(self, scores: Array) -> None:
        """The softmax stays the same, and exp cannot overflow."""
        by_class = self._scores_by_class[:, : len(scores)]
        np.copyto(by_class, scores.T)  # a reduction over short rows takes several times as long
        maxima = np.maximum.reduce(by_class, axis=0, out=self._batch.normalizer)
        np.subtract(scores, maxima[:, np.newaxis], out=scores)

    def _backward(self, X: Array) -> None:
        batch = self._batch
        ones = self._ones[: len(X)]
        outer = batch.scores
        for layer in reversed(range(len(self.weights))):
            inputs = batch.hidden[layer - 1] if layer else X
            np.matmul(inputs.T, outer, out=self.weight_gradients[layer])
            np.matmul(ones, outer, out=self.bias_gradients[layer])
            if layer:
                inner = batch.hidden_gradients[layer - 1]
                np.matmul(outer, self.weights[layer].T, out=inner)
                np.greater(inputs, 0, out=batch.active[layer - 1])
                np.multiply(inner, batch.active[layer - 1], out=inner)
                outer = inner

    def _penalty(self, scale: float) -> float:
        """The penalty; its gradients, times ``scale``, are added."""
        np.multiply(self._penalised, scale * 2 * self.regularization, out=self._penalty_gradients)
        np.add(self._penalised_gradients, self._penalty_gradients, out=self._penalised_gradients)
        return self.regularization * float(np.dot(self._penalised, self._penalised))


def accuracy(scores: Array, y: Labels) -> float:
    """The fraction of examples whose highest score is their class's."""
    return float(np.mean(scores.argmax(axis=1) == y))


def _layers(vector: Array, sizes: Sequence[int]) -> tuple[list[Array], list[Array]]:
    """Views of a vector of all parameters: the weights and the biases of each layer."""
    shapes: list[tuple[int, ...]] = [*pairwise(sizes), *((units,) for units in sizes[1:])]
    ends = np.cumsum([prod(shape) for shape in shapes])
    views = [part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)]
    return views[: len(sizes) - 1], views[len(sizes) - 1 :]
