"""Guesses about tables: header, index columns, label column, classes, unused rows and stratification."""

import numpy as np
import pytest
from data_files import error_of, find, load_csv, load_npz, make_config, write_csv
from hypothesis import given
from hypothesis import strategies as st

from hpo.config.loader import load_config
from hpo.data.division.splits import SplitSizes, raw_splits, split_indices
from hpo.data.prepared.cache import prepare
from hpo.data.tables.columns import counts_rows, has_header
from hpo.data.tables.labels import exact_numbers
from hpo.errors import StudyFileError

ROWS = 60
RNG = np.random.default_rng(0)
DECIMALS = RNG.normal(size=(ROWS, 4)).round(3)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))


def table(header, labels=("setosa", "versicolor", "virginica"), first=None, d=3):
    """Return a CSV text of decimals, with a first column if it is given and a cycle of labels."""
    lines = [header] if header is not None else []
    for i in range(ROWS):
        cells = [*([str(first[i])] if first is not None else []), *map(str, DECIMALS[i, :d])]
        lines.append(",".join([*cells, str(labels[i % len(labels)])]))
    return "\n".join(lines) + "\n"


def notes_of(text, **data):
    write_csv(text)
    return prepare(make_config("own.csv", **data)).notes


@pytest.mark.parametrize(
    ("header", "labels"),
    [
        ("0,1,2,species", ("a", "b")),
        ("0,1,2,3", (0, 1, 2)),
        ("0,1,2,3", (2, 3, 4)),
        ("2019,2020,y2021,species", ("a", "b")),
        ('"x","y","z","species"', ("a", "b")),
        ("\ufeffx,y,z,species", ("a", "b")),
    ],
)
def test_header_is_recognized(header, labels):
    dataset = load_csv(table(header, labels))
    assert len(dataset.X) == ROWS
    assert set(dataset.labels.tolist()) == set(labels)


@pytest.mark.parametrize(
    ("header", "labels"),
    [
        ("2019,2020,2021,species", ("a", "b")),
        ("10,20,30,40", (0, 1)),
        ("5,6,7,species", (0, 1)),
        ("?,NA,n/a,a", ("a", "b")),
        ("1.5,x3,2.5,a", ("a", "b")),
    ],
)
def test_first_row_that_may_be_both_needs_key(header, labels):
    text = table(header, labels)
    message = error_of(load_csv, text)
    assert message.startswith("own.csv: line 1 may be a header or a row: ")
    assert message.endswith("; set data.header = true or data.header = false")
    dataset = load_csv(text, header=True)
    assert (len(dataset.X), set(dataset.labels.tolist())) == (ROWS, set(labels))


def test_header_key_makes_first_row_a_row():
    assert len(load_csv(table("2019,2020,2021,a", ("a", "b")), header=False).X) == ROWS + 1


@given(st.lists(st.floats(-9, 9).map(str), min_size=2, max_size=5), st.lists(st.sampled_from("ab"), min_size=1))
def test_row_with_label_of_another_row_is_no_header(features, labels):
    X = np.zeros((len(labels), len(features)))
    assert has_header([*features, labels[0]], len(features), range(len(features)), labels, X) is False


def test_name_of_label_in_row_of_numbers_is_refused():
    text = "1,14.5,2\n2,15.5,3\n1,14.5,2\n"
    assert "data.header = true or data.header = false" in error_of(load_csv, text, label="1")
    message = error_of(load_csv, text, label="1", header=False, error=StudyFileError)
    assert message == "study.toml: data.label: '1' is a name, and data.header = false; a position from 0 is allowed"
    assert load_csv(text, label=0).labels.tolist() == [1, 2, 1]


@pytest.mark.parametrize("label", [4, -5, 10**20])
def test_position_outside_of_table_is_refused(label):
    message = error_of(load_csv, table(None), label=label, error=StudyFileError)
    assert message == f"study.toml: data.label: own.csv has no column {label}; -4 to 3 are allowed"


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "index"])
@pytest.mark.parametrize("start", [0, 1])
def test_index_is_left_out(name, start):
    text = table(f"{name},x,y,z,species", first=range(start, start + ROWS))
    dataset = load_csv(text)
    assert dataset.feature_names == ("x", "y", "z")
    assert (DECIMALS[:, :3] == dataset.X).all()
    assert any("left out column" in note for note in dataset.notes)
    kept = load_csv(text, drop=[])
    assert kept.X.shape == (ROWS, 4)
    assert any("data.drop" in note for note in kept.notes)


@pytest.mark.parametrize(("header", "names"), [("x,y,z,kind", ("x", "y", "z")), ("x,x,z,kind", None), (None, None)])
def test_features_have_names_if_each_is_unique(header, names):
    assert load_csv(table(header)).feature_names == names
    expected = None if names is None else ("x", "z")
    assert load_csv(table(header), drop=[1]).feature_names == (expected if header != "x,x,z,kind" else ("x", "z"))


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_shuffled_index_is_left_out(name):
    text = table(f"{name},x,y,z,species", first=np.random.default_rng(1).permutation(ROWS))
    assert load_csv(text).X.shape == (ROWS, 3)


@pytest.mark.parametrize(
    ("name", "values"),
    [("id", range(ROWS)), ("Id", range(1, ROWS + 1)), ("sample_id", range(7000, 7000 - ROWS, -1)), ("", [0, 1] * ROWS)],
)
def test_column_that_is_probably_no_feature_is_left_out(name, values):
    text = table(f"{name},x,y,z,species", first=values)
    dataset = load_csv(text)
    assert dataset.X.tolist() == DECIMALS[:, :3].tolist()
    shown = f"column {name!r}" if name else "column 1"
    assert f"left out {shown}: numbers the rows, or has no name; data.drop = [] keeps it" in dataset.notes
    assert load_csv(text, drop=[name or 0]).X.shape == (ROWS, 3)
    assert load_csv(text, drop=[]).X.shape == (ROWS, 4)
    assert load_csv(text, numeric=[name or 0]).X.shape == (ROWS, 4)


def test_counter_without_header_is_left_out():
    text = table(None, first=range(ROWS))
    assert "left out column 1: numbers the rows, or has no name; data.drop = [] keeps it" in load_csv(text).notes
    assert load_csv(text).X.shape == (ROWS, 3)
    assert load_csv(text, drop=[]).X.shape == (ROWS, 4)


def test_counter_with_name_of_feature_is_noted():
    dataset = load_csv(table("time,x,y,z,species", first=range(ROWS)))
    assert dataset.X.shape == (ROWS, 4)
    assert dataset.notes == ("column 'time': counts or numbers the rows; data.drop = [\"time\"] leaves it out",)


def test_counter_in_archive_needs_key():
    X = np.column_stack([np.arange(ROWS), DECIMALS])
    assert "data.drop = [0]" in error_of(load_npz, X=X, y=np.arange(ROWS) % 3)
    assert find("own.npz", drop=[-5]).load().X.tolist() == DECIMALS.tolist()
    assert find("own.npz", drop=[]).load().X.shape == (ROWS, 5)
    assert "X has no column 5" in error_of(find("own.npz", drop=[5]).load)


@given(st.integers(0, 1), st.integers(2, 30), st.data())
def test_only_consecutive_numbers_count_rows(start, n, data):
    column = np.arange(start, start + n, dtype=np.float64)
    assert counts_rows(column)
    column[data.draw(st.integers(0, n - 1))] += data.draw(st.sampled_from([0.5, 40, -40]))
    assert not counts_rows(column)


@pytest.mark.parametrize(
    ("drop", "problem"),
    [
        (["species"], "column 'species' is the label; set data.label to another column"),
        ([-1], "column 'species' is the label"),
        (["sepal"], "own.csv has no column with the name 'sepal'; allowed are 'x', 'y', 'z', 'species', or a position"),
        ([9], "own.csv has no column 9; -4 to 3 are allowed"),
        (["x", 1, -2], "no feature is left"),
    ],
)
def test_impossible_drop_is_refused(drop, problem):
    message = error_of(load_csv, table("x,y,z,species"), drop=drop, error=StudyFileError)
    assert message.startswith(f"study.toml: data.drop: {problem}")


@pytest.mark.parametrize("key", [{"header": True}, {"label": 0}, {"drop": [0]}])
def test_key_of_tables_is_refused_for_other_data(key):
    message = error_of(find, "digits", error=StudyFileError, **key)
    assert message.startswith(f"study.toml: data.{next(iter(key))}: 'digits' has no ")


@pytest.mark.parametrize(
    "labels",
    [
        ("01234", "01235", "90210"),
        ("7", "007", "8"),
        ("12_003", "12_004"),
        ("+7", "8"),
        ("1e3", "1000"),
        ("-0", "0"),
        ("0x10", "16"),
        ("1", "1.0"),
        ("１", "1"),  # noqa: RUF001  # a full-width digit
        (" a", "b "),
        ("True", "False"),
        (str(2**53), str(2**53 + 1)),
    ],
)
def test_labels_stay_as_written(labels):
    dataset = load_csv(table("x,y,z,kind", labels))
    assert dataset.labels.tolist() == [labels[i % len(labels)] for i in range(ROWS)]


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters='\0",\r\n'), min_size=1), min_size=2))
def test_number_labels_restore_their_text(labels):
    numbers = exact_numbers(labels)
    assert numbers is None or [str(number) for number in numbers.tolist()] == labels


@pytest.mark.parametrize("labels", [("0", "-1", "12"), ("0.0", "1.0", "-2.0")])
def test_plain_numbers_are_numbers(labels):
    dataset = load_csv(table("x,y,z,kind", labels))
    assert [str(label) for label in dataset.labels[: len(labels)].tolist()] == list(labels)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [(("a", "nan"), "label 'nan'"), (("a", "b", "a "), "label 'a' is written with and without spaces")],
)
def test_labels_that_are_probably_wrong_are_refused(labels, problem):
    assert problem in error_of(load_csv, table("x,y,z,kind", labels))


@pytest.mark.parametrize("cell", ["12_003", "١٢", "50%", "1,2,3"])
def test_text_that_is_no_plain_number_is_a_category(cell):
    dataset = load_csv(f'x,y,kind\n1,"{cell}",a\n3,4,b\n')
    assert dataset.schema.columns[1].levels == tuple(sorted([cell, "4"]))
    assert f"column 'y': categories, because {cell!r} is not a number" in dataset.notes


@pytest.mark.parametrize(
    ("labels", "is_number"),
    [
        (range(100, 100 + ROWS), True),
        ([f"id {i}" for i in range(ROWS)], False),
        ([3 * (i // 2) for i in range(ROWS)], True),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_too_many_classes_are_refused(labels, is_number, suffix):
    write_csv(table("x,y,z,kind", labels))
    np.savez("own.npz", X=DECIMALS, y=np.array(labels))
    message = error_of(raw_splits, make_config(f"own.{suffix}"))
    assert f"{len(set(labels))} classes in {ROWS} rows" in message
    assert ("regression" in message) == is_number
    assert ("data.label" in message) == (suffix == "csv")


@pytest.mark.parametrize("labels", [range(ROWS), [f"id {i}" for i in range(ROWS)], [3 * i for i in range(ROWS)]])
def test_chosen_label_with_too_many_classes_is_not_asked_for_again(labels):
    write_csv(table("x,y,z,kind", labels))
    message = error_of(raw_splits, make_config("own.csv", label="kind"))
    is_number = isinstance(labels[0], int)
    asked = (
        "is this a number to predict?" if is_number else "data.label names this column, but a class needs several rows"
    )
    assert asked in message
    assert "set data.label" not in message


@pytest.mark.parametrize("labels", [range(20, 45), [f"kind {i}" for i in range(25)]])
def test_chosen_label_may_have_small_classes(labels):
    write_csv(table("x,y,z,kind", labels))
    assert "data.label" in error_of(raw_splits, make_config("own.csv"))
    assert raw_splits(make_config("own.csv", label="kind"))


def test_scattered_numbers_are_classes_only_if_chosen():
    rows = "".join(f"{RNG.normal():.3f},{7 * (i % 60)}\n" for i in range(1500))
    write_csv(f"x,code\n{rows}")
    assert "regression" in error_of(raw_splits, make_config("own.csv"))
    assert raw_splits(make_config("own.csv", label="code"))


@pytest.mark.parametrize(("delimiter", "name"), [("\t", "tabs"), (";", "semicolons"), ("|", "'|'")])
def test_other_delimiter_is_noted(delimiter, name):
    dataset = load_csv(table("x,y,z,species").replace(",", delimiter))
    assert dataset.X.tolist() == DECIMALS[:, :3].tolist()
    assert dataset.notes == (f"columns are separated by {name}",)


def test_label_in_first_column_of_text_needs_key():
    text = table("species,x,y,kind", first=["setosa", "virginica"] * (ROWS // 2), d=2)
    assert load_csv(text).feature_names == ("species", "x", "y")
    assert load_csv(text, label=0).feature_names == ("x", "y", "kind")


def test_notes_describe_table():
    notes = notes_of(table("id,x,y,z,species", first=range(ROWS)), drop=["id"], split=dict.fromkeys(SPLITS, 15))
    assert notes == (
        "60 rows, a header, label in column 'species': 3 classes: 'setosa' (20), 'versicolor' (20), 'virginica' (20)",
        "left out by data.drop: column 'id'",
        "15 of 60 rows are unused; data.split with fractions that add up to 1.0 uses all",
    )


SPLITS = ("train", "validation", "test")


def test_notes_describe_text_labels_and_equal_and_constant_columns():
    notes = notes_of(table("c,x,x,kind", ("007", "7"), first=[1.5] * ROWS, d=2))
    assert "constant features: column 'c'" in notes
    assert "features with the same name: 'x'" in notes
    assert "labels are text, because '007' is not written as a whole number" in notes


def test_notes_shorten_many_classes():
    text = "\n".join(f"{RNG.normal():.3f},class {i % 12}" for i in range(120))
    assert "12 classes: 'class 0' (10), " in notes_of(text)[0]
    assert notes_of(text)[0].endswith(", 2 more")


def test_mistyped_label_keeps_other_classes_stratified():
    labels = [["a", "b", "c"][i % 3] for i in range(240)]
    labels[100] = "aa"
    text = "x,kind\n" + "\n".join(f"{x:.3f},{label}" for x, label in zip(RNG.normal(size=240), labels, strict=True))
    write_csv(text)
    config = make_config("own.csv")
    assert prepare(config).notes[1:] == ("classes with too few rows for each split, maybe mistyped: 'aa' (line 102)",)
    for _, y in raw_splits(config).values():
        counts = [np.sum(y == label) for label in "abc"]
        assert max(counts) - min(counts) <= 2
    assert prepare(config).fingerprint.endswith(":stratified without small classes")


def test_random_splits_are_noted():
    text = "\n".join(f"{RNG.normal():.3f},class {i % 12}" for i in range(60))
    notes = notes_of(text, split={"train": 44, "validation": 8, "test": 8})
    assert notes[-1] == "splits are random, not stratified: 8 rows cannot have 12 classes"


def test_stratification_of_large_classes_is_unchanged():
    groups = np.arange(100) % 3
    plain = split_indices(100, SplitSizes(60, 20, 20), 0, groups=groups)
    assert plain.test[:5].tolist() == split_indices(100, SplitSizes(60, 20, 20), 0, groups=groups + 7).test[:5].tolist()


@pytest.mark.parametrize(
    ("text", "is_same"),
    [
        (table("x,y,z,kind"), True),
        (table(None, ("0", "1")), True),
        (table("x,y,z,kind", ("007", "7")), False),
        (table("0,1,2,kind"), False),
        (table(",x,y,z,kind", first=range(ROWS)), False),
    ],
)
def test_fingerprint_changes_if_table_is_read_otherwise_than_before(text, is_same):
    write_csv(text)
    config = make_config("own.csv")
    fingerprint = find("own.csv").fingerprint()
    assert prepare(config).fingerprint.startswith(fingerprint)
    assert (prepare(config).fingerprint == fingerprint) == is_same


def test_keys_are_read_from_study_file(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('[study]\nname = "s"\n[data]\ndataset = "own.csv"\nheader = true\nlabel = -1\ndrop = ["a", 2]\n')
    config = load_config(path)
    assert config.data is not None
    assert (config.data.header, config.data.label, config.data.drop) == (True, -1, ("a", 2))
    settings = config.settings()
    assert (settings["data.header"], settings["data.label"], settings["data.drop"]) == (True, -1, ["a", 2])
