"""Kinds of columns: their recognition, the keys of [data], and the values of data frames."""

import datetime

import numpy as np
import pandas as pd
import pytest
from data_files import error_of, find, load_csv
from hypothesis import given
from hypothesis import strategies as st

from hpo.data.tables.reading.dates import date_parts
from hpo.data.tables.reading.kinds import recognize
from hpo.data.tables.reading.values import level_text, read_values
from hpo.data.tables.schema import Column, Schema
from hpo.errors import StudyFileError

ROWS = 60
RNG = np.random.default_rng(0)
DAY = datetime.date(2024, 1, 1)


def csv_of(**columns):
    """Return a CSV text of columns, with a random number and a label."""
    frame = pd.DataFrame(columns).assign(x=RNG.normal(size=ROWS).round(3), kind=["a", "b"] * (ROWS // 2))
    return frame.to_csv(index=False)


def cycle(*cells):
    return [cells[i % len(cells)] for i in range(ROWS)]


def column_of(cells, **data):
    """Return the recognized column of cells, and its numbers."""
    dataset = load_csv(csv_of(c=cells), **data)
    if dataset.schema is None:
        return None, dataset.X[:, 0].tolist()
    return dataset.schema.columns[0], dataset.X[:, 0].tolist()


@pytest.mark.parametrize(
    ("cells", "kind", "numbers"),
    [
        (cycle("1", "", "2.5"), "numeric", [1, np.nan, 2.5]),
        (cycle("1", "n/a", "-2e3"), "numeric", [1, np.nan, -2000]),
        (cycle("1,234", "5", "12,345,678.5"), "numeric", [1234, 5, 12345678.5]),
        (cycle("1,5", "-2", "1.234,25"), "numeric", [1.5, -2, 1234.25]),
        (cycle("12%", "3.5 %"), "numeric", [12, 3.5]),
        (cycle("$1,200", "-$5.5"), "numeric", [1200, -5.5]),
        (cycle("yes", "No", ""), "boolean", [1, 0, np.nan]),
        (cycle("True", "False"), "boolean", [1, 0]),
        (cycle("t", "f"), "boolean", [1, 0]),
        (cycle("red", "blue", "?"), "categorical", [1, 0, np.nan]),
        (cycle("1", "2", "3+"), "categorical", [0, 1, 2]),
        (cycle("Zürich", "日本"), "categorical", [0, 1]),
        (cycle("1970-01-02", "", "1970-01-01"), "date", [86400, np.nan, 0]),
        (cycle("1970-01-01T00:00:01+01:00", "1970-01-02T00:00:00+00:00"), "date", [-3599, 86400]),
        (cycle("01.02.1970", "31.12.1969"), "date", [31 * 86400, -86400]),
        (cycle("13/01/1970", "01/02/1970"), "date", [12 * 86400, 31 * 86400]),
        (cycle("01/13/1970", "02/01/1970"), "date", [12 * 86400, 31 * 86400]),
        (cycle("1-Jan-1970", "02-Feb-1970"), "date", [0, 32 * 86400]),
        (cycle("Jan 2, 1970", "Feb 1, 1970"), "date", [86400, 31 * 86400]),
        (cycle("1970/01/01 12:30", "1970/01/02 00:00"), "date", [45000, 86400]),
        (cycle("1/1/1970 1:30 PM", "1/2/1970 12:00 AM"), "date", [48600, 86400]),
    ],
)
def test_kind_is_recognized(cells, kind, numbers):
    column, read = column_of(cells)
    assert column.kind == kind
    np.testing.assert_array_equal(read[: len(numbers)], numbers)


@pytest.mark.parametrize(
    "cells", [cycle("2024", "2025"), cycle("20240131", "20250131"), cycle("0", "1"), cycle("+1", "2")]
)
def test_numbers_stay_plain_numbers(cells):
    column, numbers = column_of(cells)
    assert column is None
    assert numbers == [float(cell) for cell in cells]


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (
            [f"user-{i:04}" for i in range(ROWS)],
            "left out column 'c': nearly every row has another text; data.categorical = [\"c\"] keeps it",
        ),
        (
            [f"the answer of row {i} is long" for i in range(ROWS)],
            "left out column 'c': free text; data.categorical = [\"c\"] keeps it",
        ),
        (cycle(""), "left out column 'c': without values"),
        (["error", *map(str, range(ROWS - 1))], "column 'c': 1 text such as 'error' is read as a missing number"),
        (cycle("01/02/2024", "03/04/2024"), "column 'c': dates such as '01/02/2024' are month/day/year"),
        (cycle("1", "2", "3+"), "column 'c': categories, because '3+' is not a number"),
        (cycle("1,5", "2,5"), "column 'c': numbers with decimal commas"),
        (cycle("1%", "2%"), "column 'c': numbers with %"),
    ],
)
def test_guess_that_can_be_wrong_is_noted(cells, note):
    assert note in load_csv(csv_of(c=cells)).notes


def test_kinds_are_described_in_one_line_each():
    text = csv_of(a=cycle("u", "v"), b=cycle("yes", "no"), d=cycle("2024-01-01", ""), e=cycle("w", "x", ""))
    assert load_csv(text).notes == (
        "1 numeric: x",
        "1 boolean: b",
        "2 categorical: a (2 categories), e (2 categories, 20 missing)",
        "1 date: d (30 missing)",
    )


@pytest.mark.parametrize(
    ("data", "cells", "kind", "numbers"),
    [
        ({"categorical": ["c"]}, cycle("3", "1", "2.0", ""), "categorical", [2, 0, 1, np.nan]),
        ({"categorical": [0]}, cycle("01", "1"), "categorical", [0, 1]),
        ({"categorical": ["c"]}, [f"user-{i:04}" for i in range(ROWS)], "categorical", [0, 1, 2]),
        ({"numeric": ["c"]}, cycle("3", "x", "1"), "numeric", [3, np.nan, 1]),
        ({"numeric": [-3]}, cycle("True", "False"), "numeric", [1, 0]),
        ({"date": ["c"]}, cycle("19700102", "19700101"), "date", [86400, 0]),
        ({"date": ["c"]}, cycle("1970", "1971", ""), "date", [0, 365 * 86400, np.nan]),
    ],
)
def test_study_file_overrides_kind(data, cells, kind, numbers):
    column, read = column_of(cells, **data)
    assert column.kind == kind
    np.testing.assert_array_equal(read[: len(numbers)], numbers)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            {"categorical": ["colour"]},
            "categorical: own.csv has no column with the name 'colour'; did you mean 'colours'?",
        ),
        ({"numeric": [9]}, "numeric: own.csv has no column 9; -3 to 2 are allowed"),
        ({"date": ["kind"]}, "date: column 'kind' is the label; set data.label to another column"),
        (
            {"categorical": ["x"], "group": "x"},
            "categorical: column 'x' divides the rows and is no feature; remove it from this key",
        ),
        ({"numeric": ["x"], "date": ["x"]}, "date: column 'x' is in data.numeric, too; choose one"),
        ({"numeric": ["x"], "drop": ["x"]}, "numeric: column 'x' is in data.drop, too; choose one"),
    ],
)
def test_impossible_override_is_refused(data, problem):
    message = error_of(load_csv, csv_of(colours=cycle("u", "v")), error=StudyFileError, **data)
    assert message.startswith(f"study.toml: data.{problem}")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"date": ["c"]}, "own.csv: line 3, column 'c': 'red' is not a date in the format ISO8601; correct it, or "),
        ({"numeric": ["d"]}, "own.csv: column 'd': no value is a number; data.drop = [1] leaves the column out"),
    ],
)
def test_values_that_do_not_fit_override_are_refused(data, problem):
    text = csv_of(c=["2024-01-01", "red", *["2024-01-01"] * (ROWS - 2)], d=cycle("u", "v"))
    assert error_of(load_csv, text, **data).startswith(problem)


def test_type_that_changes_after_first_block_is_read_again(monkeypatch):
    monkeypatch.setattr("hpo.data.tables.reading.reader._BLOCK_ROWS", 20)
    cells = [*map(str, range(40)), *["red"] * 20]
    column, numbers = column_of(cells, categorical=[])
    assert column.levels == tuple(sorted(set(cells)))
    assert [column.levels[int(number)] for number in numbers] == cells
    column, numbers = column_of(["", *[""] * 29, *["u", "v"] * 15])
    assert (column.levels, numbers[28:32]) == (("u", "v"), pytest.approx([np.nan, np.nan, 0, 1], nan_ok=True))


@pytest.mark.parametrize(
    ("values", "kind", "numbers"),
    [
        (pd.array([1, None], "Int64"), "numeric", [1, np.nan]),
        (pd.array([True, None], "boolean"), "boolean", [1, np.nan]),
        (pd.Categorical(["v", "u", None]), "categorical", [1, 0, np.nan]),
        (pd.Categorical([3, 1]), "categorical", [1, 0]),
        (pd.array([None, "u"], "string"), "categorical", [np.nan, 0]),
        (np.array(["u", None, 2], object), "categorical", [1, np.nan, 0]),
        (np.array([datetime.date(1970, 1, 2), None], object), "date", [86400, np.nan]),
        (pd.to_datetime(["1970-01-01 01:00"]).tz_localize("Europe/Berlin"), "date", [0]),
        (pd.to_timedelta(["1 min", None]), "numeric", [60, np.nan]),
    ],
)
def test_types_of_pandas_are_read(values, kind, numbers):
    values = read_values(pd.Series(values))
    column = recognize("c", values).column
    assert column.kind == kind
    np.testing.assert_array_equal(column.read(values), numbers)


@pytest.mark.parametrize("values", [[[1], [2]], [1j, 2], [b"a", b"b"], ["a", DAY], [1, DAY]])
def test_other_types_are_refused(values):
    with pytest.raises(ValueError, match=r"^holds .* required"):
        read_values(pd.Series(values))


@pytest.mark.parametrize("spelling", ["true", "TRUE", "True"])
def test_boolean_is_the_category_of_its_spelling(spelling):
    column = load_csv(csv_of(c=cycle(spelling, "false")), categorical=["c"]).schema.columns[0]
    numbers = column.read(read_values(pd.Series([True, False])))
    assert [column.levels[int(number)] for number in numbers] == [spelling, "false"]


def test_equal_categories_have_equal_texts():
    assert {level_text(value) for value in (1, 1.0, "1", " 1.0 ", np.float32(1))} == {"1"}
    assert level_text("01") == "01"
    assert level_text(True) == "True"


@given(st.lists(st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)), min_size=1))
def test_date_parts_equal_pandas(times):
    series = pd.Series(times)
    seconds = read_values(series).numbers
    expected = [
        series.dt.year,
        series.dt.month,
        series.dt.day,
        series.dt.day_of_week,
        series.dt.day_of_year,
        series.dt.hour,
    ]
    np.testing.assert_array_equal(date_parts(seconds), np.column_stack(expected))


def test_schema_restores_values_and_json():
    text = csv_of(a=cycle("u", "v", ""), b=cycle("yes", "no"), d=cycle("2024-01-01", ""))
    dataset = load_csv(text)
    schema = Schema.from_json(dataset.schema.to_json())
    assert schema == dataset.schema
    frame = schema.frame(dataset.X)
    assert frame.columns.tolist() == ["a", "b", "d", "x"]
    again = [column.read(read_values(frame[column.name])) for column in schema.columns]
    np.testing.assert_array_equal(np.column_stack(again), dataset.X)


def test_unknown_kind_of_stored_column_is_refused():
    columns = Schema((Column("x"),)).to_json()
    with pytest.raises(ValueError, match="no kind of a column is named 'colour'"):
        Schema.from_json([columns[0] | {"kind": "colour"}])


def test_parquet_equals_csv(tmp_path):
    text = csv_of(a=cycle("u", "v", ""), b=cycle("yes", "no"), d=cycle("2024-01-01", ""), n=cycle("1", "", "3"))
    expected = load_csv(text)
    pd.read_csv("own.csv").to_parquet("own.parquet")
    dataset = find("own.parquet").load()
    np.testing.assert_array_equal(dataset.X, expected.X)
    assert dataset.labels.tolist() == expected.labels.tolist()
    assert dataset.feature_names == expected.feature_names
    assert dataset.lines is None


@pytest.mark.parametrize(
    ("labels", "read"),
    [
        ([1, 2], [1, 2]),
        ([1.0, 2.0], [1, 2]),
        ([0.5, 2.0], [0.5, 2]),
        ([True, False], [True, False]),
        (["01", "1"], ["01", "1"]),
        (["none", "1.0"], ["none", "1.0"]),
        (pd.Categorical(["none", " NA"]), ["none", " NA"]),
        (pd.Categorical([2, 1]), [2, 1]),
    ],
)
def test_labels_of_parquet_keep_their_type(labels, read):
    frame = pd.DataFrame({"x": np.arange(20.0) ** 2, "y": pd.concat([pd.Series(labels)] * 10, ignore_index=True)})
    frame.to_parquet("own.parquet")
    assert find("own.parquet").load().labels.tolist() == read * 10


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (pd.DataFrame({"x": [1.0, 2.0], "y": ["a", None]}), "row 1: the label is missing; fill in or remove the rows"),
        (pd.DataFrame({"x": [1.0, 2.0], "y": ["a", " "]}), "row 1: the label is missing; fill in or remove the rows"),
        (pd.DataFrame({"x": [1.0, np.inf], "y": [0, 1]}), "row 1, column 'x': inf is not a feature; a number between"),
        (pd.DataFrame({"x": [[1], [2]], "y": [0, 1]}), "column 'x' holds lists or other objects; numbers, texts, "),
        (pd.DataFrame({"x": [1.0, 2.0], "y": [[0], [1]]}), "column 'y' holds lists or other objects; numbers, texts"),
        (pd.DataFrame({"y": [0, 1]}), "2 rows and 1 column; features and a label are required"),
        (pd.DataFrame({"x": [], "y": []}), "0 rows and 2 columns; features and a label are required"),
    ],
)
def test_unusable_parquet_names_place(frame, problem):
    frame.to_parquet("own.parquet")
    assert error_of(find("own.parquet").load).startswith(f"own.parquet: {problem}")


def test_header_of_parquet_is_refused():
    pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]}).to_parquet("own.parquet")
    message = error_of(find("own.parquet", header=True).load, error=StudyFileError)
    assert message == "study.toml: data.header: a Parquet file has column names; remove this key"
