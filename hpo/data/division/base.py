"""Protocol of a division of rows."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rows = NDArray[np.intp]


class Drawn(NamedTuple):
    """Rows of a draw, and the other rows."""

    drawn: Rows
    rest: Rows


class Division(Protocol):
    """Division of rows into two parts or into folds."""

    def draw(self, rows: Rows, size: int, min_left: int) -> Drawn:
        """Draw about ``size`` rows.

        Args:
            rows: The rows to draw from.
            size: The number of rows to draw. The same number as there are rows draws all.
            min_left: The number of values of the divided column that the other rows must have at least.
        """
        ...

    def folds(self, rows: Rows, n_folds: int, repeats: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield the training and the validation rows of each fold, all folds of the first repeat first."""
        ...


def seeds_of_repeats(seed: int, repeats: int) -> list[int]:
    """Return a seed for each repeat of a cross-validation."""
    return [int(state) for state in np.random.SeedSequence(seed).generate_state(repeats)]
