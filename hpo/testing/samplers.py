"""Contract of a sampler, as tests that an implementation inherits."""

import copy
from collections.abc import Sequence
from itertools import islice

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import StudyFileError
from hpo.search.sampling.samplers import Sampler, propose
from hpo.search.sampling.tpe import running_trial
from hpo.search.space import Params, Space, params_key, to_unit

# States of consecutive trials. A running trial with a report is paused.
_STATES = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.COMPLETE,
    TrialState.RUNNING,
    TrialState.COMPLETE,
    TrialState.FAIL,
)


class SamplerContract:
    """Tests of the protocol ``Sampler``. A subclass provides ``make_sampler``.

    Attributes:
        n_trials: The number of trials of a test, at most the number of points of the sampler.
        seed: The seed of the study.
    """

    n_trials = 25
    seed = 3

    def make_sampler(self) -> Sampler:
        """Return a sampler in its initial state."""
        raise NotImplementedError

    def make_space(self) -> Space:
        """Return the space of the tests, with all kinds of parameters."""
        return {
            "balance": FloatDistribution(-10.0, 10.0),
            "rate": FloatDistribution(1e-4, 1e-1, log=True),
            "offset": IntDistribution(-3, 3),
            "size": IntDistribution(1, 100, log=True),
            "kind": CategoricalDistribution(["a", "b", "c"]),
            "constant": FloatDistribution(0.5, 0.5),
        }

    def make_finite_space(self) -> Space:
        """Return a space with few points, of which each gets a trial."""
        return {"size": IntDistribution(-1, 2), "kind": CategoricalDistribution([0.0, 0.9])}

    def test_proposal_is_point_of_space(self) -> None:
        """Check the names, the values and the types of the parameters."""
        space = self.make_space()
        for trial in self._run(space, self.n_trials):
            assert list(trial.params) == list(space)
            for name, value in trial.params.items():
                assert _contains(space[name], value), (name, value)

    def test_trials_have_distinct_params(self) -> None:
        """Check that no two trials are alike."""
        trials = self._run(self.make_space(), self.n_trials)
        assert len({params_key(trial.params) for trial in trials}) == self.n_trials

    def test_finite_space_is_exhausted(self) -> None:
        """Check that each point gets one trial, and no more are allowed."""
        space, sampler = self.make_finite_space(), self.make_sampler()
        count = round(sampler.n_points(space, self.seed))
        trials = self._run(space, count)
        assert len({params_key(trial.params) for trial in trials}) == count
        with pytest.raises(StudyFileError, match=f"only {count} combinations, but {count + 1} trials"):
            propose(sampler, space, trials, self.seed)

    def test_proposal_is_function_of_arguments(self) -> None:
        """Check that earlier calls of a sampler do not change its proposals."""
        space, sampler = self.make_space(), self.make_sampler()
        trials = self._run(space, self.n_trials)
        for number in range(self.n_trials):
            self._first_candidate(sampler, space, trials[:number])
            proposed = self._first_candidate(sampler, space, trials[: number // 2])
            assert proposed == self._first_candidate(self.make_sampler(), space, trials[: number // 2])

    def test_trials_stay_unchanged(self) -> None:
        """Check that the sampler does not change the trials, which are shared."""
        space = self.make_space()
        trials = self._run(space, self.n_trials - 1)
        before = copy.deepcopy(trials)
        propose(self.make_sampler(), space, trials, self.seed)
        assert trials == before

    @pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL])
    def test_trials_without_report_are_accepted(self, state: TrialState) -> None:
        """Check a study in which no trial has reported a value."""
        space = self.make_space()
        trials = [
            _make_trial(number, trial.params, space, state, None)
            for number, trial in enumerate(self._run(space, self.n_trials - 1))
        ]
        assert list(propose(self.make_sampler(), space, trials, self.seed)) == list(space)

    def test_negative_values_are_accepted(self) -> None:
        """Check a study of which all values are negative."""
        space = self.make_space()
        trials = self._run(space, self.n_trials, offset=-100.0)
        assert len(trials) == self.n_trials

    def _run(self, space: Space, count: int, offset: float = 0.0) -> list[FrozenTrial]:
        """Return the trials of a study.

        Their values decrease with the distance from the first corner of the space.
        """
        sampler = self.make_sampler()
        trials: list[FrozenTrial] = []
        for number in range(count):
            params = propose(sampler, space, trials, self.seed)
            value = offset - sum(to_unit(space[name], value) for name, value in params.items())
            trials.append(_make_trial(number, params, space, _STATES[number % len(_STATES)], value))
        return trials

    def _first_candidate(self, sampler: Sampler, space: Space, trials: Sequence[FrozenTrial]) -> list[Params]:
        return list(islice(sampler.propose(space, trials, self.seed), 1))


def _contains(distribution: BaseDistribution, value: object) -> bool:
    """Return whether a distribution has this value as a plain Python type."""
    match distribution:
        case CategoricalDistribution():
            return (type(value), value) in [(type(choice), choice) for choice in distribution.choices]
        case IntDistribution():
            return type(value) is int and distribution.low <= value <= distribution.high
        case FloatDistribution():
            return type(value) is float and distribution.low <= value <= distribution.high
    raise TypeError(distribution)


def _make_trial(number: int, params: Params, space: Space, state: TrialState, value: float | None) -> FrozenTrial:
    trial = running_trial(number, params, space)
    trial.state = state
    if value is not None:
        trial.intermediate_values = {1: value - 1, 3: value}
        if state in (TrialState.COMPLETE, TrialState.PRUNED):
            trial.value = value
    return trial
