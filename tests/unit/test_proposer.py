"""Parameters of a trial that was allocated without parameters: enqueued ones first, then the sampler's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from search_trials import NOT_LEARNING, make_random_trials, make_trial

from hpo.search.proposer import Proposal, Proposer
from hpo.search.sampling.samplers import Sampler, make_sampler
from hpo.search.sampling.tpe import STARTUP_TRIALS

WIDE = {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 9), "kind": CategoricalDistribution(["a", "b"])}
# 18 points, so that proposals repeat earlier ones.
NARROW = {"n": IntDistribution(1, 9), "kind": CategoricalDistribution(["a", "b"])}

numbers = st.integers(0, 12)
spaces = st.sampled_from([WIDE, NARROW])
points = st.fixed_dictionaries({"n": st.integers(1, 9), "kind": st.sampled_from(["a", "b"])})


class Recording(Sampler):
    """Sampler that keeps the trials that it sees, and proposes a fixed list."""

    def __init__(self, candidates, learns=True):
        self.learns = learns
        self.seen = []
        self._candidates = candidates

    def propose(self, space, trials, seed):
        self.seen.append(list(trials))
        return iter(self._candidates)


def without_params(number):
    trial = create_trial(state=TrialState.RUNNING)
    trial.number = number
    return trial


def first_trials(proposer, count, space):
    """Return the first trials of one worker, each with its parameters."""
    trials = []
    while len(trials) < count:
        params = proposer.propose(trials).params
        trials.append(make_trial(params, 0.5, space=space, number=len(trials)))
    return trials


@pytest.mark.parametrize("name", NOT_LEARNING)
@settings(max_examples=30)
@given(data=st.data(), number=numbers, space=spaces, seed=st.integers(0, 3))
def test_proposal_does_not_depend_on_written_parameters(name, data, number, space, seed):
    enqueued = data.draw(st.lists(points.map(lambda point: {"x": 0.5, **point} if "x" in space else point), max_size=4))
    proposer = Proposer(make_sampler(name), space, enqueued, seed)
    trials = first_trials(proposer, number, space)
    expected = proposer.propose(trials)
    unwritten = data.draw(st.sets(st.sampled_from(range(number)))) if number else set()
    seen = [without_params(trial.number) if trial.number in unwritten else trial for trial in trials]
    assert proposer.propose(seen) == expected


@settings(max_examples=30)
@given(data=st.data(), number=st.integers(0, 6), name=st.sampled_from([*NOT_LEARNING, "tpe"]))
def test_enqueued_parameters_come_first(data, number, name):
    enqueued = data.draw(st.lists(points, min_size=number + 1, max_size=number + 3))
    proposer = Proposer(make_sampler(name), NARROW, enqueued, 0)
    # Parameters that the workers of earlier trials have not written yet are known.
    trials = [
        without_params(index) if data.draw(st.booleans()) else make_trial(enqueued[index], 0.5, space=NARROW)
        for index in range(number)
    ]
    assert proposer.propose(trials) == Proposal(enqueued[number], is_enqueued=True)


def test_parameters_that_are_enqueued_twice_have_two_trials():
    proposer = Proposer(make_sampler("random"), NARROW, [{"n": 1, "kind": "a"}] * 2, 0)
    proposals = [trial.params for trial in first_trials(proposer, 3, NARROW)]
    assert proposals.count({"n": 1, "kind": "a"}) == 2


@pytest.mark.parametrize("name", [*NOT_LEARNING, "tpe"])
def test_taken_parameters_are_avoided(name):
    proposer = Proposer(make_sampler(name), NARROW, (), 0)
    taken = []
    for _ in range(18):
        proposal = proposer.propose([], taken)
        assert not proposal.is_enqueued
        assert proposal.params not in taken
        taken.append(proposal.params)


def test_enqueued_parameters_are_not_avoided():
    enqueued = [{"n": 1, "kind": "a"}]
    proposer = Proposer(make_sampler("random"), NARROW, enqueued, 0)
    assert proposer.propose([], taken=enqueued) == Proposal(enqueued[0], is_enqueued=True)


def trials_with_results():
    reported = make_trial({"n": 1, "kind": "a"}, None, TrialState.RUNNING, NARROW, 1)
    reported.intermediate_values = {1: 0.25, 2: -0.5}
    return [make_trial({"n": 2, "kind": "a"}, 0.75, space=NARROW, number=0), reported]


@pytest.mark.parametrize(
    ("minimizes", "learns", "sign"), [(True, True, -1), (False, True, 1), (True, False, 1), (False, False, 1)]
)
def test_learner_sees_negative_values_of_minimizing_study(minimizes, learns, sign):
    sampler, trials = Recording([{"n": 3, "kind": "a"}], learns), trials_with_results()
    Proposer(sampler, NARROW, (), 0, minimizes=minimizes).propose(trials)
    ((complete, running),) = sampler.seen
    assert complete.value == sign * 0.75
    assert running.intermediate_values == {1: sign * 0.25, 2: sign * -0.5}
    assert (trials[0].value, trials[1].intermediate_values) == (0.75, {1: 0.25, 2: -0.5})


def test_learner_proposes_opposite_of_maximizing_study_with_opposite_values():
    trials = make_random_trials(STARTUP_TRIALS + 1)
    space = trials[0].distributions
    opposite = [make_trial(trial.params, -trial.value, space=space, number=trial.number) for trial in trials]
    sampler = make_sampler("tpe")
    proposal = Proposer(sampler, space, (), 0).propose(trials)
    assert Proposer(sampler, space, (), 0, minimizes=True).propose(opposite) == proposal
    assert Proposer(sampler, space, (), 0).propose(opposite) != proposal


def test_ended_trial_without_parameters_is_not_filled():
    sampler = Recording([{"n": 3, "kind": "a"}], learns=False)
    Proposer(sampler, NARROW, (), 0).propose([create_trial(state=TrialState.FAIL)])
    # A running trial would have needed a proposal of its own.
    assert len(sampler.seen) == 1


def test_study_without_parameters_has_empty_proposals():
    proposer = Proposer(make_sampler("random"), {}, (), 0)
    assert proposer.propose([without_params(0)]) == Proposal({}, is_enqueued=False)
