"""Fitted models: the part of a trained model that predicts, as bytes without pickle."""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hpo.utils.npz import read_arrays

Array = NDArray[Any]
Weights = Sequence[tuple[Array, Array]]

_BLOCK_ROWS = 1024
_FOLD = "fold{}"


class FittedModel(Protocol):
    """Trained model that predicts."""

    @property
    def n_inputs(self) -> int:
        """Number k of inputs."""
        ...

    @property
    def n_outputs(self) -> int:
        """Number of outputs: the number of classes, or 1 for the prediction of a number."""
        ...

    def outputs(self, X: NDArray[np.float32]) -> Array:
        """Return the outputs (n, n_outputs) for inputs (n, k) without the constant.

        The softmax of the outputs is the probability of each class.
        """
        ...

    def penalty(self, regularization: float) -> float:
        """Return the penalty of the weights in the training loss."""
        ...

    def arrays(self) -> dict[str, Array]:
        """Return the model as named arrays for an ``.npz`` file without pickles."""
        ...


@dataclass(frozen=True, eq=False)
class FittedNet:
    """Weights of a trained net.

    Attributes:
        weights: Weights (inputs, units) and biases (units,) of each layer.
    """

    weights: Weights

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """Return the net of these ``arrays()``. Other names in the mapping are ignored.

        Raises:
            KeyError: if an array is missing.
            ValueError: if the shapes of the layers do not fit, or if a number is not finite.
        """
        # If an array is missing, its layer still counts, so that its name raises a KeyError.
        depth = max(1, (sum(name[:1] in ("W", "b") for name in arrays) + 1) // 2)
        net = cls([(arrays[f"W{i}"], arrays[f"b{i}"]) for i in range(1, depth + 1)])
        for name, array, shape in net._expected_shapes():
            check_array(name, array, shape)
        return net

    @property
    def n_inputs(self) -> int:
        """Number of inputs of the first layer."""
        return len(self.weights[0][0])

    @property
    def n_outputs(self) -> int:
        """Number of units of the last layer."""
        return self.weights[-1][1].size

    def outputs(self, X: NDArray[np.float32]) -> Array:
        """Return the outputs (n, n_outputs) for inputs (n, k) without the constant, as `hpo.models.nets.mlp`."""
        scores = np.empty((len(X), self.n_outputs), self.weights[-1][1].dtype)
        for start in range(0, len(X), _BLOCK_ROWS):
            h = X[start : start + _BLOCK_ROWS]
            for W, b in self.weights[:-1]:
                h = np.maximum(h @ W + b, 0)
            W, b = self.weights[-1]
            scores[start : start + _BLOCK_ROWS] = h @ W + b
        return scores

    def penalty(self, regularization: float) -> float:
        """Return the regularization times the sum of the squared weights without the biases."""
        return regularization * sum(float(np.vdot(W, W)) for W, _ in self.weights)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays W1, b1, W2, b2, ..."""
        return {
            f"{letter}{i}": array
            for i, layer in enumerate(self.weights, 1)
            for letter, array in zip("Wb", layer, strict=True)
        }

    def _expected_shapes(self) -> Iterator[tuple[str, Array, tuple[int, ...]]]:
        units = len(self.weights[0][0]) if self.weights[0][0].ndim else 0
        for i, (W, b) in enumerate(self.weights, 1):
            yield f"b{i}", b, (b.size,)
            yield f"W{i}", W, (units, b.size)
            units = b.size


def check_array(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Check the shape and the numbers of an array of a file.

    Raises:
        ValueError: if the shape is another, or if a number is not finite.
    """
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; {shape} is required")
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"{name} holds something else than finite numbers")


def fitted_from_arrays(arrays: Mapping[str, Array], allowed: Collection[str] = ()) -> FittedModel:
    """Return the model of these ``arrays()``. Other names in the mapping are ignored.

    Args:
        arrays: The arrays.
        allowed: Packages of estimators that may be imported, besides the known ones.

    Raises:
        KeyError: if an array is missing.
        ValueError: if the arrays are not those of a model.
    """
    if "estimator" in arrays:
        # Only estimators need scikit-learn.
        from hpo.models.estimators.fitted import FittedEstimator

        return FittedEstimator.from_arrays(arrays, allowed)
    return FittedNet.from_arrays(arrays)


def pack_model(model: FittedModel) -> bytes:
    """Return a model as the bytes of an ``.npz`` file. The same model gives the same bytes."""
    return _pack(model.arrays())


def unpack_model(packed: bytes, allowed: Collection[str] = ()) -> FittedModel:
    """Return the model that `pack_model` packed.

    Raises:
        ValueError: if the bytes are damaged, or need a package that is not allowed.
    """
    try:
        return fitted_from_arrays(_unpack(packed), allowed)
    except KeyError as error:
        raise ValueError(f"no array {error}") from None


def pack_folds(artifacts: Sequence[bytes]) -> bytes:
    """Return the packed models of all folds as bytes. The bytes of a single fold are unchanged."""
    if len(artifacts) == 1:
        return artifacts[0]
    return _pack({_FOLD.format(i): np.frombuffer(artifact, np.uint8) for i, artifact in enumerate(artifacts)})


def unpack_folds(packed: bytes, allowed: Collection[str] = ()) -> list[FittedModel]:
    """Return the model of each fold that `pack_folds` packed.

    Raises:
        ValueError: if the bytes are damaged, or need a package that is not allowed.
    """
    arrays = _unpack(packed)
    if _FOLD.format(0) not in arrays:
        return [unpack_model(packed, allowed)]
    return [unpack_model(arrays[_FOLD.format(i)].tobytes(), allowed) for i in range(len(arrays))]


def _pack(arrays: Mapping[str, Array]) -> bytes:
    packed = io.BytesIO()
    # The stubs of NumPy take the names of arrays for its own options.
    np.savez(packed, **dict[str, Any](arrays))
    return packed.getvalue()


def _unpack(packed: bytes) -> dict[str, Array]:
    return read_arrays(io.BytesIO(packed), max_bytes=len(packed))
