"""Trained net with its preprocessing, which predicts labels from raw features. Its file contains no pickle."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo.data.preprocessing import Preprocessor
from hpo.errors import DataError
from hpo.models.base import Weights
from hpo.utils.files import atomic_write

_BLOCK_ROWS = 1024
# Names of the preprocessor's arrays in a file. A file of an earlier version has the same names.
_PREPROCESSOR_PREFIX = "map."


@dataclass(frozen=True, eq=False)
class Predictor:
    """Preprocessing and weights of a trained net.

    Attributes:
        classes: Labels (c,), in the order of the net's outputs.
        preprocessor: Scaling and PCA of raw features (n, d) to the net's inputs (n, k).
        weights: Weights (inputs, units) and biases (units,) of each layer.
    """

    classes: NDArray[Any]
    preprocessor: Preprocessor
    weights: Weights

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted labels (n,) of raw features (n, d).

        Raises:
            ValueError: if the number of features is not d.
        """
        best = forward(self.weights, self.preprocessor.transform(np.asarray(X))).argmax(axis=1)
        return np.asarray(self.classes[best])

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the share of raw features (n, d) whose label (n,) is predicted.

        Raises:
            ValueError: if the number of features is not d.
        """
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def save(self, path: Path) -> None:
        """Write a ``.npz`` file atomically.

        Raises:
            OutputError: if the file cannot be written.
        """
        preprocessor = {f"{_PREPROCESSOR_PREFIX}{name}": array for name, array in self.preprocessor.arrays().items()}
        arrays = {"classes": self.classes} | preprocessor | _name_arrays(self.weights)
        with atomic_write(path) as file:
            np.savez(file, **arrays)


def load_predictor(path: str | os.PathLike[str]) -> Predictor:
    """Load a predictor that ``hpo.export --model`` wrote. Pickles in the file are refused.

    Raises:
        DataError: if the file is missing or is not such a file.
    """
    try:
        # np.load leaves a file open that is not an archive, and accepts a file of a single array.
        with Path(path).open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as file:
            arrays = dict(file)
        preprocessor = {
            name.removeprefix(_PREPROCESSOR_PREFIX): array
            for name, array in arrays.items()
            if name.startswith(_PREPROCESSOR_PREFIX)
        }
        return Predictor(arrays["classes"], Preprocessor.from_arrays(preprocessor), _weights_from_arrays(arrays))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; write it with: python -m hpo.export --model {path}") from None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: not a model that hpo.export wrote: {error}") from None


def forward(weights: Weights, X: NDArray[np.float32]) -> NDArray[Any]:
    """Return the outputs (n, classes) of the net of `hpo.models.mlp` for inputs (n, k) without the constant."""
    scores = np.empty((len(X), len(weights[-1][1])), np.float32)
    for start in range(0, len(X), _BLOCK_ROWS):
        h = X[start : start + _BLOCK_ROWS]
        for W, b in weights[:-1]:
            h = np.maximum(h @ W + b, 0)
        W, b = weights[-1]
        scores[start : start + _BLOCK_ROWS] = h @ W + b
    return scores


def accuracy(weights: Weights, X: NDArray[np.float32], y: NDArray[np.intp]) -> float:
    """Return the share of inputs (n, k) whose class (n,) has the largest output."""
    return float(np.mean(forward(weights, X).argmax(axis=1) == y))


def loss(weights: Weights, X: NDArray[np.float32], y: NDArray[np.intp], regularization: float) -> float:
    """Return the loss of `hpo.models.mlp` for inputs (n, k) and class indices (n,).

    It is the mean softmax cross-entropy + regularization * the sum of the squared weights without the biases.
    """
    scores = forward(weights, X).astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    cross_entropy = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]
    penalty = regularization * sum(float(np.vdot(W, W)) for W, _ in weights)
    return float(cross_entropy.mean()) + penalty


def pack_weights(weights: Weights) -> bytes:
    """Return the weights as the bytes of an ``.npz`` file. The same weights give the same bytes."""
    packed = io.BytesIO()
    np.savez(packed, **_name_arrays(weights))
    return packed.getvalue()


def unpack_weights(packed: bytes) -> Weights:
    """Return the weights that `pack_weights` packed."""
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        return _weights_from_arrays(dict(file))


def _name_arrays(weights: Weights) -> dict[str, Any]:
    return {
        f"{letter}{i}": array for i, layer in enumerate(weights, 1) for letter, array in zip("Wb", layer, strict=True)
    }


def _weights_from_arrays(arrays: dict[str, NDArray[Any]]) -> Weights:
    # If an array is missing, its layer still counts, so that its name raises a KeyError.
    depth = max(1, (sum(name[0] in "Wb" for name in arrays) + 1) // 2)
    return [(arrays[f"W{i}"], arrays[f"b{i}"]) for i in range(1, depth + 1)]
