"""Data sets where they are found: scikit-learn's digits, CIFAR-10, and the user's own .npz and .csv files.

Every message of an unusable file names the place: the row or line, the column, the value.
"""

import csv
import gzip
import hashlib
import tokenize
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from hpo.config.study import DataConfig
from hpo.data import cifar10
from hpo.data.preprocessing import Scale
from hpo.errors import DataError, StudyFileError

Array = NDArray[Any]

# The squares of larger features overflow where float32 numbers are added up; also above this, an integer
# number of a float64 has lost its neighbours. It refuses NaN and infinity as well.
LARGEST = 1e15

_IMAGES = ("digits", "cifar10")
_ALLOWED = "digits, cifar10, or a path that ends in .npz or .csv"
_EXACT = 2**53  # whole numbers below it are exact in a float64
_ROWS = 4096  # rows checked at a time
_DAMAGED = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # what NumPy and zip raise


@dataclass(frozen=True, eq=False)
class Dataset:
    """Raw features and labels in the order of their source.

    ``X`` is numeric (n, d). ``y`` (n,) has each label's position in ``classes``, the original labels,
    sorted: text, integers or booleans. Rows from ``test_from`` on are an official test set.
    """

    name: str
    X: Array
    y: NDArray[np.intp]
    classes: Array
    test_from: int | None = None


class Source(Protocol):
    """A data set that was found, and is loaded when it is needed.

    Its methods raise a DataError for data that are missing or unusable, an OSError where they cannot be read.
    """

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str:
        """The SHA-256 of the content, wherever it lies."""

    def load(self) -> Dataset: ...


def find_source(data: DataConfig, study_path: Path, data_dir: Path) -> Source:
    """The source that a study file names; a relative path starts beside the study file, or else here.

    Raises:
        StudyFileError: no such data set, a label column for one that has no columns, or variants of no images.
        DataError: no such file.
    """
    path = Path(data.dataset).expanduser()
    suffix = path.suffix.lower()
    if data.label is not None and suffix != ".csv":
        raise StudyFileError(f"{study_path}: data.label: only the columns of a .csv have names; leave it out")
    for key in ("mirror", "shift"):
        if getattr(data, key) and data.dataset != "cifar10":
            raise StudyFileError(f"{study_path}: data.{key}: only the images of cifar10 have variants; leave it out")
    if data.dataset == "digits":
        return Digits()
    if data.dataset == "cifar10":
        return Cifar10(data_dir)
    if suffix not in (".npz", ".csv"):
        raise StudyFileError(f"{study_path}: data.dataset: {_ALLOWED} is allowed, not {data.dataset!r}")
    found = next((there for there in (study_path.parent / path, path) if there.is_file()), None)
    if found is None:
        where = "" if path.is_absolute() else f" in {study_path.parent.absolute()} or {Path.cwd()}"
        raise DataError(f"{study_path}: data.dataset: no file {data.dataset!r}{where}")
    return NpzSource(found) if suffix == ".npz" else CsvSource(found, data.label, study_path)


def resolve_scale(data: DataConfig) -> Scale:
    """The scaling of a study that names none: images have one unit for all pixels, columns one for each."""
    return data.scale or ("global" if data.dataset in _IMAGES else "feature")


@dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits, 8 x 8 pixels, that come with scikit-learn."""

    name: str = "digits"

    def fingerprint(self) -> str:
        dataset = self.load()
        return hashlib.sha256(dataset.X.astype("<f8").tobytes() + dataset.y.astype("<i8").tobytes()).hexdigest()

    def load(self) -> Dataset:
        # scikit-learn's own way is to import it, which takes as long as all the rest of a launch's start.
        found = find_spec("sklearn")
        assert found is not None
        assert found.submodule_search_locations is not None
        file = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
        numbers = gzip.decompress(file.read_bytes()).replace(b"\n", b",")
        rows = np.fromstring(numbers, np.float64, sep=",").reshape(-1, 65)
        return _dataset(self.name, rows[:, :-1], rows[:, -1].astype(np.int64))


@dataclass(frozen=True)
class Cifar10:
    """The 60,000 photographs, 32 x 32 pixels in three colours, 10,000 of them the official test set."""

    data_dir: Path
    name: str = "cifar10"

    def fingerprint(self) -> str:
        folder = cifar10.find_images(self.data_dir)
        return _sha256(folder / batch for batch in cifar10.BATCHES)

    def load(self) -> Dataset:
        images = cifar10.load_images(cifar10.find_images(self.data_dir))
        test_from = len(images.X) - cifar10.RECORDS
        return Dataset(self.name, images.X, images.y, np.array(images.classes), test_from)


class _FileSource:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def fingerprint(self) -> str:
        return _sha256([self.path])

    def _refuse(self, problem: str) -> NoReturn:
        raise DataError(f"{self.path}: {problem}") from None


@dataclass(frozen=True)
class NpzSource(_FileSource):
    """Arrays X (n, ...) and y (n,) of a NumPy archive."""

    path: Path

    def load(self) -> Dataset:
        X, y = self._read("X", "y")
        if X.ndim == 0 or y.shape not in ((len(X),), (len(X), 1)):
            self._refuse(f"X has shape {X.shape} and y has shape {y.shape}; (n, ...) and (n,) are needed")
        self._check_features(X)
        return _dataset(self.name, X.reshape(len(X), -1), self._labels(y.ravel()))

    def _read(self, *keys: str) -> list[Array]:
        with self.path.open("rb") as opened, self._archive(opened) as file:
            if missing := [key for key in keys if key not in file]:
                self._refuse(f"no array {missing[0]!r}; there is {', '.join(file) or 'none'}")
            return [self._array(file, key) for key in keys]

    def _archive(self, opened: BinaryIO) -> NpzFile:
        try:
            file = np.load(opened, allow_pickle=False)
        except _DAMAGED:
            self._refuse("not a NumPy archive; numpy.savez(path, X=..., y=...) writes one")
        if not isinstance(file, NpzFile):
            self._refuse("a single array; numpy.savez(path, X=..., y=...) writes the two that are needed")
        return file

    def _array(self, file: NpzFile, key: str) -> Array:
        try:
            return np.asarray(file[key])
        except _DAMAGED as error:
            why = "Python objects, which are never loaded" if "Object arrays" in str(error) else "damaged"
            self._refuse(f"array {key!r}: {why}")

    def _check_features(self, X: Array) -> None:
        if X.dtype.kind not in "biuf":
            self._refuse(f"array 'X' holds {X.dtype}; real numbers are needed")
        if X.size == 0:
            self._refuse(f"array 'X' is empty: its shape is {X.shape}")
        if (bad := _first_bad(X.reshape(len(X), -1))) is not None:
            place = np.unravel_index(np.ravel_multi_index(bad, (len(X), X.size // len(X))), X.shape)
            self._refuse(f"X[{', '.join(map(str, place))}] is {X[place]}; {_FINITE}")

    def _labels(self, y: Array) -> Array:
        if y.dtype.kind not in "biufUS":
            self._refuse(f"array 'y' holds {y.dtype}; {_LABELS}")
        if y.dtype.kind in "US":
            return self._text_labels(y)
        if y.dtype.kind == "f":
            return _whole(y, lambda i: self._refuse(f"y[{i}] is {y[i]}; {_LABELS}"))
        return y

    def _text_labels(self, y: Array) -> Array:
        try:
            text = y if y.dtype.kind == "U" else np.char.decode(y, "utf-8")
        except UnicodeDecodeError:
            self._refuse("array 'y' holds bytes that are no UTF-8 text")
        if (text == "").any():
            self._refuse(f"y[{int((text == '').argmax())}] is empty; a label is needed")
        return text


@dataclass(frozen=True)
class CsvSource(_FileSource):
    """Features in columns, and a label in the column named ``label``, or else in the last.

    The first row is a header where ``label`` is given, or where a feature of it is not a number.
    """

    path: Path
    label: str | None
    study_path: Path

    def load(self) -> Dataset:
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                table = self._parse(self._rows(file))
        except UnicodeDecodeError:
            self._refuse("not a UTF-8 text")
        X = np.frombuffer(table.features).reshape(len(table.lines), -1)
        if (bad := _first_bad(X)) is not None:
            row, column = bad
            self._refuse(f"{table.place(row, column)}: {X[row, column]} in a feature; {_FINITE}")
        return _dataset(self.name, X, self._labels(table))

    def _rows(self, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """The number of its last line and the cells of each row; blank lines are left out."""
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            self._refuse(f"line {reader.line_num}: {error}")

    def _parse(self, rows: Iterator[tuple[int, list[str]]]) -> "_Table":
        start = next(rows, None)
        if start is None:
            self._refuse("empty")
        first = list(start[1])
        if len(first) < 2:
            self._refuse(f"line {start[0]}: one column; features and a label, separated by commas, are needed")
        table = self._header(first)
        for line, cells in rows if table.names else chain([start], rows):
            if len(cells) != len(first):
                self._refuse(f"line {line}: {len(cells)} columns instead of {len(first)}")
            if not table.append(line, cells):
                self._refuse(table.problem(line, cells))
        if not table.lines:
            self._refuse("a header and no rows")
        return table

    def _header(self, first: list[str]) -> "_Table":
        names = [cell.strip() for cell in first]
        if self.label is None:
            header = not all(map(_is_number, names[:-1]))
            return _Table(names if header else [], len(names) - 1)
        if names.count(self.label) != 1:
            columns = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
            raise StudyFileError(
                f"{self.study_path}: data.label: {names.count(self.label)} columns of {self.path} are named "
                f"{self.label!r}; one of these is allowed: {columns}"
            )
        return _Table(names, names.index(self.label))

    def _labels(self, table: "_Table") -> Array:
        try:
            numbers = np.array(table.labels, np.float64)
        except ValueError:
            if not table.names and not _is_number(table.labels[0]) and all(map(_is_number, table.labels[1:])):
                self._refuse(f"line 1 is a header of numbers, or a wrong label; give data.label = {table.labels[0]!r}")
            return np.array(table.labels)
        if (np.isfinite(numbers) & (np.abs(numbers) >= _EXACT)).any():
            return np.array(table.labels)  # text keeps all the digits
        line = table.lines
        return _whole(numbers, lambda i: self._refuse(f"line {line[i]}: label {table.labels[i]!r}; {_LABELS}"))


class _Table:
    """The columns of a CSV file as they are read; without a header ``names`` is empty."""

    def __init__(self, names: list[str], label: int) -> None:
        self.names = names
        self.label = label
        self.lines = array("q")
        self.labels: list[str] = []
        self.features = array("d")  # row after row

    def append(self, line: int, cells: list[str]) -> bool:
        """Take a row; False where a feature is not a number or the label is missing."""
        label = cells.pop(self.label).strip()
        try:
            self.features.extend(map(float, cells))
        except ValueError:
            return False
        self.lines.append(line)
        self.labels.append(label)
        return bool(label)

    def problem(self, line: int, features: list[str]) -> str:
        for column, cell in enumerate(features):
            if not _is_number(cell):
                return f"line {line}, {self.column(column)}: {cell.strip()!r} is not a number"
        return f"line {line}: the label is missing"

    def place(self, row: int, feature: int) -> str:
        return f"line {self.lines[row]}, {self.column(feature)}"

    def column(self, feature: int) -> str:
        column = feature + (feature >= self.label)
        return f"column {self.names[column]!r}" if self.names else f"column {column + 1}"


_FINITE = f"a number between -{LARGEST:g} and {LARGEST:g} is needed"
_LABELS = "a class is needed: text, a whole number or a boolean"


def _dataset(name: str, X: Array, labels: Array) -> Dataset:
    classes, y = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{name}: all {len(X)} labels are {classes[0].item()!r}; two classes are needed at least")
    return Dataset(name, X, y.astype(np.intp), classes)


def _first_bad(X: Array) -> tuple[int, int] | None:
    """Row and column of the first feature that is NaN, infinite or too large."""
    largest = np.float64(LARGEST)  # a Python float would be rounded to the type of X, to infinity in float16
    for start in range(0, len(X), _ROWS):
        rows = X[start : start + _ROWS]
        good = (rows >= -largest) & (rows <= largest)
        if not good.all():
            row, column = np.argwhere(~good)[0]
            return start + int(row), int(column)
    return None


def _whole(labels: Array, refuse: Callable[[int], NoReturn]) -> NDArray[np.int64]:
    """Labels that were written as floats, as integers."""
    wrong = ~(np.abs(labels) < _EXACT) | (labels != np.floor(labels))
    if wrong.any():
        refuse(int(wrong.argmax()))
    return labels.astype(np.int64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
