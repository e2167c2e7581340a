"""The random grid that hpo began with: some random values of each hyperparameter, and trials drawn from their product.

No two trials are drawn the same, and which one a number gets is known without those before it.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution

from hpo.config.study import Parameter
from hpo.search.space import Space, at, size, value

AXIS = 20  # values of a hyperparameter, at most

_ROUNDS = 8

Axes = tuple[tuple[Parameter, ...], ...]


def axes(space: Space, seed: int) -> Axes:
    """The values of each hyperparameter in ascending order: all that it has, or 20 random ones of more."""
    return _axes(tuple(space.values()), seed)


def grid_size(space: Space, seed: int) -> int:
    """How many points the grid has."""
    return math.prod(map(len, axes(space, seed)))


def grid_point(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The point that is drawn as number ``number``, counted from 0 and less than there are points."""
    values = axes(space, seed)
    index = permuted(number, math.prod(map(len, values)), seed)
    point = {}
    for name, axis in zip(space, values, strict=True):
        index, position = divmod(index, len(axis))
        point[name] = axis[position]
    return point


def permuted(index: int, total: int, seed: int) -> int:
    """Where a permutation of ``range(total)``, drawn by the seed, has this index; in no memory.

    It is a Feistel network on the next even number of bits. What it sends beyond the end is sent on: a permutation
    comes back.
    """
    half = (total.bit_length() + 1) // 2
    while True:
        index = _feistel(index, half, seed)
        if index < total:
            return index


def _feistel(index: int, half: int, seed: int) -> int:
    mask = (1 << half) - 1
    left, right = index >> half, index & mask
    for turn in range(_ROUNDS):
        digest = blake2b(f"{seed} {turn} {right}".encode()).digest()
        left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
    return left << half | right


@lru_cache(maxsize=8)
def _axes(distributions: Sequence[BaseDistribution], seed: int) -> Axes:
    return tuple(_axis(distribution, seed, position) for position, distribution in enumerate(distributions))


def _axis(distribution: BaseDistribution, seed: int, position: int) -> tuple[Parameter, ...]:
    if size(distribution) <= AXIS:
        return tuple(value(distribution, index) for index in range(size(distribution)))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(position, AXIS)))
    drawn: set[Parameter] = set()
    while len(drawn) < AXIS:
        drawn.add(at(distribution, float(rng.random())))
    return tuple(sorted(drawn))
