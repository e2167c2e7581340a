"""A trained net with all that comes before it, from raw features to labels; stored and loaded without pickle."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo.data.preprocessing import Preprocessor
from hpo.errors import DataError
from hpo.utils.files import writing

Layers = Sequence[tuple[NDArray[Any], NDArray[Any]]]

_CHUNK = 1024  # rows at a time


@dataclass(frozen=True, eq=False)
class Predictor:
    """Scaling, PCA and the net's weights.

    ``classes`` are the labels (c,), ``layers`` the weights (inputs, units) and biases (units,) of each layer.
    """

    classes: NDArray[Any]
    preprocessor: Preprocessor
    layers: Layers

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The labels (n,) of raw features (n, d)."""
        best = forward(self.layers, self.preprocessor.transform(np.asarray(X))).argmax(axis=1)
        return np.asarray(self.classes[best])

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """The share of raw features (n, d) whose label (n,) is predicted."""
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def save(self, path: Path) -> None:
        """Write a ``.npz`` file.

        Raises:
            OutputError: it cannot be written.
        """
        preprocessor = {f"map.{name}": array for name, array in self.preprocessor.arrays().items()}
        arrays = {"classes": self.classes} | preprocessor | _layer_arrays(self.layers)
        with writing(path) as file:
            np.savez(file, **arrays)


def load_predictor(path: str | os.PathLike[str]) -> Predictor:
    """The predictor that ``hpo.export --model`` wrote; nothing is unpickled.

    Raises:
        DataError: the file is missing, or is not such a file.
    """
    try:
        # NumPy would close neither a file that is no archive, nor refuse a single array.
        with Path(path).open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as file:
            arrays = dict(file)
        preprocessor = {name[4:]: array for name, array in arrays.items() if name.startswith("map.")}
        return Predictor(arrays["classes"], Preprocessor.from_arrays(preprocessor), _layers(arrays))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; write it with: python -m hpo.export --model {path}") from None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: not a model that hpo.export wrote: {error}") from None


def forward(layers: Layers, X: NDArray[np.float32]) -> NDArray[Any]:
    """The scores (n, classes) that the net gives to its inputs (n, k)."""
    scores = np.empty((len(X), len(layers[-1][1])), np.float32)
    for start in range(0, len(X), _CHUNK):
        h = X[start : start + _CHUNK]
        for W, b in layers[:-1]:
            h = np.maximum(h @ W + b, 0)
        W, b = layers[-1]
        scores[start : start + _CHUNK] = h @ W + b
    return scores


def accuracy(layers: Layers, X: NDArray[np.float32], y: NDArray[np.intp]) -> float:
    """The share of the inputs (n, k) whose class (n,) gets the highest score."""
    return float(np.mean(forward(layers, X).argmax(axis=1) == y))


def loss(layers: Layers, X: NDArray[np.float32], y: NDArray[np.intp], regularization: float) -> float:
    """Mean softmax cross-entropy + regularization * the sum of the squared weights, biases left out."""
    scores = forward(layers, X).astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    cross_entropy = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]
    penalty = regularization * sum(float(np.vdot(W, W)) for W, _ in layers)
    return float(cross_entropy.mean()) + penalty


def pack_layers(layers: Layers) -> bytes:
    """The layers as bytes."""
    packed = io.BytesIO()
    np.savez(packed, **_layer_arrays(layers))
    return packed.getvalue()


def unpack_layers(packed: bytes) -> Layers:
    """The layers that ``pack_layers`` packed."""
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        return _layers(dict(file))


def _layer_arrays(layers: Layers) -> dict[str, Any]:
    return {
        f"{letter}{i}": array for i, layer in enumerate(layers, 1) for letter, array in zip("Wb", layer, strict=True)
    }


def _layers(arrays: dict[str, NDArray[Any]]) -> Layers:
    depth = max(1, (sum(name[0] in "Wb" for name in arrays) + 1) // 2)  # one that is missing is missed below
    return [(arrays[f"W{i}"], arrays[f"b{i}"]) for i in range(1, depth + 1)]
