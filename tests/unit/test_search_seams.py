"""Second implementations of a sampler and of a pruner, which hpo.search runs like its own."""

from collections.abc import Container, Iterator, Sequence

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial

from hpo.search.pruning import pruners
from hpo.search.pruning.pruners import make_pruner
from hpo.search.sampling import samplers
from hpo.search.sampling.samplers import Sampler, make_sampler, propose
from hpo.search.space import Params, Space
from hpo.testing.pruners import PrunerContract, SimulatedStudy
from hpo.testing.samplers import SamplerContract

SPACE = {"size": IntDistribution(-5, 5), "kind": CategoricalDistribution(["a", "b"])}
POINTS = [{"size": size, "kind": "ab"[size % 2]} for size in range(-5, 6)]


class FixedListSampler(Sampler):
    """Points of a list in their order."""

    def __init__(self, points: Sequence[Params]) -> None:
        self._points = points

    def propose(self, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Iterator[Params]:
        return iter(self._points)

    def n_points(self, space: Space, seed: int) -> float:
        return len(self._points)


class ThresholdPruner:
    """Pruner of trials whose value is below a threshold at one step."""

    pauses = False

    def __init__(self, step: int, threshold: float) -> None:
        self._step = step
        self._threshold = threshold

    def decision_steps(self) -> frozenset[int]:
        return frozenset([self._step])

    def should_continue(self, trials: Sequence[FrozenTrial], number: int) -> bool:
        return trials[number].intermediate_values.get(self._step, self._threshold) >= self._threshold

    def next_promotion(
        self, trials: Sequence[FrozenTrial], paused: Container[int], min_promoted: int = 0
    ) -> int | None:
        return None


class TestFixedListSampler(SamplerContract):
    n_trials = len(POINTS)

    def make_sampler(self) -> FixedListSampler:
        return FixedListSampler(POINTS)

    def make_space(self) -> Space:
        return SPACE

    make_finite_space = make_space


class TestThresholdPruner(PrunerContract):
    def make_pruner(self) -> ThresholdPruner:
        return ThresholdPruner(10, 0.05)


def test_sampler_of_registry_proposes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samplers.SAMPLERS, "list", lambda _: FixedListSampler(POINTS))
    assert propose(make_sampler("list"), SPACE, [], 0) == POINTS[0]


def test_pruner_of_registry_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pruners.PRUNERS, "threshold", lambda max_steps, minimizes: ThresholdPruner(max_steps // 2, 3.0))
    pruner = make_pruner("threshold", 20)
    trials = SimulatedStudy(pruner, lambda number, step: number, max_steps=20, budget=6).run(n_workers=2)
    assert [trial.last_step for trial in trials] == [10, 10, 10, 20, 20, 20]
