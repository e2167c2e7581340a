"""Preprocessing of features: centring, scaling and PCA, fitted to the training split."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hpo.data.tables.encoder import TableEncoder

Scale = Literal["feature", "global", "none"]

_BLOCK_ROWS = 1024
_BLOCK_CELLS = 2**20


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """Fitted map from d raw features to the k inputs of a model.

    The preparation of data and an exported predictor use the same map.

    Attributes:
        mean: Mean of each feature, float64 (d,). A float32 cannot hold a date in seconds.
        scale: Divisor of each centred feature, float64 (d,).
        components: Principal components, float32 (k, d); None without PCA, so that k = d.
        packed_encoder: The bytes of the encoder that first maps the columns of a table to d numbers, uint8; None
            without an encoder.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    components: NDArray[np.float32] | None = None
    packed_encoder: NDArray[np.uint8] | None = None

    @cached_property
    def encoder(self) -> "TableEncoder | None":
        """Encoder of the columns of a table, None without an encoder.

        Raises:
            ValueError: if its bytes are damaged.
        """
        if self.packed_encoder is None:
            return None
        # Workers load prepared data without scikit-learn.
        from hpo.data.tables.encoder import TableEncoder

        return TableEncoder.from_bytes(self.packed_encoder.tobytes())

    def with_encoder(self, encoder: "TableEncoder") -> Self:
        """Return this map behind an encoder."""
        joined = replace(self, packed_encoder=np.frombuffer(encoder.to_bytes(), np.uint8))
        # The cached property need not unpack the bytes.
        vars(joined)["encoder"] = encoder
        return joined

    @classmethod
    def fit(cls, X_train: NDArray[Any], scale: Scale, pca: float) -> Self:
        """Fit the map to the training rows.

        Args:
            X_train: The training rows (n, d). At least one feature varies.
            scale: "feature" divides each feature by its standard deviation, or by 1 if it is constant. "global" divides
                all features by the standard deviation of all centred values. "none" does not scale.
            pca: The share of the variance that the components keep; 0 for no PCA.
        """
        # The import of scikit-learn takes a second and 90 MB. Workers load prepared arrays without it.
        from sklearn.decomposition import PCA

        scaling = cls._fit_scaling(X_train, scale)
        if not pca:
            return scaling
        scaled = scaling.transform(X_train)
        n, d = scaled.shape
        # With a share of the variance, "auto" takes the full SVD, which is five times slower on CIFAR-10.
        fitted = PCA(n_components=pca, svd_solver="covariance_eigh" if n > d else "full", copy=False)
        with _one_blas_thread():
            fitted.fit(scaled)
        # The mean of the PCA is zero except for rounding errors, because its input is centred.
        return replace(scaling, components=fitted.components_.astype(np.float32))

    @classmethod
    def _fit_scaling(cls, X_train: NDArray[Any], scale: Scale) -> Self:
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        # A single pass over all rows would hold two float64 copies of the data.
        for rows in _blocks(len(X_train)):
            scaler.partial_fit(X_train[rows].astype(np.float64))
        ones = np.ones_like(scaler.mean_)
        match scale:
            case "feature":
                return cls(scaler.mean_, scaler.scale_)
            case "global":
                return cls(scaler.mean_, ones * np.sqrt(scaler.var_.mean()))
            case "none":
                return cls(scaler.mean_, ones)

    def transform(self, X: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return ((X - mean) / scale) @ components.T of raw rows (n, d), as float32 (n, k).

        On one kind of processor the same numbers give the same bits, whatever the type and the memory layout of ``X``
        and the number of cores.

        Args:
            X: The rows. With an encoder they are the columns of its table as numbers.
            out: The array (n, k) to write to; None for a new one.

        Raises:
            ValueError: if X does not have the shape (n, d).
        """
        if self.encoder is not None:
            return replace(self, packed_encoder=None).transform(self.encoder.rows(X), out)
        if X.ndim != 2 or X.shape[1] != len(self.mean):
            raise ValueError(f"X has shape {X.shape}; (n, {len(self.mean)}) is required")
        transformed = np.empty((len(X), self.n_outputs), np.float32) if out is None else out
        # The bits of a row depend on the shape of the matrix product, so all blocks have the same size.
        with _one_blas_thread():
            for rows in _blocks(len(X)):
                self._transform_block(X[rows], out=transformed[rows])
        return transformed

    @property
    def n_inputs(self) -> int:
        """Number of raw features."""
        return int(np.size(self.mean)) if self.encoder is None else len(self.encoder.schema.columns)

    @property
    def n_outputs(self) -> int:
        """Number k of inputs of the model."""
        return len(self.mean if self.components is None else self.components)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the map as named arrays for an ``.npz`` file without pickles."""
        arrays: dict[str, NDArray[Any]] = {"mean": self.mean, "scale": self.scale}
        optional = {"components": self.components, "encoder": self.packed_encoder}
        return arrays | {name: array for name, array in optional.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the map of these ``arrays()``. Other names in the mapping are ignored."""
        return cls(arrays["mean"], arrays["scale"], arrays.get("components"), arrays.get("encoder"))

    def _transform_block(self, X: NDArray[Any], out: NDArray[np.float32]) -> None:
        # Row-major order ("C") for both factors, because BLAS adds up in another order for another layout.
        scaled = np.subtract(X, self.mean, order="C", dtype=np.float64)
        scaled /= self.scale
        if self.components is None:
            out[:] = scaled
        else:
            out[:] = np.matmul(scaled.astype(np.float32), np.ascontiguousarray(self.components).T)


def block_rows(n_columns: int) -> int:
    """Return the number of rows of a block of about 8 MB, a multiple of the rows that are transformed together."""
    return max(1, _BLOCK_CELLS // (_BLOCK_ROWS * n_columns)) * _BLOCK_ROWS


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, n, _BLOCK_ROWS))


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread.

    BLAS divides a sum among its threads, so the number of threads would change the last bits.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
