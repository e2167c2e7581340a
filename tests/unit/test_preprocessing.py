"""Values of the preprocessor, and their independence of the machine's state."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from hpo.data.prepared.preprocessing import Preprocessor

SCALES = ("feature", "global", "none")


def matrix(seed, n, d):
    """Return correlated features with different means and spreads."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * rng.uniform(0.5, 4, d) + rng.normal(0, 50, d)


shapes = {"seed": st.integers(0, 2**32 - 1), "n": st.integers(12, 60), "d": st.integers(2, 10)}
quick = settings(max_examples=30, deadline=None)


@given(**shapes)
@quick
def test_scaling_equals_standard_scaler(seed, n, d):
    X = matrix(seed, n, d)
    expected = StandardScaler().fit_transform(X)
    np.testing.assert_allclose(Preprocessor.fit(X, "feature", 0).transform(X), expected, rtol=1e-5, atol=1e-5)


@given(**shapes, pca=st.sampled_from([0.5, 0.9, 0.99]))
@quick
def test_pca_equals_scikit_learn_pipeline(seed, n, d, pca):
    X, unseen = matrix(seed, n, d), matrix(seed + 1, 7, d)
    fitted = Preprocessor.fit(X, "feature", pca)
    pipeline = make_pipeline(StandardScaler(), PCA(fitted.n_outputs, svd_solver="full")).fit(X)
    every = PCA(svd_solver="full").fit(pipeline[0].transform(X))
    variances = np.append(every.explained_variance_, 0)
    shares = variances.cumsum() / variances.sum()
    assert shares[fitted.n_outputs - 1] >= pca - 1e-5
    # No component is more than the share of the variance requires.
    assert fitted.n_outputs == 1 or shares[fitted.n_outputs - 2] <= pca + 1e-5
    # Components of nearly equal variance can rotate. The products of rows stay the same, unless the last component that
    # is kept and the first that is not have nearly equal variances.
    assume(variances[fitted.n_outputs - 1] - variances[fitted.n_outputs] > 1e-3)
    ours, theirs = fitted.transform(unseen), pipeline.transform(unseen)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=1e-2, atol=1e-2)
    assert fitted.transform(X).mean(axis=0) == pytest.approx(0, abs=1e-4)


def test_components_are_limited_by_rows():
    assert Preprocessor.fit(matrix(0, 5, 40), "feature", 0.999).n_outputs <= 5


def test_global_scaling_divides_by_common_deviation():
    X = matrix(1, 100, 5)
    centred = X - X.mean(axis=0)
    transformed = Preprocessor.fit(X, "global", 0).transform(X)
    np.testing.assert_allclose(transformed, centred / centred.std(), rtol=1e-5, atol=1e-5)
    assert transformed.std() == pytest.approx(1, abs=1e-5)


def test_scaling_none_only_centres():
    X = matrix(2, 100, 5)
    np.testing.assert_allclose(Preprocessor.fit(X, "none", 0).transform(X), X - X.mean(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("pca", [0, 0.9])
def test_training_inputs_are_centred_float32(scale, pca):
    # The rows do not fit into one block.
    X = matrix(3, 3000, 6)
    transformed = Preprocessor.fit(X, scale, pca).transform(X)
    assert transformed.dtype == np.float32
    np.testing.assert_allclose(transformed.mean(axis=0), 0, atol=1e-3)


def test_constant_feature_is_only_centred():
    X = np.column_stack([matrix(4, 50, 2), np.full(50, 0.1)])
    transformed = Preprocessor.fit(X, "feature", 0).transform(X)
    assert np.abs(transformed[:, 2]).max() < 1e-6
    assert np.isfinite(Preprocessor.fit(X, "feature", 0.9).transform(X)).all()


def test_large_offset_keeps_precision():
    """Scale the seconds of one minute since 1970. A float32 mean would be wrong by up to a minute."""
    seconds = 1.7e9 + np.arange(60.0)[:, None]
    transformed = Preprocessor.fit(seconds, "feature", 0).transform(seconds)
    np.testing.assert_allclose(transformed, StandardScaler().fit_transform(seconds), atol=1e-6)


def random_preprocessor(d, k):
    """Return a map whose float32 sums depend on the order of the terms in their last bits."""
    rng = np.random.default_rng(0)
    return Preprocessor(rng.uniform(0, 255, d), rng.uniform(1, 60, d), rng.normal(size=(k, d)).astype(np.float32))


@pytest.mark.parametrize("n", [1, 2, 17, 1500])
@pytest.mark.parametrize("k", [1, 5, 17])
def test_bits_are_independent_of_type_and_layout(n, k):
    pixels = np.random.default_rng(1).integers(0, 256, (n, 200), np.uint8)
    wide = np.zeros((n, 201), np.uint8)
    wide[:, 1:] = pixels
    bits = random_preprocessor(200, k).transform(pixels).tobytes()
    for equal in (pixels.astype(np.float64), np.asfortranarray(pixels.astype(np.float32)), wide[:, 1:]):
        assert random_preprocessor(200, k).transform(equal).tobytes() == bits


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n", [1, 2, 17, 1500])
def test_restored_preprocessor_gives_same_bits(tmp_path, order, n):
    fitted, X = random_preprocessor(200, 17), np.random.default_rng(2).uniform(0, 255, (n, 200))
    arrays = {name: np.asarray(values, order=order) for name, values in fitted.arrays().items()}
    np.savez(tmp_path / "preprocessor.npz", **arrays)
    with np.load(tmp_path / "preprocessor.npz", allow_pickle=False) as file:
        restored = Preprocessor.from_arrays(file)
    assert restored.transform(X).tobytes() == fitted.transform(X).tobytes()


def test_arrays_without_pca_have_no_components():
    fitted = Preprocessor.fit(matrix(6, 30, 4), "feature", 0)
    assert sorted(fitted.arrays()) == ["mean", "scale"]
    restored = Preprocessor.from_arrays(fitted.arrays() | {"weights": np.ones(3)})
    assert restored.components is None
    assert restored.n_outputs == 4


def test_bits_are_independent_of_blas_threads():
    # BLAS divides the work of a matrix of this size among its threads.
    X = matrix(7, 2000, 600)
    fitted, inputs = [], []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            fitted.append(Preprocessor.fit(X, "feature", 0.9))
            inputs.append(fitted[0].transform(X).tobytes())
    assert fitted[0].components.tobytes() == fitted[1].components.tobytes()
    assert inputs[0] == inputs[1]


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (4,), (3, 4, 1)])
def test_rows_of_other_width_are_refused(shape):
    fitted = Preprocessor.fit(matrix(8, 30, 4), "feature", 0)
    with pytest.raises(ValueError, match=r"\(n, 4\) is required"):
        fitted.transform(np.zeros(shape))
