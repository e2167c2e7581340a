"""The data of a study: split, scaled, reduced by PCA once a machine, and memory-mapped by every worker.

    <data dir>/prepared/<key>/{about,train,validation,test}.joblib

``load_prepared`` reads what training may see; the test split is in a file of its own, for the export alone.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from platformdirs import user_cache_path

from hpo.config.study import Split as SplitSpec
from hpo.config.study import StudyConfig, find_study, load_config
from hpo.data.cifar10 import mirrored, shifted
from hpo.data.preprocessing import Preprocessor, fit_preprocessor
from hpo.data.sources import Array, Dataset, Source, find_source, resolve_scale
from hpo.errors import DataError, StudyFileError

_FORMAT = 2  # of the prepared folder: a new number makes every copy anew
_LEAST_SPREAD = 1e-15  # its square is still a float32


class Split(NamedTuple):
    """Inputs of the network, float32 (n, k + 1), and labels, intp (n,): positions in the classes.

    The last column of the inputs is the constant 1 that stands for the bias. The n examples may be followed by
    variants of each, in the same order: X then has a multiple of n rows, of the same labels.
    """

    X: NDArray[np.float32]
    y: NDArray[np.intp]

    @property
    def features(self) -> NDArray[np.float32]:
        """The inputs of the examples themselves, without the constant, (n, k)."""
        return self.X[: len(self.y), :-1]


class Sizes(NamedTuple):
    """Rows in each split."""

    train: int
    validation: int
    test: int


class Indices(NamedTuple):
    """The rows of each split."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class PreparedData:
    """What training sees of the data, and how it came from the raw features.

    ``features`` counts the raw ones, ``pca`` is the share of the variance that was asked for (0: no PCA).
    The arrays of the splits are memory-mapped and read-only.
    """

    name: str
    fingerprint: str
    classes: Array
    features: int
    pca: float
    sizes: Sizes
    preprocessor: Preprocessor
    train: Split
    validation: Split

    @property
    def components(self) -> int | None:
        """How many components the PCA kept."""
        return self.preprocessor.n_outputs if self.pca else None


def data_dir() -> Path:
    """Where data live: ``$HPO_DATA_DIR``, or the platform's cache folder."""
    given = os.environ.get("HPO_DATA_DIR")
    return Path(given).expanduser() if given else user_cache_path("hpo")


def prepare(spec: StudyConfig, study_path: Path, announce: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of the prepared data, computed by the first who asks, under a lock; others wait for it.

    Data that were found good are announced before the fitting, which can take a while.

    Raises:
        StudyFileError: the data set or the split is not one.
        DataError: the data are missing, unusable, or cannot be written.
    """
    with _disk_errors():
        source = find_source(spec.data, study_path, data_dir())
        fingerprint = source.fingerprint()
        store = data_dir() / "prepared"
        folder = store / _key(spec, source.name, fingerprint)
        if not folder.is_dir():
            store.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_trusted(store)
            # One lock for all data sets: two preparations at once could need more memory than there is.
            with FileLock(store / ".lock"):
                if not folder.is_dir():
                    _prepare(spec, study_path, source, fingerprint, folder, announce)
        _check_trusted(store, folder)
        return folder


def load_prepared(folder: Path) -> PreparedData:
    """The prepared data without the test split.

    Raises:
        DataError: the folder is missing, or not this user's own.
    """
    about = _load(folder, "about")
    preprocessor = Preprocessor.from_arrays(about.pop("preprocessor"))
    sizes = Sizes(*about.pop("sizes"))
    train, validation = (_load_split(folder, part) for part in ("train", "validation"))
    return PreparedData(**about, sizes=sizes, preprocessor=preprocessor, train=train, validation=validation)


def load_test(folder: Path) -> Split:
    """The test split: for the export, and for nothing that chooses.

    Raises:
        DataError: the folder is missing, or not this user's own.
    """
    return _load_split(folder, "test")


def load_split(study: str) -> dict[str, tuple[Array, Array]]:
    """The raw splits of a study, given by its name or by the path of its file; see ``raw_split``."""
    path = find_study(study)
    return raw_split(load_config(path), path)


def raw_split(spec: StudyConfig, study_path: Path) -> dict[str, tuple[Array, Array]]:
    """Raw features (n, d) and original labels (n,) of each split, to check an exported predictor with.

    Raises:
        StudyFileError: the data set or the split is not one.
        DataError: the data are missing or unusable.
    """
    with _disk_errors():
        dataset = find_source(spec.data, study_path, data_dir()).load()
    indices = _indices(spec, study_path, dataset)
    return {part: (dataset.X[rows], dataset.classes[dataset.y[rows]]) for part, rows in indices._asdict().items()}


def split_sizes(split: SplitSpec, n_rows: int, test_from: int | None, study_path: Path) -> Sizes:
    """How many rows each split has. Fractions are of all rows, and use them all where they add up to 1.

    Raises:
        StudyFileError: there are too few rows.
    """
    sizes = _count_rows(split, n_rows)
    counts = ", ".join(f"{part} = {size}" for part, size in sizes._asdict().items())
    problem = f"{study_path}: data.split: {counts} rows"
    if min(sizes) < 1:
        raise StudyFileError(f"{problem} of {n_rows}; at least 1 each is allowed")
    if test_from is None and sum(sizes) > n_rows:
        raise StudyFileError(f"{problem}; at most {n_rows} together are allowed")
    if test_from is not None and (sizes.train + sizes.validation > test_from or sizes.test > n_rows - test_from):
        raise StudyFileError(
            f"{problem}; at most {test_from} together are allowed for train and validation, "
            f"and {n_rows - test_from} for test, which comes from the official test set"
        )
    return sizes


def _count_rows(split: SplitSpec, n_rows: int) -> Sizes:
    parts = (split.train, split.validation, split.test)
    if isinstance(split.train, int):
        return Sizes(*map(int, parts))
    ends = np.rint(np.cumsum(parts) * n_rows).astype(int)
    return Sizes(*np.diff(ends, prepend=0).tolist())


def split_indices(y: NDArray[np.intp], sizes: Sizes, seed: int, test_from: int | None = None) -> Indices:
    """Draw the rows of each split at random, of each class its share where every class is large enough.

    The test split is drawn first, so that it stays the same when validation rows become training rows; where
    ``test_from`` is given, from the rows from there on, and the others from the rows before.
    """
    rows = np.arange(len(y))
    if test_from is None:
        test, rest = _draw(rows, y, sizes.test, seed)
    else:
        test, _ = _draw(rows[test_from:], y, sizes.test, seed)
        rest = rows[:test_from]
    validation, rest = _draw(rest, y, sizes.validation, seed)
    train, _ = _draw(rest, y, sizes.train, seed)
    return Indices(train, validation, test)


def _draw(rows: NDArray[np.intp], y: NDArray[np.intp], size: int, seed: int) -> tuple[NDArray[np.intp], ...]:
    """``size`` of the rows, and the rest of them."""
    from sklearn.model_selection import train_test_split  # workers load prepared data without it

    if size == len(rows):
        return rows, rows[:0]
    counts = np.unique(y[rows], return_counts=True)[1]
    stratified = counts.min() >= 2 and min(size, len(rows) - size) >= len(counts)
    taken, rest = train_test_split(rows, train_size=size, random_state=seed, stratify=y[rows] if stratified else None)
    return taken, rest


def _indices(spec: StudyConfig, study_path: Path, dataset: Dataset) -> Indices:
    sizes = split_sizes(spec.data.split, len(dataset.y), dataset.test_from, study_path)
    return split_indices(dataset.y, sizes, spec.study.seed, dataset.test_from)


def _key(spec: StudyConfig, name: str, fingerprint: str) -> str:
    """Of all that the prepared arrays depend on: the same key, the same arrays."""
    settings = spec.data.model_dump(mode="json", exclude={"dataset"}) | {
        "scale": resolve_scale(spec.data),
        "seed": spec.study.seed,
        "name": name,
        "fingerprint": fingerprint,
        "format": _FORMAT,
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _prepare(
    spec: StudyConfig,
    study_path: Path,
    source: Source,
    fingerprint: str,
    folder: Path,
    announce: Callable[[str], None],
) -> None:
    dataset = source.load()
    if source.fingerprint() != fingerprint:
        raise DataError(f"{source.name}: changed while it was read; start again")
    indices = _indices(spec, study_path, dataset)
    X_train = _train_rows(spec, dataset.X, indices.train)
    _check_not_constant(X_train, source.name)
    announce(f"preparing {source.name}: scaling and PCA, once a machine")
    preprocessor = fit_preprocessor(X_train, resolve_scale(spec.data), spec.data.pca)
    about = {
        "name": source.name,
        "fingerprint": fingerprint,
        "classes": dataset.classes,
        "features": dataset.X.shape[1],
        "pca": spec.data.pca,
        "sizes": tuple(map(len, indices)),
        "preprocessor": preprocessor.arrays(),
    }
    with atomic_folder(folder) as partial:
        _dump(about, partial, "about")
        _dump((_train_inputs(X_train, preprocessor, spec.data.shift), dataset.y[indices.train]), partial, "train")
        for part, rows in (("validation", indices.validation), ("test", indices.test)):
            _dump((_with_constant(preprocessor.transform(dataset.X[rows])), dataset.y[rows]), partial, part)


def _train_rows(spec: StudyConfig, X: Array, rows: NDArray[np.intp]) -> Array:
    """The raw training rows, and behind them their mirror images where the study wants them."""
    if not spec.data.mirror:
        return X[rows]
    both = np.empty((2 * len(rows), X.shape[1]), X.dtype)
    np.take(X, rows, axis=0, out=both[: len(rows)], mode="clip")
    both[len(rows) :] = mirrored(both[: len(rows)])
    return both


def _train_inputs(X: Array, preprocessor: Preprocessor, shift: int) -> NDArray[np.float32]:
    """The inputs of the rows that the map was fitted to, and behind them those of the shifted images.

    Shifted images are not fitted to: five times the memory, for nearly the same components.
    """
    moves = [(0, 0), *((shift, 0), (-shift, 0), (0, shift), (0, -shift))][: 5 if shift else 1]
    inputs = np.ones((len(moves) * len(X), preprocessor.n_outputs + 1), np.float32)
    for i, (down, right) in enumerate(moves):
        moved = shifted(X, down, right) if i else X
        inputs[i * len(X) : (i + 1) * len(X), :-1] = preprocessor.transform(moved)
    return inputs


def _with_constant(X: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.hstack([X, np.ones((len(X), 1), np.float32)])


def _check_not_constant(X: Array, name: str) -> None:
    spread = X.max(axis=0).astype(np.float64) - X.min(axis=0)
    if spread.max() < _LEAST_SPREAD:
        raise DataError(f"{name}: every feature is constant in the {len(X)} training rows; nothing can be learned")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that gets its name when it is whole; what a killed process left is removed."""
    for left in folder.parent.glob("*.part"):
        shutil.rmtree(left)
    partial = folder.with_name(f"{folder.name}.part")
    partial.mkdir(mode=0o700)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dump(content: Any, folder: Path, part: str) -> None:
    with (folder / f"{part}.joblib").open("wb") as file:
        joblib.dump(content, file)
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave a whole folder of empty files


def _load(folder: Path, part: str, mmap_mode: str | None = None) -> Any:
    with _disk_errors():
        _check_trusted(folder.parent, folder)
        return joblib.load(folder / f"{part}.joblib", mmap_mode)


def _load_split(folder: Path, part: str) -> Split:
    X, y = _load(folder, part, "r")
    return Split(np.asarray(X), np.asarray(y))  # plain views: slicing a memmap is slow


def _check_trusted(*folders: Path) -> None:
    """joblib unpickles, and a pickle can run anything: only this user, or root, may have written it."""
    if sys.platform == "win32":
        return
    for path in folders:
        status = path.stat()
        if status.st_uid not in (os.geteuid(), 0):
            raise DataError(f"{path}: owned by another user, so not loaded; remove it or set HPO_DATA_DIR")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise DataError(f"{path}: others may write into it, so not loaded; chmod go-w it, or remove it")


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or data_dir()}: {error.strerror or error}") from None
