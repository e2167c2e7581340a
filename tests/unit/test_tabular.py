"""CSV files."""

import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
from data_files import LABELS, NUMBERS, error_of, find, load_csv, make_config, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.data.division.splits import raw_splits
from hpo.errors import StudyFileError


@given(LABELS, st.integers(1, 4), st.booleans(), st.data())
@settings(deadline=None, max_examples=50)
def test_csv_keeps_features_and_labels(y, width, header, data):
    if isinstance(y[0], str):
        # A text nan is a missing label, and two labels may not differ in spaces only.
        y = [f"class {label}" for label in y]
    rows = st.lists(NUMBERS, min_size=width, max_size=width)
    X = data.draw(st.lists(rows, min_size=len(y), max_size=len(y)))
    at = data.draw(st.integers(0, width)) if header else width
    names = [[f"feature {i}" for i in range(width)]]
    with tempfile.TemporaryDirectory() as folder:
        with Path(folder, "own.csv").open("w", newline="", encoding="utf-8") as file:
            for features, label in zip(names * header + X, ["kind"] * header + y, strict=True):
                csv.writer(file).writerow([*features[:at], label, *features[at:]])
        dataset = find(f"{folder}/own.csv", label="kind" if header else None, header=header, drop=[]).load()
    assert dataset.X.tolist() == X
    assert dataset.labels.tolist() == ([str(label) for label in y] if isinstance(y[0], bool) else y)


@pytest.mark.parametrize(
    ("text", "keys", "X", "y"),
    [
        ("1,2,a\n3,4,b\n", {}, [[1, 2], [3, 4]], ["a", "b"]),
        ("x,y,kind\n1,2,a\n3,4,b\n", {}, [[1, 2], [3, 4]], ["a", "b"]),
        ("kind,x,y\na,1,2\nb,3,4\n", {"label": "kind"}, [[1, 2], [3, 4]], ["a", "b"]),
        ("x,kind,y\n1,0,2\n3,1,4\n", {"label": "kind"}, [[1, 2], [3, 4]], [0, 1]),
        ("0,1,2\n1,2,3\n3,4,5\n", {"label": "2"}, [[1, 2], [3, 4]], [3, 5]),
        ("1,2,0.0\n3,4,1.0\n", {}, [[1, 2], [3, 4]], [0, 1]),
        ("1,2,0.0\n3,4,1e0\n", {}, [[1, 2], [3, 4]], ["0.0", "1e0"]),
        ("1, 2, 7 \n3, 4, 8\n", {}, [[1, 2], [3, 4]], [7, 8]),
        ("a,1,2\nb,3,4\n", {"label": 0, "header": False}, [[1, 2], [3, 4]], ["a", "b"]),
        ("1,2,a\n3,4,b\n", {"label": -1, "drop": [0]}, [[2], [4]], ["a", "b"]),
        ("x,y,kind\n1,red,a\n3,blue,b\n", {"drop": ["y"]}, [[1], [3]], ["a", "b"]),
        ("x,y,kind\n1,red,a\n3,blue,b\n", {"drop": [-2]}, [[1], [3]], ["a", "b"]),
        ("1,2,3\n4,5,6\n7,8,9\n", {"header": True}, [[4, 5], [7, 8]], [6, 9]),
        ("0,1,kind\n1,2,3\n3,4,5\n", {}, [[1, 2], [3, 4]], [3, 5]),
        ("0,1,2,3\n1,2,3,4\n3,4,5,6\n", {}, [[1, 2, 3], [3, 4, 5]], [4, 6]),
        (",0,1,kind\n0,2,3,a\n1,4,5,b\n", {}, [[2, 3], [4, 5]], ["a", "b"]),
        ("x,x,kind\n1,2,a\n3,4,b\n", {"drop": [0]}, [[2], [4]], ["a", "b"]),
        ("1,2,True\n3,4,False\n", {}, [[1, 2], [3, 4]], ["True", "False"]),
        ("1, 2 , a b \n 3,4,b", {}, [[1, 2], [3, 4]], [" a b ", "b"]),
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
def test_csv_formats(text, keys, X, y):
    dataset = load_csv(text, **keys)
    assert dataset.X.tolist() == X
    assert dataset.labels.tolist() == y
    assert dataset.name == "own.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "own.csv: empty; a table of features and a label is required"),
        ("\n\n", "own.csv: empty; a table of features and a label is required"),
        ("x,y\n", "own.csv: a header without rows; add rows below it"),
        (
            "x\n1\n2\n",
            "own.csv: line 1: only one column; features and a label are required, separated by commas, semicolons, "
            "tabs or '|'",
        ),
        (
            "x,y,kind\n,,a\n,,b\n",
            "own.csv: no feature is left: left out column 'x', column 'y': without values",
        ),
        ("1,2,a\n3,4\n", "own.csv: line 2: 2 columns instead of 3; correct this line"),
        ("1,2,a\n3,4,b,5\n", "own.csv: line 2: 4 columns instead of 3; correct this line"),
        (
            "x,y,kind\n1,2,a\n3,4, \n",
            "own.csv: line 3: the label is missing; fill in or remove the rows without a label (1 from here on)",
        ),
        (
            "1,2,0\n3,4,nan\n",
            "own.csv: line 2: label 'nan' is a missing value; fill in or remove the rows without a label (1)",
        ),
        (
            "1,2,0\n3,4,inf\n",
            "own.csv: line 2: label 'inf' is not a target; a number between -1e+15 and 1e+15 is required",
        ),
        (
            "5,7,kind\n1,2,3\n3,4,5\n",
            "own.csv: line 1 may be a header or a row: 5, 7, kind; set data.header = true or data.header = false",
        ),
        ('1,2,"a\n3,4,b\n', "own.csv: line 2: unexpected end of data"),
    ],
)
def test_csv_error_names_line(text, message):
    assert error_of(load_csv, text) == message


@pytest.mark.parametrize("number", ["inf", "-inf", "1e200", "-2e15"])
def test_csv_error_names_invalid_feature(number):
    rows = "".join(f"{i},{i},{i % 2}\n" for i in range(5000))
    message = error_of(load_csv, f"x,y,kind\n{rows}1,{number},1\n")
    location = "own.csv: line 5002, column 'y': "
    assert message.startswith(f"{location}{float(number)} is not a feature; a number between")


@pytest.mark.parametrize("cell", ["", " ", "NA", "?", "n/a", "NaN", "-nan", "null", "."])
def test_missing_value_is_a_gap(cell):
    dataset = load_csv(f"x,y,kind\n1,2,a\n1,{cell},b\n3,4,a\n5,{cell},b\n", label="kind")
    assert np.isnan(dataset.X).tolist() == [[False, False], [False, True], [False, False], [False, True]]
    assert "2 numeric: x, y (2 missing)" in dataset.notes


@pytest.mark.parametrize(
    ("text", "label", "advice"),
    [
        ("x,y,kind\n1,2,\n3,4,\n", None, "(2 from here on), or set data.label to the column of the classes"),
        ("x,y,kind\n1,2,a\n3,4,\n5,6,b\n7,8,\n", None, "(2 from here on)"),
        ("x,y,kind\n1,2,\n3,4,a\n", "kind", "(1 from here on)"),
    ],
)
def test_missing_label_suggests_data_label_only_if_no_label_is_known(text, label, advice):
    message = error_of(load_csv, text, label=label)
    assert message.endswith(f": the label is missing; fill in or remove the rows without a label {advice}")


@pytest.mark.parametrize("text", ["x,y,kind\n1,2,a\n", ",y,kind\n0,2,a\n", "1,y,kind\n0,2,a\n"])
def test_header_that_header_false_denies_names_data_header(text):
    message = error_of(load_csv, text, header=False)
    assert message.endswith("is not a number; if line 1 is a header, remove data.header = false")


@pytest.mark.parametrize(
    ("text", "line"), [("1,2,a\n3,4,b\0\n", 2), ("x,y\0,kind\n1,2,a\n", 1), ('1,2,"a\n"\n3,4,"b\n\0"\n', 4)]
)
def test_nul_character_is_refused_with_its_line(text, line):
    assert error_of(load_csv, text).startswith(f"own.csv: line {line}: a NUL character (byte 0); remove it")


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("sort", "own.csv has no column with the name 'sort'; allowed are 'x', 'x', 'kind', or a position from 0"),
        ("x", "2 columns of own.csv have the name 'x'; use one of their positions: 0, 1"),
    ],
)
def test_label_without_unique_column_is_refused(label, problem):
    message = error_of(load_csv, "x,x,kind\n1,2,3\n", label=label, error=StudyFileError)
    assert message == f"study.toml: data.label: {problem}"


def test_csv_error_names_column_after_label():
    text = "x,kind,y\n1,a,2\n3,b,2020-13-45\n"
    message = error_of(load_csv, text, label="kind", date=["y"])
    assert message.startswith("own.csv: line 2, column 'y': '2' is not a date")
    assert message.endswith("; correct it, or leave the column out with data.drop = [2]")


def test_single_class_is_refused():
    write_csv("1,2,a\n3,4,a\n")
    message = error_of(raw_splits, make_config("own.csv"))
    assert message == (
        "own.csv: all 2 labels are 'a'; at least two classes are required; add rows of others, or choose another label"
    )


@pytest.mark.parametrize("key", ["group", "order"])
@pytest.mark.parametrize("column", ["patient", 1, -2])
def test_group_or_order_is_no_feature(key, column):
    dataset = load_csv("x,patient,kind\n1, ann ,a\n3,bob,b\n", **{key: column})
    assert dataset.X.tolist() == [[1], [3]]
    assert getattr(dataset, key).tolist() == ["ann", "bob"]
    assert getattr(dataset, "order" if key == "group" else "group") is None


def test_group_of_table_without_header_has_each_row():
    assert load_csv("1,7,a\n3,7,b\n", group=1).group.tolist() == ["7", "7"]


def test_label_is_no_group():
    message = error_of(load_csv, "x,y,kind\n1,2,a\n3,4,b\n", group="kind", error=StudyFileError)
    assert message == "study.toml: data.group: column 'kind' is the label; set another column"
