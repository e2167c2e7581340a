"""Data sets: their protocol, their registry, scikit-learn's digits and NumPy archives.

An error about a file names the place in it: the row or line, the column and the value.
"""

import gzip
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NoReturn, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from hpo.config.study import DataConfig, StudyConfig
from hpo.data.augmentation import ImageShape
from hpo.data.prepared.folders import expand_home
from hpo.data.prepared.scaling import NamedScale
from hpo.data.tables.columns import select_features
from hpo.errors import DataError, MissingDataError, StudyFileError
from hpo.utils.npz import ArchiveError, NotAnArchiveError, open_regular, read_arrays

if TYPE_CHECKING:
    from hpo.data.tables.schema import Schema

Array = NDArray[Any]

# The squares of larger features overflow in a sum of float32 numbers. The limit refuses NaN and infinity as well.
MAX_FEATURE = 1e15
FEATURE_REQUIRED = f"a number between -{MAX_FEATURE:g} and {MAX_FEATURE:g} is required"
LABEL_REQUIRED = "a class or a finite number is required"

# Below this number a float64 represents each integer exactly.
EXACT_INTEGERS = 2**53

_CHECKED_ROWS = 4096

# Archives that unpack to less are always read. Larger ones may be compressed by a factor that real data do not exceed.
_ALWAYS_READ_BYTES = 1 << 28
_MAX_COMPRESSION = 100


@dataclass(frozen=True, eq=False)
class Dataset:
    """Raw features and labels in the order of the source.

    Attributes:
        name: The name of the data set.
        X: Numeric features (n, d).
        labels: Labels (n,): text, integers or booleans.
        test_from: The first row of the official test set, which continues to the last row; None if there is none.
        is_table: Whether ``data.label`` can name another column.
        lines: The line number of each row (n,) of a file, None without lines.
        label: The label column, for messages.
        summary: The layout of the table, for messages; empty, or with a comma at its end.
        notes: Guesses about the columns, for messages.
        reading: Ways in which the table is read since a later version of hpo. A study of an earlier version refuses
            such data.
        feature_names: The names of the features (d,); None if they have none.
        group: The values of ``data.group`` (n,), None without this key.
        order: The values of ``data.order`` (n,), None without this key: numbers, times or text.
        columns: The names of the features as [data] names them, or their positions (d,); None for other data.
        schema: The columns of a table that is not plain numbers; X has gaps as NaN, and categories as indices.
    """

    name: str
    X: Array
    labels: Array
    test_from: int | None = None
    is_table: bool = False
    lines: Array | None = None
    label: str = "y"
    summary: str = ""
    notes: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()
    feature_names: tuple[str, ...] | None = None
    group: Array | None = None
    order: Array | None = None
    columns: tuple[str | int, ...] | None = None
    schema: "Schema | None" = None


class DataSource(Protocol):
    """Data set that is found at once and loaded on demand.

    Its methods raise a DataError if the data are missing or unusable, and an OSError if they cannot be read.

    Attributes:
        default_scale: The scaling of a study that names none; "auto" if the table decides. The pixels of an image have
            the same unit, columns have different units.
        image_shape: The shape of the images in X; None if augmentation is not possible.
        has_columns: Whether ``data.header`` and ``data.label`` are allowed.
    """

    default_scale: ClassVar[NamedScale]
    image_shape: ClassVar[ImageShape | None]
    has_columns: ClassVar[bool]

    @classmethod
    def from_config(cls, config: StudyConfig) -> Self:
        """Return the source of a study's data.

        Raises:
            DataError: if the file does not exist.
        """
        ...

    @property
    def name(self) -> str:
        """Name of the data set."""
        ...

    def fingerprint(self) -> str:
        """Return the SHA-256 of the content, wherever the content is stored."""
        ...

    def load(self) -> Dataset:
        """Load all features and labels."""
        ...


# Sources by the name of the data set or by the suffix of its file, as "module:class".
SOURCES: dict[str, str] = {
    "digits": "hpo.data.sources:Digits",
    "cifar10": "hpo.data.cifar10:Cifar10",
    ".npz": "hpo.data.sources:NpzSource",
    ".csv": "hpo.data.tables.source:CsvSource",
    ".csv.gz": "hpo.data.tables.source:CsvSource",
    ".tsv": "hpo.data.tables.source:CsvSource",
    ".tsv.gz": "hpo.data.tables.source:CsvSource",
    ".parquet": "hpo.data.tables.source:ParquetSource",
}


def find_source(config: StudyConfig) -> DataSource:
    """Return the source of a study's data.

    Raises:
        StudyFileError: if there is no such data set, or if it does not support a key of [data].
        DataError: if the file does not exist.
    """
    data = data_config(config)
    source_type = find_source_type(config)
    for key in ("label", "header", "categorical", "numeric", "date"):
        if getattr(data, key) is not None and not source_type.has_columns:
            raise StudyFileError(
                f"{config.path}: data.{key}: {data.dataset!r} has no named columns, only a table in a file such as "
                ".csv or .parquet has; remove this key"
            )
    if data.drop is not None and not issubclass(source_type, FileSource):
        raise StudyFileError(f"{config.path}: data.drop: {data.dataset!r} has no columns to leave out; remove this key")
    for key in ("group", "order"):
        if getattr(data, key) is not None and not issubclass(source_type, FileSource):
            raise StudyFileError(f"{config.path}: data.{key}: {data.dataset!r} has no other columns; remove this key")
    for key in ("mirror", "shift"):
        if getattr(data, key) and source_type.image_shape is None:
            raise StudyFileError(
                f"{config.path}: data.{key}: {data.dataset!r} has no images that can be augmented; remove this key"
            )
    return source_type.from_config(config)


def find_source_type(config: StudyConfig) -> type[DataSource]:
    """Return the class of the source of a study's data, whether the data exist or not.

    Raises:
        StudyFileError: if there is no such data set.
    """
    data = data_config(config)
    suffixes = "".join(Path(data.dataset).suffixes[-2:]).lower()
    target = SOURCES.get(data.dataset) or SOURCES.get(suffixes) or SOURCES.get(Path(data.dataset).suffix.lower())
    if target is None:
        names = ", ".join(key for key in SOURCES if not key.startswith("."))
        *others, last = (key for key in SOURCES if key.startswith("."))
        suffixes = f"{', '.join(others)} or {last}"
        allowed = f"{names}, or a path that ends in {suffixes} is allowed"
        raise StudyFileError(f"{config.path}: data.dataset: {allowed}, not {data.dataset!r}")
    module, _, name = target.partition(":")
    return cast(type[DataSource], getattr(importlib.import_module(module), name))


def data_config(config: StudyConfig) -> DataConfig:
    """Return the [data] of a study.

    Raises:
        StudyFileError: if the study has none.
    """
    if config.data is None:
        raise StudyFileError(f"{config.path}: data: missing")
    return config.data


def find_file(config: StudyConfig) -> Path:
    """Return the file of a study's data, relative to the study file or else to the working directory.

    Raises:
        MissingDataError: if the file does not exist.
    """
    dataset = data_config(config).dataset
    path = expand_home(dataset)
    for candidate in (config.path.parent / path, path):
        if candidate.is_file():
            return candidate
        if candidate.is_dir():
            raise DataError(f"{config.path}: data.dataset: {dataset!r} is a folder; the path of a file is required")
    folders = dict.fromkeys(map(str, (config.path.parent.resolve(), Path.cwd())))
    where = "" if path.is_absolute() else f" in {' or '.join(folders)}"
    raise MissingDataError(f"{config.path}: data.dataset: no file {dataset!r}{where}")


@dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn contains."""

    default_scale: ClassVar[NamedScale] = "global"
    # The mirror image of a digit is not a digit.
    image_shape: ClassVar[ImageShape | None] = None
    has_columns: ClassVar[bool] = False

    name: str = "digits"

    @classmethod
    def from_config(cls, config: StudyConfig) -> Self:
        """Return the digits, which have no options."""
        del config
        return cls()

    def fingerprint(self) -> str:
        """Return the SHA-256 of the pixels and the labels."""
        dataset = self.load()
        return hashlib.sha256(dataset.X.astype("<f8").tobytes() + dataset.labels.astype("<i8").tobytes()).hexdigest()

    def load(self) -> Dataset:
        """Load all digits."""
        # load_digits() would import scikit-learn, which takes longer than the rest of a launch's start.
        sklearn = find_spec("sklearn")
        assert sklearn is not None
        assert sklearn.submodule_search_locations is not None
        file = Path(sklearn.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
        numbers = gzip.decompress(file.read_bytes()).replace(b"\n", b",")
        rows = np.fromstring(numbers, np.float64, sep=",").reshape(-1, 65)
        return Dataset(self.name, rows[:, :-1], rows[:, -1].astype(np.int64))


class FileSource:
    """Base of sources that read one file."""

    default_scale: ClassVar[NamedScale] = "auto"
    image_shape: ClassVar[ImageShape | None] = None

    path: Path

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file."""
        return sha256_of_files([self.path])

    def refuse(self, problem: str) -> NoReturn:
        """Raise a DataError about the file."""
        raise DataError(f"{self.path}: {problem}") from None


@dataclass(frozen=True)
class NpzSource(FileSource):
    """NumPy archive with the arrays X (n, ...) and y (n,)."""

    has_columns: ClassVar[bool] = False

    path: Path
    drop: tuple[str | int, ...] | None = None
    group: str | int | None = None
    order: str | int | None = None

    @classmethod
    def from_config(cls, config: StudyConfig) -> Self:
        """Return the source of a study's data."""
        data = data_config(config)
        return cls(find_file(config), data.drop, data.group, data.order)

    def load(self) -> Dataset:
        """Load the arrays, with the features of each example in one row."""
        X, y = self._read("X", "y")
        if X.ndim == 0 or y.shape not in ((len(X),), (len(X), 1)):
            self.refuse(f"X has shape {X.shape} and y has shape {y.shape}; (n, ...) and (n,) are required")
        self._check_features(X)
        labels = self._labels(y.ravel())
        X = X.reshape(len(X), -1)
        positions = self._kept_positions(X.shape[1])
        X = X if len(positions) == X.shape[1] else np.ascontiguousarray(X[:, positions])
        try:
            features = select_features(list(X.T), [None] * len(positions), positions, self.drop, leaves_out=False)
        except ValueError as error:
            self.refuse(str(error))
        group, order = (self._read_column(key, len(X)) for key in ("group", "order"))
        return Dataset(self.name, X, labels, notes=features.notes, group=group, order=order, columns=tuple(positions))

    def _read_column(self, key: str, n_rows: int) -> Array | None:
        """Return the array that a key names, None without this key."""
        name = getattr(self, key)
        if name is None:
            return None
        if isinstance(name, int):
            self.refuse(f"data.{key}: the name of an array with a value for each row is required, not {name}")
        (values,) = self._read(name)
        if values.shape not in ((n_rows,), (n_rows, 1)) or values.dtype.kind not in "biufUM":
            self.refuse(f"array {name!r} holds {values.dtype} of shape {values.shape}; ({n_rows},) is required")
        return values.ravel()

    def _kept_positions(self, n_columns: int) -> list[int]:
        dropped = set()
        for position in self.drop or ():
            if isinstance(position, str) or not -n_columns <= position < n_columns:
                self.refuse(f"data.drop: X has no column {position!r}; -{n_columns} to {n_columns - 1} are allowed")
            dropped.add(position % n_columns)
        if len(dropped) == n_columns:
            self.refuse("data.drop: no feature is left")
        return [i for i in range(n_columns) if i not in dropped]

    def _read(self, *keys: str) -> list[Array]:
        with open_regular(self.path) as file:
            try:
                arrays = read_arrays(file, self._max_bytes(file), keys)
            except NotAnArchiveError as error:
                self.refuse(f"{error}; numpy.savez(path, X=..., y=...) writes the required two arrays")
            except ArchiveError as error:
                self.refuse(str(error))
        return [arrays[key] for key in keys]

    @staticmethod
    def _max_bytes(file: BinaryIO) -> int:
        """Return the largest size of the arrays, which a small file cannot exceed by far."""
        return max(_ALWAYS_READ_BYTES, _MAX_COMPRESSION * os.fstat(file.fileno()).st_size)

    def _check_features(self, X: Array) -> None:
        if X.dtype.kind not in "biuf":
            self.refuse(f"array 'X' holds {X.dtype}; real numbers are required")
        if X.size == 0:
            self.refuse(f"array 'X' is empty: its shape is {X.shape}")
        if (invalid := find_invalid_feature(X.reshape(len(X), -1))) is not None:
            index = np.unravel_index(np.ravel_multi_index(invalid, (len(X), X.size // len(X))), X.shape)
            self.refuse(f"X[{', '.join(map(str, index))}] is {X[index]}; {FEATURE_REQUIRED}")

    def _labels(self, y: Array) -> Array:
        if y.dtype.kind not in "biufUS":
            self.refuse(f"array 'y' holds {y.dtype}; {LABEL_REQUIRED}")
        if y.dtype.kind in "US":
            return self._text_labels(y)
        if y.dtype.kind == "f":
            return to_numbers(y, lambda row: self.refuse(f"y[{row}] is {y[row]}; {LABEL_REQUIRED}"))
        return y

    def _text_labels(self, y: Array) -> Array:
        try:
            text = y if y.dtype.kind == "U" else np.char.decode(y, "utf-8")
        except UnicodeDecodeError:
            self.refuse("array 'y' holds bytes that are not UTF-8 text")
        if (text == "").any():
            self.refuse(f"y[{int((text == '').argmax())}] is empty; a label is required")
        return text


def find_invalid_feature(X: Array, *, allows_missing: bool = False) -> tuple[int, int] | None:
    """Return row and column of the first feature that is infinite, too large, or a NaN that is not allowed."""
    # A Python float would be rounded to the type of X, which is infinity for float16.
    limit = np.float64(MAX_FEATURE)
    for start in range(0, len(X), _CHECKED_ROWS):
        rows = X[start : start + _CHECKED_ROWS]
        valid = (rows >= -limit) & (rows <= limit)
        if allows_missing:
            valid |= np.isnan(rows)
        if not valid.all():
            row, column = np.argwhere(~valid)[0]
            return start + int(row), int(column)
    return None


def to_numbers(labels: Array, refuse: Callable[[int], NoReturn]) -> Array:
    """Convert float labels to integers if all are whole, otherwise to float64; refuse the first that is too large."""
    invalid = ~(np.abs(labels) < EXACT_INTEGERS)
    if invalid.any():
        refuse(int(invalid.argmax()))
    is_whole = bool((labels == np.floor(labels)).all())
    return labels.astype(np.int64 if is_whole else np.float64)


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the joined contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
