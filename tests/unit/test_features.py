"""The one transform: what it computes, and that it gives the same bits wherever it is computed."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from hpo.data.preprocessing import Preprocessor, fit_preprocessor

SCALES = ("feature", "global", "none")


def matrix(seed, n, d):
    """Correlated features of different means and spreads."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * rng.uniform(0.5, 4, d) + rng.normal(0, 50, d)


shapes = {"seed": st.integers(0, 2**32 - 1), "n": st.integers(12, 60), "d": st.integers(2, 10)}
quick = settings(max_examples=30, deadline=None)


@given(**shapes)
@quick
def test_scaling_alone_is_standard_scaler(seed, n, d):
    X = matrix(seed, n, d)
    expected = StandardScaler().fit_transform(X)
    np.testing.assert_allclose(fit_preprocessor(X, "feature", 0).transform(X), expected, rtol=1e-5, atol=1e-5)


@given(**shapes, pca=st.sampled_from([0.5, 0.9, 0.99]))
@quick
def test_with_pca_it_is_scikit_learns_pipeline(seed, n, d, pca):
    X, unseen = matrix(seed, n, d), matrix(seed + 1, 7, d)
    fitted = fit_preprocessor(X, "feature", pca)
    pipeline = make_pipeline(StandardScaler(), PCA(fitted.n_outputs, svd_solver="full")).fit(X)
    every = PCA(svd_solver="full").fit(pipeline[0].transform(X))
    variances = np.append(every.explained_variance_, 0)
    shares = variances.cumsum() / variances.sum()
    assert shares[fitted.n_outputs - 1] >= pca - 1e-5
    assert fitted.n_outputs == 1 or shares[fitted.n_outputs - 2] <= pca + 1e-5  # none too many
    # Components of nearly the same variance may turn: what stays are the products, unless the cut divides such.
    assume(variances[fitted.n_outputs - 1] - variances[fitted.n_outputs] > 1e-3)
    ours, theirs = fitted.transform(unseen), pipeline.transform(unseen)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=1e-2, atol=1e-2)
    assert fitted.transform(X).mean(axis=0) == pytest.approx(0, abs=1e-4)


def test_few_rows_of_many_features_keep_at_most_as_many_components():
    assert fit_preprocessor(matrix(0, 5, 40), "feature", 0.999).n_outputs <= 5


def test_global_scaling_divides_all_by_the_deviation_of_the_centred_values():
    X = matrix(1, 100, 5)
    centred = X - X.mean(axis=0)
    transformed = fit_preprocessor(X, "global", 0).transform(X)
    np.testing.assert_allclose(transformed, centred / centred.std(), rtol=1e-5, atol=1e-5)
    assert transformed.std() == pytest.approx(1, abs=1e-5)


def test_scaling_none_centres_only():
    X = matrix(2, 100, 5)
    np.testing.assert_allclose(fit_preprocessor(X, "none", 0).transform(X), X - X.mean(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("pca", [0, 0.9])
def test_inputs_are_float32_of_the_training_rows_mean(scale, pca):
    X = matrix(3, 3000, 6)  # more than a block of rows
    transformed = fit_preprocessor(X, scale, pca).transform(X)
    assert transformed.dtype == np.float32
    np.testing.assert_allclose(transformed.mean(axis=0), 0, atol=1e-3)


def test_a_constant_feature_is_centred_and_not_divided_by_zero():
    X = np.column_stack([matrix(4, 50, 2), np.full(50, 0.1)])
    transformed = fit_preprocessor(X, "feature", 0).transform(X)
    assert np.abs(transformed[:, 2]).max() < 1e-6
    assert np.isfinite(fit_preprocessor(X, "feature", 0.9).transform(X)).all()


def test_a_large_offset_does_not_swallow_the_feature():
    """Seconds since 1970 over a minute: in float32 the mean alone would be off by up to a minute."""
    seconds = 1.7e9 + np.arange(60.0)[:, None]
    transformed = fit_preprocessor(seconds, "feature", 0).transform(seconds)
    np.testing.assert_allclose(transformed, StandardScaler().fit_transform(seconds), atol=1e-6)


def random_map(d, k):
    """A map to single-precision sums whose last bits depend on the order of the terms."""
    rng = np.random.default_rng(0)
    return Preprocessor(rng.uniform(0, 255, d), rng.uniform(1, 60, d), rng.normal(size=(k, d)).astype(np.float32))


@pytest.mark.parametrize("n", [1, 2, 17, 1500])
@pytest.mark.parametrize("k", [1, 5, 17])
def test_the_same_numbers_give_the_same_bits_whatever_holds_them(n, k):
    pixels = np.random.default_rng(1).integers(0, 256, (n, 200), np.uint8)
    wide = np.zeros((n, 201), np.uint8)
    wide[:, 1:] = pixels
    bits = random_map(200, k).transform(pixels).tobytes()
    for same in (pixels.astype(np.float64), np.asfortranarray(pixels.astype(np.float32)), wide[:, 1:]):
        assert random_map(200, k).transform(same).tobytes() == bits


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n", [1, 2, 17, 1500])
def test_stored_and_read_again_it_gives_the_same_bits(tmp_path, order, n):
    fitted, X = random_map(200, 17), np.random.default_rng(2).uniform(0, 255, (n, 200))
    arrays = {name: np.asarray(values, order=order) for name, values in fitted.arrays().items()}
    np.savez(tmp_path / "map.npz", **arrays)
    with np.load(tmp_path / "map.npz", allow_pickle=False) as file:
        again = Preprocessor.from_arrays(file)
    assert again.transform(X).tobytes() == fitted.transform(X).tobytes()


def test_a_map_without_pca_is_stored_without_components():
    fitted = fit_preprocessor(matrix(6, 30, 4), "feature", 0)
    assert sorted(fitted.arrays()) == ["mean", "scale"]
    again = Preprocessor.from_arrays(fitted.arrays() | {"weights": np.ones(3)})
    assert again.components is None
    assert again.n_outputs == 4


def test_the_number_of_blas_threads_does_not_change_a_bit():
    X = matrix(7, 2000, 600)  # large enough for BLAS to share its work out
    maps, inputs = [], []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            maps.append(fit_preprocessor(X, "feature", 0.9))
            inputs.append(maps[0].transform(X).tobytes())
    assert maps[0].components.tobytes() == maps[1].components.tobytes()
    assert inputs[0] == inputs[1]


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (4,), (3, 4, 1)])
def test_rows_of_another_width_are_refused(shape):
    fitted = fit_preprocessor(matrix(8, 30, 4), "feature", 0)
    with pytest.raises(ValueError, match=r"\(n, 4\) is needed"):
        fitted.transform(np.zeros(shape))
