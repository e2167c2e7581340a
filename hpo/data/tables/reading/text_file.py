"""Text files of tables: compression, encoding, delimiter and the line of each row."""

import csv
import gzip
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NoReturn, TextIO, cast

Refuse = Callable[[str], NoReturn]

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "'|'"}
_SAMPLE_LINES = 1000
_DELIMITER_LINES = 100
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
# The last one decodes any bytes.
_ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*")


@dataclass(frozen=True, eq=False)
class TextTable:
    """Layout of a text file.

    Attributes:
        path: The file, compressed by gzip if its name ends in ``.gz``.
        encoding: The encoding of the text.
        delimiter: The character between two cells.
        first: The stripped cells of the first row.
        sample: The cells of the rows after it, of the first lines of the file.
        lines: The number of the last line of each row.
    """

    path: Path
    encoding: str
    delimiter: str
    first: Sequence[str]
    sample: Sequence[Sequence[str]]
    lines: Sequence[int]

    @contextmanager
    def rows_after(self, n_rows: int) -> Iterator[TextIO]:
        """Open the file after a number of rows that are not blank."""
        with _open(self.path, self.encoding) as file:
            reader = filter(None, csv.reader(file, delimiter=self.delimiter))
            for _ in range(n_rows):
                next(reader)
            yield file

    @property
    def notes(self) -> tuple[str, ...]:
        """Guesses about the file, for messages."""
        separated = f"columns are separated by {DELIMITERS[self.delimiter]}"
        encoded = f"the text is not UTF-8; it is read as {self.encoding}"
        is_usual = self.delimiter == ("\t" if ".tsv" in self.path.suffixes else ",")
        return (*[separated] * (not is_usual), *[encoded] * (self.encoding in _ENCODINGS[1:]))


def scan(path: Path, refuse: Refuse) -> TextTable:
    """Read a text file once, and check that each row has the same number of cells.

    Args:
        path: The file.
        refuse: A function that raises an error.
    """
    for encoding in _encodings(path):
        try:
            with _open(path, encoding) as file:
                return _scan(path, encoding, file, refuse)
        except UnicodeDecodeError:
            continue
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            refuse(f"not a complete gzip file: {str(error).lower()}; compress the table again")
    return refuse("not a text; save the table as CSV in UTF-8")


def _encodings(path: Path) -> tuple[str, ...]:
    # A damaged archive is reported by the scan.
    if path.suffix.lower() == ".gz":
        return _ENCODINGS
    with path.open("rb") as file:
        return ("utf-16",) if file.read(2) in _BYTE_ORDER_MARKS else _ENCODINGS


@contextmanager
def _open(path: Path, encoding: str) -> Iterator[TextIO]:
    is_compressed = path.suffix.lower() == ".gz"
    with path.open("rb") as raw:
        content = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_compressed else raw
        with TextIOWrapper(content, encoding, newline="") as file:
            yield file


def _scan(path: Path, encoding: str, file: TextIO, refuse: Refuse) -> TextTable:
    head = list(islice(file, _SAMPLE_LINES))
    delimiter = find_delimiter(head[:_DELIMITER_LINES], "\t" if ".tsv" in path.suffixes else ",")
    rows = _cells(head, delimiter)
    if not rows:
        refuse("empty; a table of features and a label is required")
    lines = _row_lines(_Lines(chain(head, file), refuse), delimiter, len(rows[0]), refuse)
    if len(rows[0]) < 2:
        refuse(
            f"line {lines[0]}: only one column; features and a label are required, separated by commas, semicolons, "
            "tabs or '|'"
        )
    sample = [row for row in rows[1:] if len(row) == len(rows[0])]
    return TextTable(path, encoding, delimiter, [cell.strip() for cell in rows[0]], sample, lines)


class _Lines:
    """Lines of a text, counted and without NUL characters.

    NumPy removes a NUL character from the end of a text.
    """

    def __init__(self, lines: Iterable[str], refuse: Refuse) -> None:
        self._lines = iter(lines)
        self._refuse = refuse
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if "\0" in line:
            self._refuse(f"line {self.number}: a NUL character (byte 0); remove it, or save the table as CSV in UTF-8")
        return line


def _row_lines(lines: _Lines, delimiter: str, width: int, refuse: Refuse) -> "array[int]":
    numbers = array("q")
    for line in lines:
        count = _count_cells(line, lines, delimiter, refuse)
        if count not in (0, width):
            refuse(f"line {lines.number}: {count} columns instead of {width}; correct this line")
        if count:
            numbers.append(lines.number)
    return numbers


def _count_cells(line: str, following: _Lines, delimiter: str, refuse: Refuse) -> int:
    """Return the number of cells of the row that begins with a line; 0 for a blank line."""
    if '"' not in line:
        return line.count(delimiter) + 1 if line.strip("\r\n") else 0
    try:
        return len(next(csv.reader(chain([line], following), delimiter=delimiter, strict=True)))
    except csv.Error as error:
        refuse(f"line {following.number}: {error}")


def find_delimiter(lines: Sequence[str], default: str) -> str:
    """Return the delimiter of the lines of a table.

    It is the first candidate that divides all rows into the same number of cells. A comma that can only be a decimal
    comma is not a delimiter.
    """
    candidates = [default, *(delimiter for delimiter in DELIMITERS if delimiter != default)]
    rows = {delimiter: _cells(lines, delimiter) for delimiter in candidates}
    regular = [delimiter for delimiter in candidates if _is_regular(rows[delimiter])]
    for delimiter in regular:
        others = [other for other in regular if other not in (",", delimiter)]
        if delimiter != "," or not any(_has_decimal_commas(rows[other]) for other in others):
            return delimiter
    return max(candidates, key=lambda delimiter: len(rows[delimiter][0]) if rows[delimiter] else 0)


def _cells(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Return the cells of the rows that are not blank, up to an error, which the scan reports."""
    rows: list[list[str]] = []
    with suppress(csv.Error):
        rows.extend(filter(None, csv.reader(lines, delimiter=delimiter)))
    return rows


def _is_regular(rows: Sequence[Sequence[str]]) -> bool:
    # The last line of a sample may be the beginning of a row.
    widths = {len(row) for row in (rows[:-1] if len(rows) >= _DELIMITER_LINES else rows)}
    return len(widths) == 1 and widths.pop() > 1


def _has_decimal_commas(rows: Sequence[Sequence[str]]) -> bool:
    cells = [cell for row in rows for cell in row if "," in cell]
    return bool(cells) and all(map(_DECIMAL_COMMA.fullmatch, cells))
