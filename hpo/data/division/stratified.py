"""Random division that keeps the shares of the classes."""

from collections.abc import Iterator

import numpy as np

from hpo.data.division.base import Array, Drawn, Rows, seeds_of_repeats


class Stratified:
    """Random division that keeps the shares of the classes, and a record of the draws that could not.

    Args:
        classes: The class of each row; None for purely random draws.
        seed: The seed.

    Attributes:
        is_partial: Whether a draw kept the shares of some classes only.
        notes: The draws that kept no shares, for messages.
    """

    def __init__(self, classes: Array | None, seed: int) -> None:
        self._classes = classes
        self._seed = seed
        self.is_partial = False
        self.notes: list[str] = []

    def draw(self, rows: Rows, size: int, min_left: int = 0) -> Drawn:
        """Draw ``size`` random rows."""
        # Workers load prepared data without scikit-learn.
        from sklearn.model_selection import train_test_split

        if size == len(rows):
            return Drawn(rows, rows[:0])
        stratify = self._classes_of(rows, min(size, len(rows) - size))
        return Drawn(*train_test_split(rows, train_size=size, random_state=self._seed, stratify=stratify))

    def folds(self, rows: Rows, n_folds: int, repeats: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield the training and the validation rows of each fold."""
        from sklearn.model_selection import KFold, StratifiedKFold

        fold_type = KFold if self._classes is None else StratifiedKFold
        classes = None if self._classes is None else self._classes[rows]
        for seed in seeds_of_repeats(self._seed, repeats):
            folds = fold_type(n_folds, shuffle=True, random_state=seed)
            for train, validation in folds.split(rows, classes):
                yield rows[train], rows[validation]

    def _classes_of(self, rows: Rows, smaller_size: int) -> Array | None:
        """Return the classes of rows whose smaller part of a draw has this size.

        A row whose class is too small for both parts counts as a row of the largest class.
        """
        if self._classes is None:
            return None
        classes, inverse, counts = np.unique(self._classes[rows], return_inverse=True, return_counts=True)
        large = counts >= 2
        if smaller_size < large.sum() or not large.any():
            self._note(f"splits are random, not stratified: {smaller_size} rows cannot have {len(classes)} classes")
            return None
        if large.all():
            return self._classes[rows]
        self.is_partial = True
        merged: Array = np.where(large[inverse], inverse, counts.argmax())
        return merged

    def _note(self, note: str) -> None:
        if not self.notes:
            self.notes.append(note)
