"""Features as the network sees them: centred, scaled, reduced by PCA, all fitted to training rows alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Scale = Literal["feature", "global", "none"]

_ROWS = 1024  # rows worked on at a time


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """The one way from d raw features to the network's inputs, in preparation as in an exported predictor.

    ``mean`` and ``scale`` are float64 (d,): a date in seconds does not fit into a float32. ``components`` is
    float32 (k, d), or None without PCA, where k = d.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    components: NDArray[np.float32] | None = None

    def transform(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """((X - mean) / scale) @ components.T of raw rows (n, d), as float32 (n, k).

        The same numbers give the same bits in every call on one kind of processor, whatever the type and the
        memory layout of ``X`` and the number of cores.

        Raises:
            ValueError: X is not of shape (n, d).
        """
        if X.ndim != 2 or X.shape[1] != len(self.mean):
            raise ValueError(f"X has shape {X.shape}; (n, {len(self.mean)}) is needed")
        transformed = np.empty((len(X), self.n_outputs), np.float32)
        # Each row's bits depend on the shape of the product it is part of, so the blocks are of a fixed size.
        with _one_blas_thread():
            for rows in _blocks(len(X)):
                self._transform_block(X[rows], out=transformed[rows])
        return transformed

    @property
    def n_outputs(self) -> int:
        """k, the number of inputs of the network."""
        return len(self.mean if self.components is None else self.components)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The map as named arrays, for an ``.npz`` without pickles."""
        arrays: dict[str, NDArray[Any]] = {"mean": self.mean, "scale": self.scale}
        return arrays if self.components is None else arrays | {"components": self.components}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The map that ``arrays()`` came from; other names in the mapping are left alone."""
        return cls(arrays["mean"], arrays["scale"], arrays.get("components"))

    def _transform_block(self, X: NDArray[Any], out: NDArray[np.float32]) -> None:
        # Rows after rows ("C"), like the components: BLAS adds up in another order for another layout.
        scaled = np.subtract(X, self.mean, order="C", dtype=np.float64)
        scaled /= self.scale
        if self.components is None:
            out[:] = scaled
        else:
            np.matmul(scaled.astype(np.float32), np.ascontiguousarray(self.components).T, out=out)


def fit_preprocessor(X_train: NDArray[Any], scale: Scale, pca: float) -> Preprocessor:
    """Fit to the training rows (n, d), and to nothing else.

    ``scale`` divides each feature by its own standard deviation ("feature"; a constant one by 1), all by
    that of all centred values ("global"), or by nothing ("none"). ``pca`` is the share of the variance to
    keep, 0 for no PCA. Some feature must vary.
    """
    # scikit-learn takes a second and 90 MB to import; a worker, which only loads arrays, goes without.
    from sklearn.decomposition import PCA

    scaling = _fit_scaling(X_train, scale)
    if not pca:
        return scaling
    scaled = scaling.transform(X_train)
    n, d = scaled.shape
    # Not "auto": with a share of the variance it takes the full SVD, five times slower on CIFAR-10.
    fitted = PCA(n_components=pca, svd_solver="covariance_eigh" if n > d else "full", copy=False)
    with _one_blas_thread():
        fitted.fit(scaled)
    # The mean of PCA's own is zero but for rounding: what it saw is centred.
    return replace(scaling, components=fitted.components_.astype(np.float32))


def _fit_scaling(X_train: NDArray[Any], scale: Scale) -> Preprocessor:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for rows in _blocks(len(X_train)):  # a whole pass would hold two float64 copies of the data
        scaler.partial_fit(X_train[rows].astype(np.float64))
    ones = np.ones_like(scaler.mean_)
    match scale:
        case "feature":
            return Preprocessor(scaler.mean_, scaler.scale_)
        case "global":
            return Preprocessor(scaler.mean_, ones * np.sqrt(scaler.var_.mean()))
        case "none":
            return Preprocessor(scaler.mean_, ones)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, n, _ROWS))


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """One thread, however many cores: sums are split among threads, so their number changes the last bits."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
