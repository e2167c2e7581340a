"""Training, validation and test split of a data set."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo.config.loader import find_study, load_config
from hpo.config.study import SplitConfig, StudyConfig
from hpo.data.checks import are_decimals, check_classes
from hpo.data.folders import translate_disk_errors
from hpo.data.metrics import METRICS
from hpo.data.sources import Array, Dataset, data_config, find_source
from hpo.data.task import TASKS, Task
from hpo.errors import DataError, StudyFileError


class Split(NamedTuple):
    """Model inputs and targets of one split.

    The last column of the inputs is the constant 1 for the bias. The n examples may be followed by augmented copies of
    all examples in the same order. X then has a multiple of n rows.

    Attributes:
        X: The inputs, float32 (n, k + 1).
        y: The targets (n,): intp indices of the classes, or float64 numbers.
    """

    X: NDArray[np.float32]
    y: Array

    @property
    def features(self) -> NDArray[np.float32]:
        """Inputs (n, k) without augmented copies and without the constant."""
        return self.X[: len(self.y), :-1]


class SplitSizes(NamedTuple):
    """Number of rows in each split."""

    train: int
    validation: int
    test: int


class SplitIndices(NamedTuple):
    """Row numbers of each split."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]


class Draw(NamedTuple):
    """Splits of a data set.

    Attributes:
        folds: The rows of each split in each fold; a single fold without cross-validation.
        notes: The guesses about the splits, for messages.
        reading: The ways in which earlier versions of hpo did not draw the splits.
    """

    folds: tuple[SplitIndices, ...]
    notes: tuple[str, ...]
    reading: tuple[str, ...]


class EncodedLabels(NamedTuple):
    """Labels of a data set as the task encodes them.

    Attributes:
        task: The task.
        y: The targets (n,).
        classes: The classes, empty without classes.
    """

    task: Task
    y: Array
    classes: Array


def load_split(study: str) -> dict[str, tuple[Array, Array]]:
    """Load the raw splits of a study by its name or by the path of its study file.

    Returns:
        Raw features (n, d) and original labels (n,) by "train", "validation" and "test".

    Raises:
        StudyFileError: if the study file is missing or invalid.
        DataError: if the data are missing or unusable.
    """
    return raw_splits(load_config(find_study(study)))


def raw_splits(config: StudyConfig) -> dict[str, tuple[Array, Array]]:
    """Load the raw splits of the first fold of a study, for example to check an exported predictor.

    Returns:
        Raw features (n, d) and original labels (n,) by "train", "validation" and "test".

    Raises:
        StudyFileError: if the data set or the split is not allowed.
        DataError: if the data are missing or unusable.
    """
    with translate_disk_errors():
        dataset = find_source(config).load()
    indices = draw_splits(config, dataset, encode_labels(config, dataset)).folds[0]
    return {name: (dataset.X[rows], dataset.labels[rows]) for name, rows in indices._asdict().items()}


def encode_labels(config: StudyConfig, dataset: Dataset) -> EncodedLabels:
    """Encode the labels of a data set for the task of a study.

    Raises:
        DataError: if the task cannot use the labels, or if there are too many classes.
    """
    task = _find_task(config, dataset)
    try:
        labels = EncodedLabels(task, *task.encode(dataset.labels))
    except ValueError as error:
        raise DataError(f"{dataset.name}: {error}") from None
    if len(labels.classes):
        # An archive has no other labels than y.
        is_chosen = data_config(config).label is not None or not dataset.is_table
        check_classes(dataset, labels.classes, is_chosen, is_task_given=data_config(config).task is not None)
    return labels


def _find_task(config: StudyConfig, dataset: Dataset) -> Task:
    """Return the task of a study: that of the study file, of its metric, or of the labels."""
    if (name := data_config(config).task) is not None:
        return TASKS[name]
    if (metric := METRICS.get(config.study.metric or "")) is not None:
        return TASKS[metric.task]
    return TASKS["regression" if are_decimals(dataset.labels) else "classification"]


def draw_splits(config: StudyConfig, dataset: Dataset, labels: EncodedLabels) -> Draw:
    """Draw the splits of a study from the rows of its data set.

    Raises:
        StudyFileError: if the data set has too few rows.
    """
    n_rows = len(labels.y)
    sizes = split_sizes(config, n_rows, dataset.test_from)
    stratification = Stratification(labels.task.stratify(labels.y))
    indices = _split_rows(n_rows, sizes, config.study.seed, dataset.test_from, stratification)
    unused = n_rows - sum(sizes)
    notes = [
        *[f"{unused} of {n_rows} rows are unused; data.split with fractions that add up to 1.0 uses all"]
        * (unused > 0),
        *stratification.notes,
    ]
    return Draw((indices,), tuple(notes), ("stratified without small classes",) if stratification.is_partial else ())


def split_sizes(config: StudyConfig, n_rows: int, test_from: int | None) -> SplitSizes:
    """Return the number of rows in each split.

    Fractions refer to all rows. They use all rows if they add up to 1.

    Args:
        config: The study, which has the counts or the fractions.
        n_rows: The number of rows of the data set.
        test_from: The first row of the official test set, if there is one.

    Raises:
        StudyFileError: if the data set has too few rows.
    """
    sizes = _count_rows(data_config(config).split, n_rows)
    counts = ", ".join(f"{name} = {size}" for name, size in sizes._asdict().items())
    problem = f"{config.path}: data.split: {counts} rows"
    if min(sizes) < 1:
        raise StudyFileError(f"{problem} of {n_rows}; at least 1 each is required")
    if test_from is None and sum(sizes) > n_rows:
        raise StudyFileError(f"{problem}; at most {n_rows} together are allowed")
    if test_from is not None and (sizes.train + sizes.validation > test_from or sizes.test > n_rows - test_from):
        raise StudyFileError(
            f"{problem}; at most {test_from} together are allowed for train and validation, "
            f"and {n_rows - test_from} for test, because the data set has an official test set"
        )
    return sizes


def _count_rows(split: SplitConfig, n_rows: int) -> SplitSizes:
    sizes = (split.train, split.validation, split.test)
    if isinstance(split.train, int):
        return SplitSizes(*map(int, sizes))
    ends = np.rint(np.cumsum(sizes) * n_rows).astype(int)
    return SplitSizes(*np.diff(ends, prepend=0).tolist())


def split_indices(
    n_rows: int, sizes: SplitSizes, seed: int, test_from: int | None = None, groups: Array | None = None
) -> SplitIndices:
    """Draw the rows of each split at random.

    The test split is drawn first, so that it stays the same if validation rows become training rows.

    Args:
        n_rows: The number of rows of the data set.
        sizes: The number of rows in each split.
        seed: The seed.
        test_from: The first row of the official test set. The test split is drawn from it, the other splits from the
            rows before it.
        groups: The group of each row (n_rows,). Each split has its share of each group that is large enough.
    """
    return _split_rows(n_rows, sizes, seed, test_from, Stratification(groups))


def _split_rows(
    n_rows: int, sizes: SplitSizes, seed: int, test_from: int | None, groups: "Stratification"
) -> SplitIndices:
    rows = np.arange(n_rows)
    if test_from is None:
        test, rest = _draw(rows, groups, sizes.test, seed)
    else:
        test, _ = _draw(rows[test_from:], groups, sizes.test, seed)
        rest = rows[:test_from]
    validation, rest = _draw(rest, groups, sizes.validation, seed)
    train, _ = _draw(rest, groups, sizes.train, seed)
    return SplitIndices(train, validation, test)


class Stratification:
    """Groups whose shares each draw keeps, and a record of the draws that could not.

    Args:
        groups: The group of each row; None for purely random draws.

    Attributes:
        is_partial: Whether a draw kept the shares of some groups only.
        notes: The draws that kept no shares, for messages.
    """

    def __init__(self, groups: Array | None) -> None:
        self._groups = groups
        self.is_partial = False
        self.notes: list[str] = []

    def groups_of(self, rows: NDArray[np.intp], smaller_size: int) -> Array | None:
        """Return the groups of rows whose smaller part of a draw has this size.

        A row whose group is too small for both parts counts as a row of the largest group.
        """
        if self._groups is None:
            return None
        groups, inverse, counts = np.unique(self._groups[rows], return_inverse=True, return_counts=True)
        large = counts >= 2
        if smaller_size < large.sum() or not large.any():
            self._note(f"splits are random, not stratified: {smaller_size} rows cannot have {len(groups)} classes")
            return None
        if large.all():
            return self._groups[rows]
        self.is_partial = True
        merged: Array = np.where(large[inverse], inverse, counts.argmax())
        return merged

    def _note(self, note: str) -> None:
        if not self.notes:
            self.notes.append(note)


def _draw(rows: NDArray[np.intp], groups: Stratification, size: int, seed: int) -> tuple[NDArray[np.intp], ...]:
    """Return ``size`` random rows, and the other rows."""
    # Workers load prepared data without scikit-learn.
    from sklearn.model_selection import train_test_split

    if size == len(rows):
        return rows, rows[:0]
    stratify = groups.groups_of(rows, min(size, len(rows) - size))
    drawn, rest = train_test_split(rows, train_size=size, random_state=seed, stratify=stratify)
    return drawn, rest
