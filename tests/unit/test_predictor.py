"""Predictor: predictions from raw features, and its file."""

import contextlib
import io
import os
import pickle
import zipfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from damage import damaged
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from hpo.data.prepared.preprocessing import Preprocessor
from hpo.data.task import Classification
from hpo.errors import DataError, OutputError
from hpo.models.fitted import FittedNet, pack_folds, pack_model, unpack_folds, unpack_model
from hpo.models.predictor import Member, Predictor, load_predictor

LABELS = {
    "digits": np.arange(10),
    "signed": np.array([-3, 0, 7], np.int8),
    "booleans": np.array([False, True]),
    "words": np.array(["Käfer 🐞", "ant", "bee"]),
    "one": np.array(["alone"]),
}


def make_weights(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(inputs, units)).astype(np.float32), rng.normal(size=units).astype(np.float32))
        for inputs, units in pairwise(sizes)
    ]


def make_preprocessor(features, components=None, seed=0):
    rng = np.random.default_rng(seed + 1)
    mean, scale = rng.normal(0, 10, features), rng.uniform(0.5, 3, features)
    rotation = None if components is None else rng.normal(size=(components, features)).astype(np.float32)
    return Preprocessor(mean, scale, rotation)


def make_predictor(classes=LABELS["digits"], hidden=(6,), features=5, components=None, seed=0):
    inputs = features if components is None else components
    weights = make_weights([inputs, *hidden, len(classes)], seed)
    member = Member(make_preprocessor(features, components, seed), FittedNet(weights))
    return Predictor(classes, (member,))


def weights_of(predictor):
    """Return the weights of the only member."""
    (member,) = predictor.members
    return member.model.weights


def preprocessor_of(predictor):
    """Return the preprocessing of the only member."""
    (member,) = predictor.members
    return member.preprocessor


def raw(n, features=5, seed=0):
    return np.random.default_rng(seed + 2).normal(0, 12, size=(n, features))


def scores_of(predictor, X):
    """Compute the scores by the formula in float64."""
    preprocessor = preprocessor_of(predictor)
    h = (np.asarray(X, np.float64) - preprocessor.mean) / preprocessor.scale
    if preprocessor.components is not None:
        h = h @ preprocessor.components.T.astype(np.float64)
    *hidden, (W, b) = weights_of(predictor)
    for V, c in hidden:
        h = np.clip(h @ V.astype(np.float64) + c, 0, None)
    return h @ W.astype(np.float64) + b


predictors = st.builds(
    make_predictor,
    classes=st.sampled_from(list(LABELS.values())),
    hidden=st.lists(st.integers(1, 9), max_size=2),
    components=st.none() | st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
quick = settings(max_examples=40, deadline=None)


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def same_weights(ours, theirs):
    return len(ours) == len(theirs) and all(
        same_bits(W, V) and same_bits(b, c) for (W, b), (V, c) in zip(ours, theirs, strict=True)
    )


# Predictions


@quick
@given(predictor=predictors, seed=st.integers(0, 1000))
def test_predict_returns_label_of_highest_score(predictor, seed):
    X = raw(30, seed=seed)
    scores = scores_of(predictor, X)
    predicted = predictor.predict(X)
    assert predicted.dtype == predictor.classes.dtype
    chosen = scores[np.arange(30), np.searchsorted(predictor.classes, predicted)]
    # The order of two scores that differ in the last bits of a float32 is not defined.
    np.testing.assert_allclose(chosen, scores.max(axis=1), rtol=1e-4, atol=1e-3)


@quick
@given(predictor=predictors, seed=st.integers(0, 1000))
def test_score_is_share_of_correct_labels(predictor, seed):
    X = raw(30, seed=seed)
    y = np.random.default_rng(seed).choice(predictor.classes, 30)
    right = sum(ours == theirs for ours, theirs in zip(predictor.predict(X), y, strict=True))
    assert predictor.score(X, y) == right / 30
    assert predictor.score(X.tolist(), y.tolist()) == right / 30


def test_forward_matches_hand_calculation():
    W1, b1 = np.array([[1, -1], [0, 1]], np.float32), np.array([0, 1], np.float32)
    W2, b2 = np.array([[1, 0], [0, 2]], np.float32), np.array([0.5, 0], np.float32)
    weights = [(W1, b1), (W2, b2)]
    # The hidden units are [2, max(-1, 0)] and [max(-1, 0), 5].
    X = np.array([[2, 0], [-1, 3]], np.float32)
    np.testing.assert_array_equal(FittedNet(weights).outputs(X), [[2.5, 0], [0.5, 10]])
    predictor = Predictor(
        np.array(["cat", "dog"]), (Member(Preprocessor(np.zeros(2), np.ones(2)), FittedNet(weights)),)
    )
    assert predictor.predict(X).tolist() == ["cat", "dog"]
    assert predictor.score(X, ["cat", "cat"]) == 0.5


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 2500])
def test_forward_accepts_any_number_of_rows(n):
    predictor = make_predictor(components=3)
    X = raw(n)
    (member,) = predictor.members
    scores = member.model.outputs(member.preprocessor.transform(X))
    np.testing.assert_allclose(scores, scores_of(predictor, X), rtol=1e-3, atol=1e-2)
    assert predictor.predict(X).shape == (n,)


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    hidden=st.lists(st.integers(1, 9), max_size=2),
    regularization=st.floats(0, 1),
)
def test_loss_matches_scikit_learn_plus_penalty(seed, hidden, regularization):
    weights = [(W / 3, b / 3) for W, b in make_weights([5, *hidden, 4], seed)]
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 4, 40)
    scores = FittedNet(weights).outputs(X).astype(np.float64)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    # log_loss clips smaller probabilities.
    assume(shares[np.arange(40), y].min() > 1e-15)
    mean = log_loss(y, shares, labels=range(4))
    penalty = regularization * sum((W.astype(np.float64) ** 2).sum() for W, _ in weights)
    assert train_loss(weights, X, y, regularization) == pytest.approx(mean + penalty, rel=1e-5)


def train_loss(weights, X, y, regularization):
    net = FittedNet(weights)
    return Classification().loss(net.outputs(X), y) + net.penalty(regularization)


def test_loss_of_large_scores_is_finite():
    weights = [(np.array([[0, 5000]], np.float32), np.zeros(2, np.float32))]
    X = np.ones((1, 1), np.float32)
    assert train_loss(weights, X, np.array([0]), 0.0) == pytest.approx(5000)
    assert train_loss(weights, X, np.array([1]), 0.0) == 0.0


def test_penalty_leaves_out_biases():
    weights = [(np.zeros((1, 2), np.float32), np.array([3, 3], np.float32))]
    assert train_loss(weights, np.ones((1, 1), np.float32), np.array([0]), 10.0) == pytest.approx(np.log(2))


# Files and packed weights


@quick
@given(predictor=predictors)
def test_load_returns_saved_predictor(predictor, folder):
    path = folder / "model.npz"
    predictor.save(path)
    loaded = load_predictor(path)
    assert same_bits(loaded.classes, predictor.classes)
    ours, theirs = preprocessor_of(predictor).arrays(), preprocessor_of(loaded).arrays()
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)
    assert same_weights(weights_of(loaded), weights_of(predictor))
    assert loaded.predict(raw(9)).tolist() == predictor.predict(raw(9)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predictor")


def test_load_reads_arrays_of_earlier_version(tmp_path):
    W1, b1, W2, b2 = (np.full(shape, 0.5, np.float32) for shape in ((2, 4), 4, (4, 3), 3))
    preprocessor = {"map.mean": np.zeros(3), "map.scale": np.ones(3), "map.components": np.eye(3, dtype=np.float32)[:2]}
    path = tmp_path / "model.npz"
    np.savez(path, classes=np.array(["a", "b", "c"]), W1=W1, b1=b1, W2=W2, b2=b2, **preprocessor)
    loaded = load_predictor(path)
    assert loaded.predict(np.ones((2, 3))).tolist() == ["a", "a"]
    assert preprocessor_of(loaded).n_outputs == 2
    assert same_weights(weights_of(loaded), [(W1, b1), (W2, b2)])


def test_load_accepts_path_as_text(tmp_path):
    make_predictor().save(tmp_path / "model.npz")
    assert load_predictor(str(tmp_path / "model.npz")).classes.tolist() == list(range(10))


def test_save_into_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError):
        make_predictor().save(tmp_path / "missing" / "model.npz")


@quick
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_unpack_returns_packed_weights(sizes, seed):
    weights = make_weights(sizes, seed)
    assert same_weights(unpack_model(pack_model(FittedNet(weights))).weights, weights)


def test_pack_keeps_smallest_number_and_zero_sign():
    weights = [(np.array([[1.0, -0.0, 2.0]], np.float32), np.array([-3.0, 5e-45, 0.0], np.float32))]
    assert same_weights(unpack_model(pack_model(FittedNet(weights))).weights, weights)


def test_unpack_refuses_nan():
    weights = [(np.array([[np.nan]], np.float32), np.array([0.0], np.float32))]
    with pytest.raises(ValueError, match="W1 holds something else than finite numbers"):
        unpack_model(pack_model(FittedNet(weights)))


@pytest.mark.parametrize("n_folds", [1, 2, 11])
def test_unpack_returns_packed_folds(n_folds):
    folds = [FittedNet(make_weights([3, 4, 2], seed)) for seed in range(n_folds)]
    unpacked = unpack_folds(pack_folds(list(map(pack_model, folds))))
    assert len(unpacked) == n_folds
    assert all(same_weights(one.weights, other.weights) for one, other in zip(unpacked, folds, strict=True))


def make_ensemble(classes=LABELS["words"]):
    """Return a predictor with three members of different weights and scaling."""
    members = [make_predictor(classes, seed=seed).members[0] for seed in range(3)]
    return Predictor(classes, tuple(members))


def test_ensemble_predicts_mean_probabilities():
    ensemble, X = make_ensemble(), raw(20)
    expected = np.mean([Predictor(ensemble.classes, (each,)).predict_proba(X) for each in ensemble.members], axis=0)
    np.testing.assert_allclose(ensemble.predict_proba(X), expected, atol=1e-9)
    assert ensemble.predict(X).tolist() == ensemble.classes[expected.argmax(axis=1)].tolist()


def test_load_returns_saved_ensemble(tmp_path):
    ensemble = make_ensemble()
    ensemble.save(tmp_path / "model.npz")
    loaded = load_predictor(tmp_path / "model.npz")
    assert len(loaded.members) == 3
    assert same_bits(loaded.predict_proba(raw(9)), ensemble.predict_proba(raw(9)))


def test_same_weights_have_same_bytes():
    one, other = (pack_model(FittedNet(make_weights([3, 4, 2]))) for _ in range(2))
    assert one == other


# Invalid files


def load_error(path):
    with pytest.raises(DataError) as caught:
        load_predictor(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message


def saved_arrays(path, **predictor):
    make_predictor(**predictor).save(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


class Trap:
    """Object that fails the test if it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_missing_file_names_export_command(tmp_path):
    assert "python -m hpo.export --model" in load_error(tmp_path / "model.npz")


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04", pickle.dumps(Trap())])
def test_other_file_is_refused(content, tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(content)
    assert "not a model" in load_error(path)


def test_file_of_single_array_is_refused(tmp_path):
    np.save(tmp_path / "model.npy", np.zeros(3))
    load_error(tmp_path / "model.npy")


def test_folder_is_refused(tmp_path):
    load_error(tmp_path)


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    make_predictor().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    load_error(path)


@pytest.mark.parametrize("name", ["classes", "map.mean", "W1", "more"])
def test_object_array_is_refused_without_unpickling(name, tmp_path):
    path = tmp_path / "model.npz"
    arrays = saved_arrays(path) | {name: np.array([Trap()], object)}
    np.savez(path, **arrays)
    load_error(path)


@pytest.mark.parametrize("name", ["classes", "map.mean", "map.scale", "W1", "b1", "W2", "b2"])
def test_file_without_part_is_refused(name, tmp_path):
    path = tmp_path / "model.npz"
    arrays = saved_arrays(path, hidden=(6,))
    del arrays[name]
    np.savez(path, **arrays)
    load_error(path)


def test_file_without_weights_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    arrays = saved_arrays(path)
    np.savez(path, **{name: array for name, array in arrays.items() if name[0] not in "Wb"})
    load_error(path)


# Features and labels that are refused


class Frame:
    """Stand-in for a data frame."""

    def __init__(self, values, columns):
        self.columns = columns
        self._values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self._values if dtype is None else self._values.astype(dtype)


class Sparse:
    """Stand-in for a sparse matrix."""

    def toarray(self):
        return np.ones((1, 5))


NAMED = replace(make_predictor(), feature_names=("a", "b", "c", "d", "e"))


def refusal(call, *arguments):
    with pytest.raises(ValueError) as caught:  # the caller checks the message
        call(*arguments)
    return str(caught.value)


def with_cell(value, dtype=np.float64):
    X = np.ones((4, 5), dtype)
    X[2, 1] = value
    return X


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e16])
def test_feature_that_is_not_finite_is_refused_with_its_place(value):
    expected = f"is {value}; a number between -1e+15 and 1e+15 is required"
    assert refusal(make_predictor().predict, with_cell(value)) == f"X[2, 1] {expected}"
    assert refusal(NAMED.predict, with_cell(value)) == f"X[2, 1] (column 'b') {expected}"
    assert refusal(make_predictor().score, with_cell(value), [0, 1, 2, 3]).startswith("X[2, 1] ")


@pytest.mark.parametrize(
    ("X", "problem"),
    [
        (np.ones(5), "X has shape (5,); (n, 5) is required; for a single row use X.reshape(1, -1)"),
        (np.ones((2, 1, 5)), "X has shape (2, 1, 5); (n, 5) is required; use X.reshape(len(X), -1)"),
        (np.ones((2, 4)), "X has shape (2, 4); (n, 5) is required"),
        (np.float64(1), "X has shape (); (n, 5) is required"),
        ([], "X has shape (0,); (n, 5) is required"),
        (np.ones((0, 5)), "X has no rows; at least one is required"),
        ([[1, 2], [3]], "X is not an array: "),
        (np.full((1, 5), "1"), "X holds <U1; real numbers are required"),
        (np.ones((1, 5), complex), "X holds complex128; real numbers are required"),
        (np.full((1, 5), "2026-01-01", "M8[D]"), "X holds datetime64[D]; real numbers are required"),
        (np.ones((1, 5), object), "X holds Python objects; use X.astype(float)"),
        (with_cell("red", object), "X[2, 1] is 'red'; a number between"),
        (with_cell(None, object), "X[2, 1] is None; a number between"),
        (Sparse(), "X is a sparse matrix; use X.toarray()"),
        (np.ma.masked_equal(np.eye(5), 0), "X has masked values; fill them first"),
    ],
)
def test_wrong_features_are_refused(X, problem):
    assert refusal(make_predictor().predict, X).startswith(problem)


def test_output_that_overflows_is_refused():
    predictor = make_predictor()
    huge = [(W * np.float32(1e30), b) for W, b in weights_of(predictor)]
    assert "X[1] is too far from" in refusal(
        replace(predictor, members=(Member(preprocessor_of(predictor), FittedNet(huge)),)).predict,
        [preprocessor_of(predictor).mean, [1e14] * 5],
    )


def test_booleans_are_numbers():
    X = raw(9) > 0
    assert make_predictor().predict(X).tolist() == make_predictor().predict(X.astype(float)).tolist()


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ("abcdx", "X: the columns 'e' are missing and the columns 'x' are unknown; "),
        ("abcd", "X: the columns 'e' are missing; "),
        ("abcdea", "X: several columns have the name 'a'; one is required"),
        (["a", "b", "c", "d", 5], "X: the columns 'e' are missing and the columns '5' are unknown; "),
    ],
)
def test_missing_columns_are_refused(columns, problem):
    assert refusal(NAMED.predict, Frame(np.ones((2, len(columns))), list(columns))).startswith(problem)


@pytest.mark.parametrize("columns", [list("abcde"), [" a", "b ", "c", "d", "e"], range(5)])
def test_same_or_unnamed_columns_are_accepted(columns):
    X = raw(9)
    assert NAMED.predict(Frame(X, columns)).tolist() == NAMED.predict(X).tolist()
    assert make_predictor().predict(Frame(X, list("vwxyz"))).tolist() == NAMED.predict(X).tolist()


def test_columns_are_found_by_name():
    X = raw(9)
    columns = [*"ebcda", "y"]
    shuffled = Frame(np.column_stack([X[:, [4, 1, 2, 3, 0]], np.full(9, np.nan)]), columns)
    assert NAMED.predict(shuffled).tolist() == NAMED.predict(X).tolist()
    frame = pd.DataFrame(np.asarray(shuffled), columns=columns).assign(y="text")
    assert NAMED.predict(frame).tolist() == NAMED.predict(X).tolist()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"b": "red"}, "X: row 0, column 'b': 'red' is not a number"),
        ({"b": np.nan}, "X[0, 1] (column 'b') is nan; a number between"),
        ({"b": pd.Timestamp("2024-01-01")}, "X: column 'b' holds times; numbers are required"),
        ({"b": 1j}, "X: column 'b' holds complex numbers; real numbers are required"),
    ],
)
def test_wrong_column_of_data_frame_is_refused(change, problem):
    frame = pd.DataFrame(raw(9), columns=list("abcde")).assign(**change)
    assert refusal(NAMED.predict, frame).startswith(problem)


def test_attributes_of_scikit_learn():
    assert (NAMED.n_features_in_, NAMED.feature_names_in_.tolist()) == (5, list("abcde"))
    assert NAMED.classes_ is NAMED.classes
    assert not hasattr(make_predictor(), "feature_names_in_")


def test_names_are_saved(tmp_path):
    NAMED.save(tmp_path / "model.npz")
    assert load_predictor(tmp_path / "model.npz").feature_names == NAMED.feature_names
    make_predictor().save(tmp_path / "model.npz")
    assert load_predictor(tmp_path / "model.npz").feature_names is None


def test_column_of_labels_is_scored_like_labels():
    X, y = raw(30), np.random.default_rng(0).integers(0, 10, 30)
    predictor = make_predictor()
    assert predictor.score(X, y[:, np.newaxis]) == predictor.score(X, y)
    assert predictor.score(X, y.astype(object)) == predictor.score(X, y.astype(float)) == predictor.score(X, y)


def test_text_labels_may_be_objects():
    predictor = make_predictor(LABELS["words"])
    y = predictor.predict(raw(9)).astype(object)
    assert predictor.score(raw(9), y) == predictor.score(raw(9), y[:, np.newaxis]) == 1.0


@pytest.mark.parametrize(
    ("name", "y", "problem"),
    [
        ("digits", [1], "y has shape (1,); (2,) is required, one label for each row of X"),
        ("digits", [[1, 2], [1, 2]], "y has shape (2, 2); (2,) is required"),
        ("digits", 1, "y has shape (); (2,) is required"),
        ("digits", ["1", "2"], "y holds <U1; the classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("digits", [1, np.nan], "y[1] is nan; the classes are 0, 1"),
        ("digits", [1, 10], "y[1] is 10; the classes are 0, 1"),
        ("digits", np.array([1, None]), "y[1] is None; a number is required"),
        ("digits", [1j, 2], "y holds complex128; the classes are 0, 1"),
        ("words", [0, 1], "y holds int64; the classes are 'Käfer 🐞', 'ant', 'bee'"),
        ("words", ["ant", "wasp"], "y[1] is 'wasp'; the classes are 'Käfer 🐞', 'ant', 'bee'"),
        ("words", np.array(["ant", np.nan], object), "y[1] is nan; text is required"),
        ("words", [b"ant", b"bee"], "y holds |S3; the classes are "),
        ("digits", Sparse(), "y is a sparse matrix; use y.toarray()"),
    ],
)
def test_wrong_labels_are_refused(name, y, problem):
    assert refusal(make_predictor(LABELS[name]).score, raw(2), y).startswith(problem)


# Files that were damaged or forged


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"W1": np.full((5, 6), np.nan, np.float32)}, "W1 holds something else than finite numbers"),
        ({"W1": np.ones((5, 7), np.float32)}, "W1 has shape (5, 7); (5, 6) is required"),
        ({"b1": np.ones((1, 6), np.float32)}, "b1 has shape (1, 6); (6,) is required"),
        ({"W2": np.ones((6, 10), np.int64)}, "W2 holds something else than finite numbers"),
        ({"map.mean": np.ones((5, 1))}, "the mean has shape (5, 1)"),
        ({"map.scale": np.zeros(5)}, "the scale of a feature is not positive"),
        ({"map.components": np.ones((5, 4), np.float32)}, "the components have"),
        ({"classes": np.arange(9)}, "(9,) classes for 10 outputs"),
        ({"classes": np.zeros(10, complex)}, "the classes are complex128"),
        ({"feature_names": np.array(["a"])}, "1 names for 5 features"),
    ],
)
def test_inconsistent_file_is_refused(change, problem, tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, **saved_arrays(path) | change)
    assert problem.replace("have", "has") in load_error(path)


def test_array_that_claims_to_be_huge_is_refused_without_memory(tmp_path):
    path = tmp_path / "model.npz"
    arrays = saved_arrays(path)
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 6)})
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", huge.getvalue() if name == "W1" else content.getvalue())
    assert "array 'W1' is damaged: its size does not fit its shape" in load_error(path)


def test_compressed_bomb_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    np.savez_compressed(path, **saved_arrays(path) | {"more": np.zeros(10**6)})
    assert "its arrays have 8,0" in load_error(path)


def test_encrypted_file_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    make_predictor().save(path)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + offset] |= 1
    path.write_bytes(content)
    assert "is encrypted" in load_error(path)


def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in load_error(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        load_predictor("/dev/zero")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_file_is_an_error_or_harmless(data, folder):
    path = folder / "damaged.npz"
    make_predictor(components=3).save(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        load_predictor(path).predict(raw(2))
    except DataError as error:
        assert str(error).startswith(f"{path}: ")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_weights_are_a_value_error_or_harmless(data):
    with contextlib.suppress(ValueError):
        unpack_model(data.draw(damaged(pack_model(FittedNet(make_weights([3, 4, 2]))))))
