"""Division of rows whose groups stay together."""

from collections.abc import Iterator

import numpy as np

from hpo.data.division.base import Array, Drawn, Rows, seeds_of_repeats

# Number of random draws, of which the best is taken.
_TRIES = 64


class Grouped:
    """Random division in which all rows of a group are in the same part.

    The sizes of the parts, and the shares of the classes in them, are as near to the wanted ones as the groups allow.

    Args:
        groups: The index of the group of each row.
        classes: The class of each row; None without classes.
        seed: The seed.
    """

    def __init__(self, groups: Rows, classes: Array | None, seed: int) -> None:
        self._groups = groups
        self._classes = np.zeros(len(groups), np.intp) if classes is None else classes
        self._is_stratified = classes is not None
        self._seed = seed

    def draw(self, rows: Rows, size: int, min_left: int) -> Drawn:
        """Draw groups with about ``size`` rows."""
        if size == len(rows):
            return Drawn(rows, rows[:0])
        counts = self._counts(rows)
        rng = np.random.default_rng(self._seed)
        draws = [_first_groups(rng.permutation(len(counts)), counts, size, min_left) for _ in range(_TRIES)]
        best = min(draws, key=lambda groups: _distance(counts, groups, size))
        is_drawn = np.isin(np.unique(self._groups[rows], return_inverse=True)[1], best)
        return Drawn(rows[is_drawn], rows[~is_drawn])

    def folds(self, rows: Rows, n_folds: int, repeats: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield the training and the validation rows of each fold."""
        for seed in seeds_of_repeats(self._seed, repeats):
            for train, validation in self._split(rows, n_folds, seed):
                yield rows[train], rows[validation]

    def _split(self, rows: Rows, n_folds: int, seed: int) -> list[tuple[Rows, Rows]]:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

        groups, classes = self._groups[rows], self._classes[rows]
        if self._is_stratified and np.unique(classes, return_counts=True)[1].min() >= n_folds:
            folds = list(StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(rows, classes, groups))
            # It can leave a fold without a group.
            if all(len(validation) for _, validation in folds):
                return folds
        return list(GroupKFold(n_folds, shuffle=True, random_state=seed).split(rows, groups=groups))

    def _counts(self, rows: Rows) -> Array:
        """Return the number of rows of each group and class."""
        _, groups = np.unique(self._groups[rows], return_inverse=True)
        _, classes = np.unique(self._classes[rows], return_inverse=True)
        counts = np.zeros((groups.max() + 1, classes.max() + 1))
        np.add.at(counts, (groups, classes), 1)
        return counts


def _first_groups(order: Rows, counts: Array, size: int, min_left: int) -> Rows:
    """Return the first groups of an order that have about ``size`` rows; ``min_left`` groups are left at least."""
    rows = counts.sum(axis=1)[order].cumsum()[: len(order) - min_left]
    return order[: 1 + int(np.abs(rows - size).argmin())]


def _distance(counts: Array, groups: Rows, size: int) -> float:
    """Return the distance of the class counts of groups from their shares of ``size`` rows."""
    wanted = counts.sum(axis=0) * (size / counts.sum())
    return float(np.abs(counts[groups].sum(axis=0) - wanted).sum())
