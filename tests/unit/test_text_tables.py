"""Text files of tables: delimiters, encodings, compression and headers above text."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_files import error_of, find, load_csv, write_csv
from hypothesis import given
from hypothesis import strategies as st

from hpo.data.tables.reading.text_file import find_delimiter

GERMAN = "Größe;Stadt;Kauf\n170,5;Köln;ja\n180;München;nein\n1.650,25;Köln;ja\n"


@given(
    st.sampled_from(",;\t|"),
    st.lists(st.lists(st.sampled_from(["1.5", "red", "x y", ""]), min_size=3, max_size=3), min_size=2, max_size=9),
)
def test_delimiter_divides_all_rows(delimiter, rows):
    assert find_delimiter([f"{delimiter.join(row)}\n" for row in rows], ",") == delimiter


@pytest.mark.parametrize(
    ("lines", "delimiter"),
    [
        (["x;y;z\n", "1,5;2,5;a\n"], ";"),
        (["1,5;2,5;a\n", "2,5;3,5;b\n"], ";"),
        (["a;b,c\n", "d;e,f\n"], ","),
        (["x,y\n", '"1;2",3\n'], ","),
        (["x y\n", "1 2\n"], ","),
    ],
)
def test_decimal_comma_is_no_delimiter(lines, delimiter):
    assert find_delimiter(lines, ",") == delimiter


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_encoding_is_found(encoding):
    dataset = load_csv(GERMAN.encode(encoding))
    assert dataset.feature_names == ("Größe", "Stadt")
    assert dataset.X.tolist() == [[170.5, 0], [180, 1], [1650.25, 0]]
    is_noted = "the text is not UTF-8; it is read as cp1252" in dataset.notes
    assert is_noted == (encoding in ("cp1252", "latin-1"))


def test_targets_may_have_decimal_commas():
    dataset = load_csv("x;y\n1;1,5\n2;2,25\n3;1.000,5\n")
    assert dataset.labels.tolist() == [1.5, 2.25, 1000.5]
    assert "labels are numbers with decimal commas" in dataset.notes


@pytest.mark.parametrize(("name", "delimiter"), [("own.csv.gz", ","), ("own.tsv.gz", "\t"), ("own.tsv", "\t")])
def test_compressed_and_tab_separated_files(name, delimiter):
    content = "x,y,kind\n1,2,a\n3,4,b\n".replace(",", delimiter).encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    dataset = find(name).load()
    assert (dataset.X.tolist(), dataset.labels.tolist()) == ([[1, 2], [3, 4]], ["a", "b"])
    assert dataset.notes == ()


@pytest.mark.parametrize("content", [b"x,y\n1,2\n", b"", gzip.compress(b"x,y\n1,2\n" * 99, mtime=0)[:-9]])
def test_damaged_compression_is_refused(content):
    Path("own.csv.gz").write_bytes(content)
    message = error_of(find("own.csv.gz").load)
    assert message.startswith("own.csv.gz: not a complete gzip file: ") or message.startswith("own.csv.gz: empty; ")


def test_folder_is_refused():
    Path("own.csv").mkdir()
    message = error_of(find, "own.csv")
    assert message == "study.toml: data.dataset: 'own.csv' is a folder; the path of a file is required"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x,y\n1,2\n"])
def test_file_that_is_no_parquet_is_refused(content):
    Path("own.parquet").write_bytes(content)
    message = error_of(find("own.parquet").load)
    assert message.startswith("own.parquet: not a Parquet file that can be read: ")
    assert message.endswith("; write the table again, for example with pandas")


def test_damaged_parquet_is_refused():
    pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]}).to_parquet("own.parquet")
    content = Path("own.parquet").read_bytes()
    Path("own.parquet").write_bytes(content[:4] + bytes(40) + content[44:])
    message = error_of(find("own.parquet").load)
    assert message.startswith("own.parquet: not a Parquet file that can be read: ")
    assert "\n" not in message


def test_unreadable_parquet_is_an_error_of_the_disk():
    Path("own.parquet").touch()
    source = find("own.parquet")
    Path("own.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        source.load()


MUSHROOMS = ["x,s,n,e", "b,y,w,p", "x,f,n,e", "b,s,w,p", "x,y,n,e", "f,f,w,p"] * 5
ADULTS = ["39, State-gov, 77516, <=50K", "50, Private, 83311, <=50K", "38, Private, 21564, >50K"] * 5


@pytest.mark.parametrize(
    ("rows", "header", "expected"),
    [
        (MUSHROOMS, "cap,surface,colour,class", True),
        (MUSHROOMS, None, False),
        (ADULTS, "age,work,weight,income", True),
        (ADULTS, None, False),
        (["1.5,red,3.5", "2.5,blue,4.5", "3.5,red,5.5"], "x,colour,y", True),
        (["1.5,red,3.5", "2.5,blue,4.5", "3.5,red,5.5"], None, False),
        (["2024-01-01,3,a", "2024-01-02,4,b"], "day,x,kind", True),
        (["2024-01-01,3,a", "2024-01-02,4,b", "2024-01-03,4,a"], None, False),
    ],
)
def test_header_above_text_is_recognized(rows, header, expected):
    dataset = load_csv("\n".join([*([header] if header else []), *rows]) + "\n")
    assert len(dataset.X) == len(rows)
    assert dataset.summary.startswith("a header" if expected else "no header")


def test_row_of_new_texts_needs_key():
    text = "ada,tall,a\nbob,small,b\neve,thin,c\n"
    assert "may be a header or a row" in error_of(load_csv, text)
    assert len(load_csv(text, header=False).X) == 3


def test_lines_count_blank_lines_and_lines_in_cells():
    write_csv('x,kind\n\n1,"a\nb"\n2,c\n')
    assert find("own.csv").load().lines.tolist() == [4, 5]


def test_text_of_nan_is_a_category_without_gap():
    dataset = load_csv("x,kind\nred,a\nnan,b\nblue,a\n")
    assert dataset.schema.columns[0].levels == ("blue", "red")
    np.testing.assert_array_equal(dataset.X[:, 0], [1, np.nan, 0])
