"""Description of a table's columns in lines: their kinds, categories and gaps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.checks import shorten
from hpo.data.tables.schema import Column, Kind, Schema

_KINDS: tuple[Kind, ...] = ("numeric", "boolean", "categorical", "date")


def describe_columns(schema: Schema, X: NDArray[Any], positions: Sequence[int]) -> tuple[str, ...]:
    """Return a line for each kind with its columns, the number of their categories, and the number of their gaps.

    Args:
        schema: The columns.
        X: The columns as numbers (n, d).
        positions: The positions of the columns in the file.
    """
    gaps = np.isnan(X).sum(axis=0).tolist()
    described: dict[Kind, list[str]] = {kind: [] for kind in _KINDS}
    for column, n_gaps, position in zip(schema.columns, gaps, positions, strict=True):
        described[column.kind].append(_describe(column, n_gaps, position))
    return tuple(f"{len(texts)} {kind}: {shorten(texts)}" for kind, texts in described.items() if texts)


def _describe(column: Column, n_gaps: int, position: int) -> str:
    details = [f"{len(column.levels)} categories"] * (column.kind == "categorical")
    details += [f"{n_gaps} missing"] * bool(n_gaps)
    name = f"column {position + 1}" if column.name is None else column.name
    return f"{name} ({', '.join(details)})" if details else name
