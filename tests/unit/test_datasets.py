"""Data sets found and read; every unusable file is told in one line that names the place."""

import csv
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from hpo.config.study import DataConfig
from hpo.data import cifar10
from hpo.data.sources import LARGEST, find_source, resolve_scale
from hpo.errors import DataError, StudyFileError

STUDY = Path("study.toml")


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def find(dataset, folder=Path(), **keys):
    return find_source(DataConfig(dataset=str(dataset), **keys), folder / STUDY, Path("data"))


def load_csv(text, **keys):
    content = text if isinstance(text, bytes) else text.encode()
    Path("own.csv").write_bytes(content)
    return find("own.csv", **keys).load()


def load_npz(**arrays):
    np.savez("own.npz", **arrays)
    return find("own.npz").load()


def refused(load, *args, error=DataError, **keys):
    """The message of the refusal, which is one line."""
    with pytest.raises(error) as caught:
        load(*args, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels_of(dataset):
    return dataset.classes[dataset.y]


def test_digits_come_with_scikit_learn():
    dataset = find("digits").load()
    X, y = load_digits(return_X_y=True)
    assert (dataset.name, dataset.test_from) == ("digits", None)
    assert (dataset.X == X).all()
    assert (labels_of(dataset) == y).all()
    assert dataset.y.dtype == np.intp


def test_cifar10_has_its_official_test_images_last(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS", 2)
    folder = Path("data") / cifar10.FOLDER
    folder.mkdir(parents=True)
    for i, name in enumerate(cifar10.BATCHES):
        (folder / name).write_bytes((bytes([i]) + bytes(3072)) * 2)
    (folder / cifar10.CLASS_NAMES).write_text("a b c d e f\n")
    source = find("cifar10")
    dataset = source.load()
    assert dataset.X.shape == (12, 3072)
    assert dataset.test_from == 10
    assert "".join(labels_of(dataset)) == "aabbccddeeff"
    before = source.fingerprint()
    (folder / "test_batch.bin").write_bytes((bytes([5]) + bytes(3071) + b"x") * 2)
    assert source.fingerprint() != before


@pytest.mark.parametrize("dataset", ["mnist", "openml:iris", "digits.toml", "cifar10.npy", "Digits"])
def test_an_unknown_data_set_is_refused_with_what_is_allowed(dataset):
    message = refused(find, dataset, error=StudyFileError)
    assert message == (
        f"study.toml: data.dataset: digits, cifar10, or a path that ends in .npz or .csv is allowed, not {dataset!r}"
    )


@pytest.mark.parametrize("dataset", ["digits", "own.npz", "own.csv"])
@pytest.mark.parametrize(("key", "value"), [("mirror", True), ("shift", 1)])
def test_only_photographs_have_variants(dataset, key, value):
    message = refused(find, dataset, error=StudyFileError, **{key: value})
    assert message == f"study.toml: data.{key}: only the images of cifar10 have variants; leave it out"


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "own.npz"])
def test_a_label_is_a_column_of_a_csv_only(dataset):
    message = refused(find, dataset, label="species", error=StudyFileError)
    assert message.startswith("study.toml: data.label: ")


def test_a_missing_file_is_told_with_the_places_that_were_looked_at(tmp_path):
    message = refused(find, "own.csv", folder=Path("studies"))
    assert message == (f"studies/study.toml: data.dataset: no file 'own.csv' in {tmp_path / 'studies'} or {tmp_path}")


def test_a_relative_path_starts_beside_the_study_file_or_else_here(tmp_path):
    (tmp_path / "studies").mkdir()
    for folder, content in (("studies", "1,a\n2,b\n"), (".", "1,c\n2,d\n")):
        (tmp_path / folder / "own.csv").write_text(content)
    beside = find("own.csv", folder=tmp_path / "studies")
    assert list(beside.load().classes) == ["a", "b"]
    (tmp_path / "studies" / "own.csv").unlink()
    here = find("own.csv", folder=tmp_path / "studies")
    assert list(here.load().classes) == ["c", "d"]
    assert list(find(tmp_path / "own.csv", folder=Path("elsewhere")).load().classes) == ["c", "d"]


def test_the_fingerprint_is_of_the_content_not_of_the_path():
    for name in ("own.csv", "copy.csv"):
        Path(name).write_text("1,a\n2,b\n")
    assert find("own.csv").fingerprint() == find("copy.csv").fingerprint()
    assert find("own.csv").fingerprint() == hashlib.sha256(b"1,a\n2,b\n").hexdigest()
    Path("copy.csv").write_text("1,a\n2,c\n")
    assert find("own.csv").fingerprint() != find("copy.csv").fingerprint()
    assert find("digits").fingerprint() == find("digits").fingerprint()


@pytest.mark.parametrize(
    ("dataset", "scale", "resolved"),
    [
        ("digits", None, "global"),
        ("cifar10", None, "global"),
        ("own.csv", None, "feature"),
        ("own.npz", None, "feature"),
        ("digits", "feature", "feature"),
        ("own.csv", "none", "none"),
    ],
)
def test_images_have_one_unit_and_columns_one_each(dataset, scale, resolved):
    assert resolve_scale(DataConfig(dataset=dataset, scale=scale)) == resolved


# Files of the user's own: what is read.

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
kinds = st.sampled_from(
    [
        texts.filter(lambda text: text == text.strip()),
        st.integers(1 - 2**53, 2**53 - 1),
        st.integers(-1000, 1000).map(float),
        st.booleans(),
    ]
)
lists = kinds.flatmap(lambda kind: st.lists(kind, min_size=2, max_size=20))
labels = lists.filter(lambda y: len(set(y)) > 1)
numbers = st.floats(min_value=-LARGEST, max_value=LARGEST)


@given(labels, st.data())
@settings(deadline=None, max_examples=50)
def test_an_npz_comes_back_with_labels_of_any_kind(y, data):
    shape = data.draw(st.sampled_from([(len(y),), (len(y), 3), (len(y), 2, 2)]))
    size = int(np.prod(shape))
    X = np.reshape(data.draw(st.lists(numbers, min_size=size, max_size=size)), shape)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/own.npz", X=X, y=np.array(y))
        dataset = find(f"{folder}/own.npz").load()
    np.testing.assert_array_equal(dataset.X, X.reshape(len(y), -1))
    assert list(labels_of(dataset)) == y
    assert dataset.classes.dtype.kind in "Uib"
    assert dataset.classes.tolist() == sorted(set(y))


def looks_like_a_number(label):
    try:
        float(label)
    except ValueError:
        return False
    return True


@given(labels, st.integers(1, 4), st.booleans(), st.data())
@settings(deadline=None, max_examples=50)
def test_a_csv_comes_back_with_labels_of_any_kind(y, width, header, data):
    if isinstance(y[0], str) and any(map(looks_like_a_number, y)):
        y = [f"class {label}" for label in y]
    rows = st.lists(numbers, min_size=width, max_size=width)
    X = data.draw(st.lists(rows, min_size=len(y), max_size=len(y)))
    at = data.draw(st.integers(0, width)) if header else width
    names = [[f"feature {i}" for i in range(width)]]
    with tempfile.TemporaryDirectory() as folder:
        with Path(folder, "own.csv").open("w", newline="", encoding="utf-8") as file:
            for features, label in zip(names * header + X, ["kind"] * header + y, strict=True):
                csv.writer(file).writerow([*features[:at], label, *features[at:]])
        dataset = find(f"{folder}/own.csv", label="kind" if header else None).load()
    assert dataset.X.tolist() == X
    assert labels_of(dataset).tolist() == ([str(label) for label in y] if isinstance(y[0], bool) else y)


@pytest.mark.parametrize(
    ("text", "keys", "X", "y"),
    [
        ("1,2,a\n3,4,b\n", {}, [[1, 2], [3, 4]], ["a", "b"]),
        ("x,y,kind\n1,2,a\n3,4,b\n", {}, [[1, 2], [3, 4]], ["a", "b"]),
        ("kind,x,y\na,1,2\nb,3,4\n", {"label": "kind"}, [[1, 2], [3, 4]], ["a", "b"]),
        ("x,kind,y\n1,0,2\n3,1,4\n", {"label": "kind"}, [[1, 2], [3, 4]], [0, 1]),
        ("0,1,2\n1,2,3\n3,4,5\n", {"label": "2"}, [[1, 2], [3, 4]], [3, 5]),
        ("1,2,0.0\n3,4,1e0\n", {}, [[1, 2], [3, 4]], [0, 1]),
        ("1,2,True\n3,4,False\n", {}, [[1, 2], [3, 4]], ["True", "False"]),
        ("1, 2 , a b \n 3,4,b", {}, [[1, 2], [3, 4]], ["a b", "b"]),
        ('1,2,"a,b"\r\n3,4,b\r\n', {}, [[1, 2], [3, 4]], ["a,b", "b"]),
        ("\n1,2,a\n\n3,4,b\n\n", {}, [[1, 2], [3, 4]], ["a", "b"]),
        (b"\xef\xbb\xbf1,2,\xc3\xa9\n3,4,b\n", {}, [[1, 2], [3, 4]], ["é", "b"]),
        (
            "1,2,9007199254740993\n3,4,9007199254740992\n",
            {},
            [[1, 2], [3, 4]],
            ["9007199254740993", "9007199254740992"],
        ),
    ],
)
def test_what_a_csv_may_look_like(text, keys, X, y):
    dataset = load_csv(text, **keys)
    assert dataset.X.tolist() == X
    assert labels_of(dataset).tolist() == y
    assert dataset.name == "own.csv"


@pytest.mark.parametrize("kind", ["b1", "u1", "i4", "f2", "f4", "f8"])
def test_an_npz_may_hold_real_numbers_of_any_type(kind):
    X = np.array([[0, 1], [1, 1]], kind)
    assert load_npz(X=X, y=[0, 1]).X.dtype == X.dtype


def test_labels_of_an_npz_may_be_a_column_or_bytes():
    assert list(load_npz(X=np.eye(2), y=[[4], [7]]).classes) == [4, 7]
    assert list(load_npz(X=np.eye(2), y=np.array(["é".encode(), b"a"])).classes) == ["a", "é"]


# Files of the user's own: what is refused, in which words.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "own.csv: empty"),
        ("\n\n", "own.csv: empty"),
        ("x,y\n", "own.csv: a header and no rows"),
        ("1;2;a\n", "own.csv: line 1: one column; features and a label, separated by commas, are needed"),
        ("1,2,a\n3,red,b\n", "own.csv: line 2, column 2: 'red' is not a number"),
        ("x,colour,kind\n1,2,a\n\n3,red,b\n", "own.csv: line 4, column 'colour': 'red' is not a number"),
        ("x,y,kind\n1,,a\n", "own.csv: line 2, column 'y': '' is not a number"),
        ("1,2,a\n3,4\n", "own.csv: line 2: 2 columns instead of 3"),
        ("1,2,a\n3,4,b,5\n", "own.csv: line 2: 4 columns instead of 3"),
        ("1,2,a\n3,4, \n", "own.csv: line 2: the label is missing"),
        ("1,2,a\n3,4,a\n", "own.csv: all 2 labels are 'a'; two classes are needed at least"),
        (
            "1,2,0\n3,4,0.5\n",
            "own.csv: line 2: label '0.5'; a class is needed: text, a whole number or a boolean",
        ),
        (
            "1,2,0\n3,4,nan\n",
            "own.csv: line 2: label 'nan'; a class is needed: text, a whole number or a boolean",
        ),
        (
            "1,2,0\n3,4,inf\n",
            "own.csv: line 2: label 'inf'; a class is needed: text, a whole number or a boolean",
        ),
        (
            "0,1,kind\n1,2,3\n3,4,5\n",
            "own.csv: line 1 is a header of numbers, or a wrong label; give data.label = 'kind'",
        ),
        ('1,2,"a\n3,4,b\n', "own.csv: line 2: unexpected end of data"),
        (b"1,2,\xff\n", "own.csv: not a UTF-8 text"),
    ],
)
def test_an_unusable_csv_is_refused_with_its_place(text, message):
    assert refused(load_csv, text) == message


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e200", "-2e15"])
def test_a_feature_that_is_no_finite_number_is_refused_with_its_place(number):
    many = "".join(f"{i},{i},{i % 2}\n" for i in range(5000))
    text = f"x,y,kind\n{many}1,{number},1\n"
    place = "own.csv: line 5002, column 'y': "
    assert refused(load_csv, text).startswith(f"{place}{float(number)} in a feature; a number between")
    X = np.zeros((5000, 2, 3))
    X[4999, 1, 2] = float(number)
    assert refused(load_npz, X=X, y=np.arange(5000)).startswith(f"own.npz: X[4999, 1, 2] is {float(number)}; ")


def test_infinity_in_few_bits_is_refused():
    assert refused(load_npz, X=np.array([[0], [np.inf]], "f2"), y=[0, 1]).startswith("own.npz: X[1, 0] is inf; ")


@pytest.mark.parametrize(
    ("label", "start"),
    [("sort", "0 columns of own.csv are named 'sort'; "), ("x", "2 columns of own.csv are named 'x'; ")],
)
def test_a_label_that_is_not_one_column_is_refused_with_the_columns(label, start):
    message = refused(load_csv, "x,x,kind\n1,2,3\n", label=label, error=StudyFileError)
    assert message == f"study.toml: data.label: {start}one of these is allowed: 'x', 'x', 'kind'"


def test_a_place_is_right_of_the_label_too():
    text = "x,kind,y\n1,a,2\n3,b,red\n"
    assert refused(load_csv, text, label="kind") == "own.csv: line 3, column 'y': 'red' is not a number"
    assert "line 2, column 'y': nan in" in refused(load_csv, "x,kind,y\n1,a,nan\n3,b,2\n", label="kind")


LABELS = "a class is needed: text, a whole number or a boolean"
SHAPES = "(n, ...) and (n,) are needed"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": [0, 1]}, "no array 'X'; there is y"),
        ({"X": [0, 1], "labels": [0, 1]}, "no array 'y'; there is X, labels"),
        ({}, "no array 'X'; there is none"),
        ({"X": np.eye(3), "y": [0, 1]}, f"X has shape (3, 3) and y has shape (2,); {SHAPES}"),
        ({"X": np.eye(2), "y": np.eye(2)}, f"X has shape (2, 2) and y has shape (2, 2); {SHAPES}"),
        ({"X": 1.0, "y": [0, 1]}, f"X has shape () and y has shape (2,); {SHAPES}"),
        ({"X": np.empty((0, 2)), "y": []}, "array 'X' is empty: its shape is (0, 2)"),
        ({"X": np.empty((2, 0)), "y": [0, 1]}, "array 'X' is empty: its shape is (2, 0)"),
        ({"X": [1j, 2], "y": [0, 1]}, "array 'X' holds complex128; real numbers are needed"),
        ({"X": ["a", "b"], "y": [0, 1]}, "array 'X' holds <U1; real numbers are needed"),
        ({"X": np.eye(2), "y": [1j, 2]}, f"array 'y' holds complex128; {LABELS}"),
        ({"X": np.eye(2), "y": [0, 0.5]}, f"y[1] is 0.5; {LABELS}"),
        ({"X": np.eye(2), "y": [0, np.nan]}, f"y[1] is nan; {LABELS}"),
        ({"X": np.eye(2), "y": ["a", ""]}, "y[1] is empty; a label is needed"),
        ({"X": np.eye(2), "y": [b"a", b"\xff"]}, "array 'y' holds bytes that are no UTF-8 text"),
        ({"X": np.eye(2), "y": [3, 3]}, "all 2 labels are 3; two classes are needed at least"),
        ({"X": np.eye(2), "y": np.array(["a", None])}, "array 'y': Python objects, which are never loaded"),
        (
            {"X": np.array([[1], ["a"]], object), "y": [0, 1]},
            "array 'X': Python objects, which are never loaded",
        ),
    ],
)
def test_an_unusable_npz_is_refused_with_its_place(arrays, message):
    assert refused(load_npz, **arrays) == f"own.npz: {message}"


def test_a_file_that_is_no_npz_is_refused():
    path = Path("own.npz")
    np.savez(path, X=np.random.default_rng(0).normal(size=(200, 5)), y=np.arange(200))
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[:3000]):
        path.write_bytes(content)
        assert refused(find("own.npz").load).startswith("own.npz: not a NumPy archive; ")
    for save, at in ((np.savez, 150), (np.savez, 1000), (np.savez_compressed, 100), (np.savez_compressed, 200)):
        save(path, X=np.arange(1000.0).reshape(200, 5), y=np.arange(200))
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
        assert refused(find("own.npz").load) == "own.npz: array 'X': damaged"
    with path.open("wb") as file:
        np.save(file, np.eye(2))
    assert refused(find("own.npz").load).startswith("own.npz: a single array; ")


def test_finding_a_data_set_imports_neither_scikit_learn_nor_httpx():
    code = "import sys, hpo.data.sources; print({'sklearn', 'scipy', 'httpx', 'rich', 'optuna'} & set(sys.modules))"
    path = str(Path(cifar10.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    assert found.stdout == "set()\n"
