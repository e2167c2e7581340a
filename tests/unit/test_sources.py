"""Lookup of data sets, scikit-learn's digits and NumPy archives."""

import contextlib
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from damage import damaged
from data_files import LABELS, NUMBERS, error_of, find, load_npz, make_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from hpo.config.study import StudyConfig
from hpo.data.division.splits import raw_splits
from hpo.data.sources import SOURCES, find_source
from hpo.errors import DataError, HpoError, MissingDataError, StudyFileError

LABEL_REQUIRED = "a class or a finite number is required"
SHAPES = "(n, ...) and (n,) are required"


def test_digits_equal_scikit_learn():
    dataset = find("digits").load()
    X, y = load_digits(return_X_y=True)
    assert (dataset.name, dataset.test_from) == ("digits", None)
    assert (dataset.X == X).all()
    assert (dataset.labels == y).all()


def test_missing_data_table_is_refused():
    config = StudyConfig.model_validate({"study": {"name": "s"}})
    assert error_of(find_source, config, error=StudyFileError) == "study.toml: data: missing"


@pytest.mark.parametrize("dataset", ["mnist", "openml:iris", "digits.toml", "cifar10.npy", "Digits"])
def test_unknown_data_set_is_refused(dataset):
    message = error_of(find, dataset, error=StudyFileError)
    assert message == (
        "study.toml: data.dataset: digits, cifar10, or a path that ends in .npz, .csv, .csv.gz, .tsv, .tsv.gz or "
        f".parquet is allowed, not {dataset!r}"
    )


def test_registered_data_set_is_listed(monkeypatch):
    monkeypatch.setitem(SOURCES, "blobs", "nowhere:Blobs")
    assert "digits, cifar10, blobs, or a path" in error_of(find, "mnist", error=StudyFileError)


@pytest.mark.parametrize("dataset", ["digits", "own.npz", "own.csv"])
@pytest.mark.parametrize(("key", "value"), [("mirror", True), ("shift", 1)])
def test_augmentation_needs_images(dataset, key, value):
    message = error_of(find, dataset, error=StudyFileError, **{key: value})
    assert message == f"study.toml: data.{key}: {dataset!r} has no images that can be augmented; remove this key"


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "own.npz"])
def test_label_column_needs_csv(dataset):
    message = error_of(find, dataset, label="species", error=StudyFileError)
    assert message.startswith(f"study.toml: data.label: {dataset!r} has no named columns")


def test_missing_file_error_names_folders(tmp_path):
    message = error_of(find, "own.csv", folder=Path("studies"))
    assert message == f"studies/study.toml: data.dataset: no file 'own.csv' in {tmp_path / 'studies'} or {tmp_path}"


def test_file_is_found_in_study_folder_first(tmp_path):
    (tmp_path / "studies").mkdir()
    for folder, content in (("studies", "1,a\n2,b\n"), (".", "1,c\n2,d\n")):
        (tmp_path / folder / "own.csv").write_text(content)
    assert list(find("own.csv", folder=tmp_path / "studies").load().labels) == ["a", "b"]
    (tmp_path / "studies" / "own.csv").unlink()
    assert list(find("own.csv", folder=tmp_path / "studies").load().labels) == ["c", "d"]
    assert list(find(tmp_path / "own.csv", folder=Path("elsewhere")).load().labels) == ["c", "d"]


def test_fingerprint_depends_on_content_only():
    for name in ("own.csv", "copy.csv"):
        Path(name).write_text("1,a\n2,b\n")
    assert find("own.csv").fingerprint() == find("copy.csv").fingerprint()
    assert find("own.csv").fingerprint() == hashlib.sha256(b"1,a\n2,b\n").hexdigest()
    Path("copy.csv").write_text("1,a\n2,c\n")
    assert find("own.csv").fingerprint() != find("copy.csv").fingerprint()


def test_fingerprint_of_digits_is_unchanged():
    # Studies in existing databases have this fingerprint.
    assert find("digits").fingerprint() == "f6d9e39f37dc45d327f6db33428ee58970ccceabb2535a5c179de35886b70443"


@pytest.mark.parametrize(
    ("dataset", "default"),
    [("digits", "global"), ("cifar10", "global"), ("own.csv", "auto"), ("own.npz", "auto")],
)
def test_default_scale_is_global_for_images_and_automatic_for_files(dataset, default):
    Path(dataset).touch()
    assert find(dataset).default_scale == default


@given(LABELS, st.data())
@settings(deadline=None, max_examples=50)
def test_npz_keeps_features_and_labels(y, data):
    shape = data.draw(st.sampled_from([(len(y),), (len(y), 3), (len(y), 2, 2)]))
    size = int(np.prod(shape))
    X = np.reshape(data.draw(st.lists(NUMBERS, min_size=size, max_size=size)), shape)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/own.npz", X=X, y=np.array(y))
        dataset = find(f"{folder}/own.npz").load()
    np.testing.assert_array_equal(dataset.X, X.reshape(len(y), -1))
    assert list(dataset.labels) == y
    assert dataset.labels.dtype.kind in "Uib"


@pytest.mark.parametrize("kind", ["b1", "u1", "i4", "f2", "f4", "f8"])
def test_npz_keeps_type_of_features(kind):
    X = np.array([[0, 1], [1, 1]], kind)
    assert load_npz(X=X, y=[0, 1]).X.dtype == X.dtype


def test_npz_labels_may_be_column_or_bytes():
    assert list(load_npz(X=np.eye(2), y=[[4], [7]]).labels) == [4, 7]
    assert list(load_npz(X=np.eye(2), y=np.array(["é".encode(), b"a"])).labels) == ["é", "a"]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e200", "-2e15"])
def test_npz_error_names_invalid_feature(number):
    X = np.zeros((5000, 2, 3))
    X[4999, 1, 2] = float(number)
    assert error_of(load_npz, X=X, y=np.arange(5000)).startswith(f"own.npz: X[4999, 1, 2] is {float(number)}; ")


def test_npz_infinity_in_float16_is_refused():
    assert error_of(load_npz, X=np.array([[0], [np.inf]], "f2"), y=[0, 1]).startswith("own.npz: X[1, 0] is inf; ")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": [0, 1]}, "no array 'X'; the arrays are: y"),
        ({"X": [0, 1], "labels": [0, 1]}, "no array 'y'; the arrays are: X, labels"),
        ({}, "no array 'X'; the arrays are: none"),
        ({"X": np.eye(3), "y": [0, 1]}, f"X has shape (3, 3) and y has shape (2,); {SHAPES}"),
        ({"X": np.eye(2), "y": np.eye(2)}, f"X has shape (2, 2) and y has shape (2, 2); {SHAPES}"),
        ({"X": 1.0, "y": [0, 1]}, f"X has shape () and y has shape (2,); {SHAPES}"),
        ({"X": np.empty((0, 2)), "y": []}, "array 'X' is empty: its shape is (0, 2)"),
        ({"X": np.empty((2, 0)), "y": [0, 1]}, "array 'X' is empty: its shape is (2, 0)"),
        ({"X": [1j, 2], "y": [0, 1]}, "array 'X' holds complex128; real numbers are required"),
        ({"X": ["a", "b"], "y": [0, 1]}, "array 'X' holds <U1; real numbers are required"),
        ({"X": np.eye(2), "y": [1j, 2]}, f"array 'y' holds complex128; {LABEL_REQUIRED}"),
        ({"X": np.eye(2), "y": [0, np.nan]}, f"y[1] is nan; {LABEL_REQUIRED}"),
        ({"X": np.eye(2), "y": ["a", ""]}, "y[1] is empty; a label is required"),
        ({"X": np.eye(2), "y": [b"a", b"\xff"]}, "array 'y' holds bytes that are not UTF-8 text"),
        ({"X": np.eye(2), "y": np.array(["a", None])}, "array 'y' holds Python objects, which are never loaded"),
        (
            {"X": np.array([[1], ["a"]], object), "y": [0, 1]},
            "array 'X' holds Python objects, which are never loaded",
        ),
    ],
)
def test_npz_error_names_array(arrays, message):
    assert error_of(load_npz, **arrays) == f"own.npz: {message}"


@pytest.mark.parametrize("content", [b"", b"no archive", "cut"])
def test_npz_without_archive_is_refused(content):
    path = Path("own.npz")
    np.savez(path, X=np.random.default_rng(0).normal(size=(200, 5)), y=np.arange(200))
    path.write_bytes(path.read_bytes()[:3000] if content == "cut" else content)
    assert error_of(find("own.npz").load).startswith("own.npz: not a NumPy archive; ")


@pytest.mark.parametrize(
    ("save", "position"),
    [(np.savez, 150), (np.savez, 1000), (np.savez_compressed, 100), (np.savez_compressed, 200)],
)
def test_damaged_npz_is_refused(save, position):
    path = Path("own.npz")
    save(path, X=np.arange(1000.0).reshape(200, 5), y=np.arange(200))
    content = path.read_bytes()
    path.write_bytes(content[:position] + bytes(40) + content[position + 40 :])
    assert error_of(find("own.npz").load) == "own.npz: array 'X' is damaged"


def test_single_array_is_refused():
    with Path("own.npz").open("wb") as file:
        np.save(file, np.eye(2))
    assert error_of(find("own.npz").load).startswith("own.npz: only one array; ")


def test_single_class_is_refused():
    np.savez("own.npz", X=np.eye(2), y=[3, 3])
    message = error_of(raw_splits, make_config("own.npz"), error=DataError)
    assert (
        message
        == "own.npz: all 2 labels are 3; at least two classes are required; add rows of others, or choose another label"
    )


def test_unknown_home_folder_is_refused():
    message = error_of(find, "~no-such-user/x.csv", error=MissingDataError)
    assert message.startswith("study.toml: data.dataset: no file '~no-such-user/x.csv'")


def test_archive_that_unpacks_to_far_more_is_refused(monkeypatch):
    monkeypatch.setattr("hpo.data.sources._ALWAYS_READ_BYTES", 1000)
    np.savez_compressed("own.npz", X=np.zeros((1000, 100)), y=np.arange(1000))
    assert "its arrays have 808,256 bytes; at most" in error_of(find("own.npz").load)
    np.savez("own.npz", X=np.zeros((1000, 100)), y=np.arange(1000))
    assert find("own.npz").load().X.shape == (1000, 100)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archive_is_an_error_or_harmless(save, data):
    save("own.npz", X=np.arange(20.0).reshape(10, 2), y=np.arange(10) % 2)
    content = Path("own.npz").read_bytes()
    Path("own.npz").write_bytes(data.draw(damaged(content)))
    with contextlib.suppress(HpoError):
        find("own.npz").load()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_csv_is_an_error_or_harmless(data):
    content = b"length,width,kind\n" + b"1.5,2.5,ant\n2.5,3.5,bee\n" * 10
    Path("own.csv").write_bytes(data.draw(damaged(content)))
    with contextlib.suppress(HpoError):
        find("own.csv").load()


def test_missing_file_names_each_folder_once():
    message = error_of(find, "nope.csv")
    assert message.endswith(f"no file 'nope.csv' in {Path.cwd()}")


@pytest.mark.parametrize("key", ["group", "order"])
def test_group_or_order_of_npz_is_another_array(key):
    np.savez("own.npz", X=np.eye(3), y=[0, 1, 0], visit=[7, 8, 7])
    dataset = find("own.npz", **{key: "visit"}).load()
    assert getattr(dataset, key).tolist() == [7, 8, 7]
    assert dataset.X.shape == (3, 3)
    message = error_of(find("own.npz", **{key: 1}).load)
    assert message == f"own.npz: data.{key}: the name of an array with a value for each row is required, not 1"
    np.savez("own.npz", X=np.eye(3), y=[0, 1, 0], visit=[7, 8])
    message = error_of(find("own.npz", **{key: "visit"}).load)
    assert message == "own.npz: array 'visit' holds int64 of shape (2,); (3,) is required"


def test_digits_have_no_groups():
    message = error_of(find, "digits", group="patient", error=StudyFileError)
    assert message == "study.toml: data.group: 'digits' has no other columns; remove this key"
