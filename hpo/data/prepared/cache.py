"""Cache of prepared data: split, scaled and reduced by PCA once on each machine.

    <data folder>/prepared/<key>/about.json
    <data folder>/prepared/<key>/{classes,mean,scale,components,encoder}.npy
    <data folder>/prepared/<key>/{train,validation,test}_{X,y}.npy

Each fold of a cross-validation has its own splits, and a preprocessing that is fitted to its training split alone. The
names of the files of the second fold begin with ``fold1.``, and so on. Workers map the arrays into memory, so that all
workers share one copy. The test split is in separate files, which only the export reads. No file is a pickle, so that
another user who replaces a file cannot execute code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from hpo.config.study import DataConfig, StudyConfig
from hpo.data.augmentation import ImageShape, shifted_copies, take_with_mirrored
from hpo.data.checks import describe
from hpo.data.division.splits import (
    Draw,
    EncodedLabels,
    Split,
    SplitIndices,
    SplitSizes,
    draw_splits,
    encode_labels,
    join_splits,
    named_task,
)
from hpo.data.leaks import describe_leaks
from hpo.data.prepared.folders import atomic_folder, check_trusted, data_dir, open_trusted, translate_disk_errors
from hpo.data.prepared.preprocessing import Preprocessor, Scale, block_rows
from hpo.data.prepared.scaling import NamedScale, Scaling, choose_scaling
from hpo.data.sources import Array, Dataset, DataSource, data_config, find_source, find_source_type
from hpo.data.task import TASKS, Task
from hpo.errors import DataError, MissingDataError
from hpo.utils.npz import HEADER_ERRORS

if TYPE_CHECKING:
    from hpo.data.tables.encoder import TableEncoder

# Version of the files in a prepared folder. Another number makes all folders obsolete.
_FORMAT = 8

_ABOUT = "about.json"
_PREPROCESSOR = ("mean", "scale", "components", "encoder")
_SPLITS = ("train", "validation", "test")
_REPAIR = "remove this folder, and start again to prepare the data anew"

# The square of this spread is still a float32.
_MIN_SPREAD = 1e-15

_SHIFTED_COPIES = 4


@dataclass(frozen=True, eq=False)
class Fold:
    """Training and validation split, with the preprocessing that is fitted to the training split.

    Attributes:
        files: The files of the fold.
        preprocessor: The map from raw features to model inputs.
        train: The training split, memory-mapped and read-only.
        validation: The validation split, memory-mapped and read-only.
    """

    files: "_FoldFiles"
    preprocessor: Preprocessor
    train: Split
    validation: Split

    def load_test(self, rows: int) -> Split:
        """Load the inputs of the test split by this preprocessing."""
        return _load_split(self.files, "test", rows, self.preprocessor.n_outputs)


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Prepared data of a study.

    Attributes:
        folder: The folder of the arrays.
        name: The name of the data set.
        fingerprint: The SHA-256 of the raw data. If an earlier version of hpo reads the data in another way, a colon
            and a description of the difference follow, so that no study continues with data that are read differently.
        task: The task.
        classes: The classes, empty without classes.
        notes: The guesses about the data, in lines for the user.
        features: The number of raw features.
        pca: The share of the variance that the study asks for; 0 for no PCA.
        sizes: The number of rows in each split of the first fold.
        feature_names: The names of the raw features; None if they have none.
        folds: The folds of the cross-validation; a single one without cross-validation.
    """

    folder: Path
    name: str
    fingerprint: str
    task: Task
    classes: Array
    notes: tuple[str, ...]
    features: int
    pca: float
    sizes: SplitSizes
    feature_names: tuple[str, ...] | None
    folds: tuple[Fold, ...]

    @property
    def components(self) -> int | None:
        """Number of components that the PCA of the first fold keeps; None without PCA."""
        return self.folds[0].preprocessor.n_outputs if self.pca else None

    def load_test(self) -> tuple[Split, ...]:
        """Load the test split by the preprocessing of each fold.

        Only the export uses it, so that no choice depends on it.

        Raises:
            DataError: if a file is missing or damaged, or if another user can have written it.
        """
        return tuple(fold.load_test(self.sizes.test) for fold in self.folds)


def prepare(
    config: StudyConfig, announce: Callable[[str], None] = lambda _: None, *, refit: bool = False
) -> PreparedData:
    """Load the prepared data of a study, and compute them first if they are missing.

    The first process computes them under a lock. Other processes wait for it.

    Args:
        config: The study.
        announce: A function that shows a message. It is called before the computation, which can take a minute, and
            after the raw data are found to be valid.
        refit: Whether a single training split has the rows of all training and validation splits, to train the best
            trial once more. Its validation split is then empty.

    Raises:
        StudyFileError: if the data set or the split is not allowed.
        DataError: if the data are missing or unusable, or if the data folder cannot be written.
    """
    with translate_disk_errors():
        source = find_source(config)
        fingerprint = source.fingerprint()
        parent = data_dir() / "prepared"
        folder = parent / _key(config, source.name, fingerprint, refit=refit)
        n_folds = 1 if refit else _count_folds(config)
        if not _is_complete(folder, n_folds):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_trusted(parent)
            # All data sets share a lock, because two preparations at once could need more memory than there is.
            with FileLock(parent / ".lock"):
                if not _is_complete(folder, n_folds):
                    if folder.is_dir():
                        # Something has removed a part of the files, such as a cleaner of old files.
                        shutil.rmtree(folder)
                    _Preparation(config, source, fingerprint, refit).write(folder, announce)
    return load_prepared(folder)


def prepare_again(config: StudyConfig, folder: Path, fingerprint: str) -> PreparedData:
    """Load prepared data from their folder, and prepare them again if files have been removed.

    Raises:
        DataError: if the raw data are missing, too, or have changed.
    """
    if _is_complete(folder, _count_folds(config)):
        return load_prepared(folder)
    try:
        data = prepare(config)
    except MissingDataError as error:
        problem = f"{folder}: the prepared data were removed, and they cannot be prepared again"
        raise MissingDataError(f"{problem}: {error}; put the data back") from None
    if data.fingerprint != fingerprint:
        raise DataError(f"{folder}: the prepared data were removed, and {data.name} has changed; put the data back")
    return data


def find_prepared(config: StudyConfig, fingerprint: str) -> PreparedData | None:
    """Load the prepared data of a study whose raw data are missing.

    Args:
        config: The study.
        fingerprint: The fingerprint of its prepared data.

    Returns:
        The prepared data, None if this machine has none.

    Raises:
        DataError: if another user can have written them.
    """
    folder = data_dir() / "prepared" / _key(config, data_name(config), sha256_of(fingerprint))
    return load_prepared(folder) if _is_complete(folder, _count_folds(config)) else None


def sha256_of(fingerprint: str) -> str:
    """Return the SHA-256 of the raw data in the fingerprint of prepared data."""
    return fingerprint.partition(":")[0]


def data_name(config: StudyConfig) -> str:
    """Return the name of a study's data set. The file may be missing."""
    return Path(data_config(config).dataset).name


def load_prepared(folder: Path) -> PreparedData:
    """Load prepared data from their folder.

    Raises:
        DataError: if the folder is missing or damaged, or if another user can have written it.
    """
    with translate_disk_errors():
        check_trusted(folder.parent, folder)
        with _damage_reported(folder):
            about = _load_about(folder)
            names = about["feature_names"]
            return PreparedData(
                folder=folder,
                name=about["name"],
                fingerprint=about["fingerprint"],
                task=TASKS[about["task"]],
                classes=np.array(_load_array(folder / "classes.npy")),
                features=about["features"],
                pca=about["pca"],
                notes=tuple(about["notes"]),
                sizes=SplitSizes(*about["folds"][0]),
                feature_names=None if names is None else tuple(names),
                folds=tuple(
                    _load_fold(_FoldFiles(folder, number), SplitSizes(*sizes), is_encoded=about["encoded"])
                    for number, sizes in enumerate(about["folds"])
                ),
            )


class _FoldFiles(NamedTuple):
    """Paths of the files of a fold."""

    folder: Path
    number: int

    def path(self, name: str) -> Path:
        """Return the path of an array."""
        return self.folder / (f"fold{self.number}.{name}.npy" if self.number else f"{name}.npy")


def _load_fold(files: _FoldFiles, sizes: SplitSizes, *, is_encoded: bool) -> Fold:
    paths = {name: files.path(name) for name in _PREPROCESSOR}
    arrays = {name: np.array(_load_array(path)) for name, path in paths.items() if path.exists()}
    if is_encoded != ("encoder" in arrays):
        raise ValueError("the encoder is missing")
    preprocessor = Preprocessor.from_arrays(arrays)
    return Fold(
        files,
        preprocessor,
        _load_split(files, "train", sizes.train, preprocessor.n_outputs),
        _load_split(files, "validation", sizes.validation, preprocessor.n_outputs),
    )


def _is_complete(folder: Path, n_folds: int) -> bool:
    """Return whether all files of prepared data are in their folder."""
    names = ["mean", "scale", *(f"{split}_{a}" for split in _SPLITS for a in "Xy")]
    paths = [folder / _ABOUT, folder / "classes.npy"]
    paths += [_FoldFiles(folder, number).path(name) for number in range(n_folds) for name in names]
    return all(path.is_file() for path in paths)


def _count_folds(config: StudyConfig) -> int:
    data = data_config(config)
    return 1 if data.folds is None else data.folds * data.repeats


def _key(config: StudyConfig, name: str, fingerprint: str, *, refit: bool = False) -> str:
    """Return a hash of everything that the prepared arrays depend on."""
    data = data_config(config)
    settings = data.model_dump(mode="json", exclude={"dataset"}) | {
        "scale": _scale(config),
        "named_task": named_task(config),
        "seed": config.study.seed,
        "name": name,
        "fingerprint": fingerprint,
        "format": _FORMAT,
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
        **({"refit": True} if refit else {}),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _scale(config: StudyConfig) -> NamedScale:
    return data_config(config).scale or find_source_type(config).default_scale


@dataclass(frozen=True)
class _Preparation:
    """Computation of the prepared data of a study."""

    config: StudyConfig
    source: DataSource
    fingerprint: str
    refit: bool

    @property
    def _data(self) -> DataConfig:
        return data_config(self.config)

    @property
    def _image_shape(self) -> ImageShape:
        shape = self.source.image_shape
        assert shape is not None, "find_source refuses augmentation of other data"
        return shape

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Compute the prepared data and write their folder."""
        dataset = self.source.load()
        if self.source.fingerprint() != self.fingerprint:
            raise DataError(f"{self.source.name}: the data changed while they were read; start again")
        labels = encode_labels(self.config, dataset)
        draw = draw_splits(self.config, dataset, labels)
        if self.refit:
            draw = draw._replace(folds=(join_splits(draw.folds),))
        for indices in draw.folds:
            _check_not_constant(dataset.X, indices.train, self.source.name)
        scaling = self._choose_scaling(dataset)
        announce(f"preparing {self.source.name}: scaling and PCA, once on this machine")
        with atomic_folder(folder) as partial:
            _write(partial / _ABOUT, json.dumps(self._about(dataset, labels, draw, scaling)).encode())
            _write_array(partial / "classes.npy", labels.classes)
            for number, indices in enumerate(draw.folds):
                self._write_fold(_FoldFiles(partial, number), dataset, labels, indices, scaling.scale)

    def _choose_scaling(self, dataset: Dataset) -> Scaling:
        # The encoded columns of a table with text or gaps have different units.
        scale = _scale(self.config)
        is_encoded = dataset.schema is not None and scale == "auto"
        return Scaling("feature") if is_encoded else choose_scaling(scale, dataset.X)

    def _write_fold(
        self, files: _FoldFiles, dataset: Dataset, labels: EncodedLabels, indices: SplitIndices, scale: Scale
    ) -> None:
        """Fit the preprocessing to the training rows of a fold, and write its inputs."""
        X, y = dataset.X, labels.y
        encoder, X_train = self._fit_encoder(dataset, labels, indices.train)
        preprocessor = Preprocessor.fit(X_train, scale, self._data.pca)
        self._write_train(files, X_train, preprocessor)
        if encoder is not None:
            preprocessor = preprocessor.with_encoder(encoder)
        for name, array in preprocessor.arrays().items():
            _write_array(files.path(name), array)
        for name, rows in (("validation", indices.validation), ("test", indices.test)):
            _write_inputs(files.path(f"{name}_X"), X[rows], preprocessor)
        for name, rows in zip(_SPLITS, indices, strict=True):
            _write_array(files.path(f"{name}_y"), y[rows])

    def _fit_encoder(
        self, dataset: Dataset, labels: EncodedLabels, rows: NDArray[np.intp]
    ) -> tuple["TableEncoder | None", Any]:
        """Return the encoder of a table that is not plain numbers, and the encoded training rows."""
        if dataset.schema is None:
            return None, self._rows_to_fit(dataset.X, rows)
        from hpo.data.tables.encoder import TableEncoder

        task, seed = labels.task.name, self.config.study.seed
        return TableEncoder.fit(dataset.schema, dataset.X, rows, labels.y[rows], task=task, seed=seed)

    def _about(self, dataset: Dataset, labels: EncodedLabels, draw: Draw, scaling: Scaling) -> dict[str, Any]:
        reading = (*dataset.reading, *draw.reading, *scaling.reading)
        leaks = describe_leaks(dataset, labels.y, labels.classes, draw.folds[0].train)
        return {
            "name": self.source.name,
            "task": labels.task.name,
            "fingerprint": ":".join(filter(None, [self.fingerprint, ", ".join(reading)])),
            "notes": (*describe(dataset, labels.y, labels.classes), *leaks, *draw.notes, *scaling.notes),
            "features": dataset.X.shape[1],
            "feature_names": dataset.feature_names,
            "encoded": dataset.schema is not None,
            "pca": self._data.pca,
            "folds": [tuple(map(len, indices)) for indices in draw.folds],
        }

    def _rows_to_fit(self, X: Array, rows: NDArray[np.intp]) -> Array:
        """Return the raw training rows, followed by their mirror images if the study asks for them."""
        return take_with_mirrored(X, rows, self._image_shape) if self._data.mirror else X[rows]

    def _write_train(self, files: _FoldFiles, X: Any, preprocessor: Preprocessor) -> None:
        """Write the inputs of the fitted rows, followed by the inputs of their shifted copies.

        The preprocessor is not fitted to shifted copies, because that takes five times the memory for nearly the same
        components.
        """
        moved = shifted_copies(X, self._image_shape, self._data.shift) if self._data.shift else ()
        copies = 1 + (_SHIFTED_COPIES if self._data.shift else 0)
        _write_inputs(files.path("train_X"), X, preprocessor, moved, n_rows=copies * len(X))


def _write_inputs(
    path: Path, X: Any, preprocessor: Preprocessor, copies: Iterable[Any] = (), n_rows: int | None = None
) -> None:
    """Write the inputs (n, k + 1) of raw rows and of copies of them, with the constant in the last column.

    The rows are written block by block, because all inputs of a wide table would need more memory than the table.
    """
    shape = (len(X) if n_rows is None else n_rows, preprocessor.n_outputs + 1)
    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    n_together = block_rows(shape[1])
    with _durable(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in chain([X], copies):
            # The rows that are transformed together decide the last bits of the inputs.
            for start in range(0, len(rows), n_together):
                block = rows[start : start + n_together]
                inputs = np.ones((len(block), shape[1]), np.float32)
                preprocessor.transform(block, out=inputs[:, :-1])
                file.write(inputs.data)


def _check_not_constant(X: Array, rows: NDArray[np.intp], name: str) -> None:
    n_together = block_rows(X.shape[1])
    blocks = [rows[start : start + n_together] for start in range(0, len(rows), n_together)]
    ends = [(X[block].min(axis=0), X[block].max(axis=0)) for block in blocks]
    lowest, highest = (np.array(values) for values in zip(*ends, strict=True))
    spread = highest.max(axis=0).astype(np.float64) - lowest.min(axis=0)
    # A column with missing values varies.
    if not np.isnan(spread).any() and spread.max() < _MIN_SPREAD:
        problem = f"every feature is constant in the {len(rows)} training rows"
        raise DataError(f"{name}: {problem}; nothing can be learned; add features that vary")


def _write_array(path: Path, array: Array) -> None:
    with _durable(path) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _write(path: Path, content: bytes) -> None:
    with _durable(path) as file:
        file.write(content)


@contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        yield file
        file.flush()
        # Without fsync, a power failure can leave a complete folder of empty files.
        os.fsync(file.fileno())


@contextmanager
def _damage_reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except HEADER_ERRORS:
        raise DataError(f"{folder}: the prepared data are damaged; {_REPAIR}") from None


def _load_about(folder: Path) -> dict[str, Any]:
    with open_trusted(folder / _ABOUT) as file:
        about: dict[str, Any] = json.load(file)
    return about


def _load_array(path: Path) -> Array:
    """Map an array into memory."""
    with open_trusted(path) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{path.name} has an unknown format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError(f"{path.name} holds Python objects")
        # The size is checked by mmap.
        order: Literal["F", "C"] = "F" if fortran_order else "C"
        mapped: Array = np.memmap(file, dtype, "r", file.tell(), shape, order)
    # A plain array over the same memory, because slicing a memmap is slow.
    return np.asarray(mapped)


def _load_split(files: _FoldFiles, name: str, rows: int, n_inputs: int) -> Split:
    with translate_disk_errors(), _damage_reported(files.folder):
        check_trusted(files.folder.parent, files.folder)
        split = Split(_load_array(files.path(f"{name}_X")), _load_array(files.path(f"{name}_y")))
        X, y = split
        if (
            X.dtype != np.float32
            or y.dtype not in (np.intp, np.float64)
            or y.shape != (rows,)
            or X.shape[1:] != (n_inputs + 1,)
        ):
            raise ValueError(f"the shapes of {name} do not fit")
        return split
