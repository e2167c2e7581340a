"""Division of rows by their order in time."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from hpo.data.division.base import Drawn, Rows


class Ordered:
    """Division in which each part has later rows than the parts before it.

    Rows with the same value are in the same part, so the sizes of the parts are as near to the wanted ones as the
    values allow.

    Args:
        ranks: The rank of the value of each row.
    """

    def __init__(self, ranks: Rows) -> None:
        self._ranks = ranks

    def draw(self, rows: Rows, size: int, min_left: int) -> Drawn:
        """Take about ``size`` of the last rows."""
        if size == len(rows):
            return Drawn(rows, rows[:0])
        rows, starts = self._sorted(rows)
        start = _nearest(starts[min_left:], len(rows) - size)
        return Drawn(rows[start:], rows[:start])

    def folds(self, rows: Rows, n_folds: int, repeats: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield the training and the validation rows of each fold.

        The validation rows of a fold follow its training rows, and are training rows of the next fold.
        """
        rows, starts = self._sorted(rows)
        ends = [len(rows)]
        for fold in reversed(range(1, n_folds + 1)):
            # Enough values are left for the folds before it, and for the training rows of the first fold.
            allowed = starts[fold:][starts[fold:] < ends[0]]
            ends.insert(0, _nearest(allowed, round(len(rows) * fold / (n_folds + 1))))
        for start, end in pairwise(ends):
            yield rows[:start], rows[start:end]

    def _sorted(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return rows in their order, and the position of the first row of each value."""
        rows = rows[np.argsort(self._ranks[rows], kind="stable")]
        _, starts = np.unique(self._ranks[rows], return_index=True)
        return rows, starts


def _nearest(positions: Rows, wanted: int) -> int:
    return int(positions[np.abs(positions - wanted).argmin()])
