"""Conditional spaces: the choice of the model, and samplers and pruners that see the trials of one model."""

import copy
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from search_trials import NOT_LEARNING

from hpo.config.study import StudyConfig
from hpo.errors import StudyFileError
from hpo.search.branches import (
    EXPLORE_EVERY,
    STARTUP_TRIALS,
    branch_trials,
    check_feasible,
    make_branch_pruner,
    make_branch_sampler,
)
from hpo.search.proposer import Proposer
from hpo.search.pruning.asha import rungs
from hpo.search.pruning.pruners import make_pruner
from hpo.search.sampling.samplers import make_sampler, propose
from hpo.search.space import Branch, ConditionalSpace, misfit, needed, params_key

NET = {"net.rate": FloatDistribution(1e-4, 1e-1, log=True), "net.epochs": IntDistribution(5, 60)}
TREES = {"trees.depth": IntDistribution(1, 9), "trees.rate": FloatDistribution(0.01, 1)}
FEW = {"few.size": CategoricalDistribution([1, 2, 3])}
SPACE = ConditionalSpace(
    {"net": Branch(NET, 60, "net.epochs"), "trees": Branch(TREES, 200, None), "few": Branch(FEW, 1, None)}
)
FINITE = ConditionalSpace(
    {"few": Branch(FEW, 1, None), "one": Branch({}, 1, None), "two": Branch({"two.n": IntDistribution(1, 2)}, 5, None)}
)


def make_trial(number, params, value=0.5, state=TrialState.COMPLETE, space=SPACE, reports=None):
    value = value if state == TrialState.COMPLETE else None
    distributions = {name: space[name] for name in params}
    trial = create_trial(
        state=state, params=params, distributions=distributions, value=value, intermediate_values=reports or {}
    )
    trial.number = number
    return trial


def make_proposer(name, space=SPACE, enqueued=(), seed=0, minimizes=False):
    return Proposer(make_branch_sampler(name, space), space, enqueued, seed, minimizes)


def history(proposer, count, space=SPACE, value_of=lambda _: 0.5):
    trials = []
    while len(trials) < count:
        params = proposer.propose(trials).params
        trials.append(make_trial(len(trials), params, value_of(params), space=space))
    return trials


def models(trials):
    return [trial.params["model"] for trial in trials]


def test_trial_has_parameters_of_its_model():
    for trial in history(make_proposer("tpe"), 30):
        branch = SPACE.branches[trial.params["model"]].space
        assert trial.params.keys() == {"model", *branch}
        assert misfit(SPACE, trial.params) is None


@pytest.mark.parametrize("name", NOT_LEARNING)
def test_models_take_turns_without_learning(name):
    assert models(history(make_proposer(name), 9)) == ["net", "trees", "few"] * 3


@pytest.mark.parametrize("name", NOT_LEARNING)
def test_model_has_trials_of_a_study_of_its_own(name):
    trials = history(make_proposer(name), 9)
    own = branch_trials(SPACE, "net", trials)
    assert [trial.number for trial in own] == [0, 1, 2]
    alone = []
    for number in range(3):
        params = propose(make_sampler(name), NET, alone, 0)
        alone.append(make_trial(number, params))
    assert [trial.params for trial in own] == [trial.params for trial in alone]


def test_learning_sampler_sees_trials_of_its_model_only():
    def value_of(params):
        return 1 - abs(np.log10(params["net.rate"]) + 2) / 3 if params["model"] == "net" else 0.99

    trials = history(make_proposer("tpe"), 40, value_of=value_of)
    own = branch_trials(SPACE, "net", trials)
    seen = make_sampler("tpe", "net.epochs")
    number = next(number for number in range(30, 40) if trials[number].params["model"] == "net")
    before = branch_trials(SPACE, "net", trials[:number])
    assert propose(seen, NET, before, 0) == own[len(before)].params


def test_learning_prefers_better_model_and_keeps_trying_others():
    values = {"net": 0.6, "trees": 0.9, "few": 0.7}
    space = ConditionalSpace({name: branch for name, branch in SPACE.branches.items() if name != "few"})
    trials = history(make_proposer("tpe", space), 60, space, lambda params: values[params["model"]])
    counts = Counter(models(trials[2 * STARTUP_TRIALS :]))
    assert counts["trees"] > 2 * counts["net"]
    explored = [trial.params["model"] for trial in trials[12::EXPLORE_EVERY]]
    assert explored == ["net", "trees"] * 8


def test_learning_prefers_model_with_less_loss():
    values = {"net": 0.9, "trees": 0.6}
    space = ConditionalSpace({name: branch for name, branch in SPACE.branches.items() if name != "few"})
    trials = history(make_proposer("tpe", space, minimizes=True), 60, space, lambda params: values[params["model"]])
    counts = Counter(models(trials[2 * STARTUP_TRIALS :]))
    assert counts["trees"] > 2 * counts["net"]


@pytest.mark.parametrize("name", ["tpe", "cmaes", *NOT_LEARNING])
def test_finite_space_is_used_up_without_repetition(name):
    proposer = make_proposer(name, FINITE)
    trials = history(proposer, 6, FINITE)
    assert len({params_key(trial.params) for trial in trials}) == 6
    assert Counter(models(trials)) == {"few": 3, "one": 1, "two": 2}
    with pytest.raises(StudyFileError, match="no model has a combination"):
        proposer.propose(trials)


@settings(max_examples=30)
@given(data=st.data(), name=st.sampled_from(NOT_LEARNING), space=st.sampled_from([SPACE, FINITE]))
def test_proposal_does_not_depend_on_written_parameters(data, name, space):
    number = data.draw(st.integers(0, 5))
    proposer = make_proposer(name, space)
    trials = history(proposer, number, space)
    unwritten = data.draw(st.sets(st.sampled_from(range(number)))) if number else set()
    seen = [
        make_trial(trial.number, {}, state=TrialState.RUNNING) if trial.number in unwritten else trial
        for trial in trials
    ]
    assert proposer.propose(seen) == proposer.propose(trials)


def test_taken_point_is_not_proposed():
    proposer = make_proposer("tpe", FINITE)
    trials = history(proposer, 5, FINITE)
    last = proposer.propose(trials).params
    with pytest.raises(StudyFileError, match="no model has a combination"):
        proposer.propose(trials, [last])


def test_unknown_trial_can_have_last_point():
    proposer = make_proposer("tpe", FINITE)
    trials = [*history(proposer, 1, FINITE), make_trial(1, {}, state=TrialState.RUNNING)]
    # The running trial can be the only one of the model "one".
    assert proposer.propose(trials).params["model"] in ("few", "two")


def test_unknown_trial_leaves_last_point_of_each_model():
    few, two = FEW["few.size"], FINITE["two.n"]
    space = ConditionalSpace({"few": Branch({"few.size": few}, 1, None), "two": Branch({"two.n": two}, 1, None)})
    trials = history(make_proposer("tpe", space), 3, space)
    trials.append(make_trial(3, {}, state=TrialState.RUNNING))
    params = make_proposer("tpe", space).propose(trials).params
    assert params_key(params) not in {params_key(trial.params) for trial in trials}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_unknown_trial_leaves_point_that_is_not_taken(size):
    points = [{"model": "few", "few.size": number} for number in (1, 2, 3)]
    left = points.pop(size - 1)
    trials = [make_trial(0, points[0]), make_trial(1, {}, state=TrialState.RUNNING)]
    assert make_proposer("tpe", FINITE).propose(trials, points[1:], {"model": "few"}).params == left


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(["tpe", "cmaes", *NOT_LEARNING]))
def test_workers_use_up_finite_space(data, name):
    """Several workers number their trials first, and write the parameters in any order."""
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=3))
    space = ConditionalSpace(
        {
            f"m{i}": Branch({f"m{i}.n": IntDistribution(1, size)} if size else {}, 1, None)
            for i, size in enumerate(sizes)
        }
    )
    proposer, trials = make_proposer(name, space), []

    def write(number):
        taken = []
        while True:
            params = proposer.propose(trials[:number], taken).params
            if params not in [trial.params for trial in trials]:
                trials[number] = make_trial(number, params, space=space)
                return
            taken.append(params)

    total, unwritten = sum(max(size, 1) for size in sizes), []
    while unwritten or len(trials) < total:
        if len(trials) < total and (not unwritten or data.draw(st.booleans())):
            unwritten.append(len(trials))
            trials.append(make_trial(len(trials), {}, state=TrialState.RUNNING))
        else:
            write(unwritten.pop(data.draw(st.integers(0, len(unwritten) - 1))))
    assert len({params_key(trial.params) for trial in trials}) == total


def test_given_model_is_kept():
    proposer = make_proposer("random")
    for name in SPACE.branches:
        assert proposer.propose([], given={"model": name}).params["model"] == name


def test_enqueued_parameters_come_first():
    enqueued = [{"model": "trees", "trees.depth": 3, "trees.rate": 0.5}]
    proposer = make_proposer("tpe", enqueued=enqueued)
    proposal = proposer.propose([])
    assert (proposal.params, proposal.is_enqueued) == (enqueued[0], True)
    second = proposer.propose([make_trial(0, enqueued[0])])
    assert (second.params["model"], second.is_enqueued) == ("trees", False)


def test_enqueued_parameters_of_other_model_are_left_for_later():
    enqueued = [{"model": "few", "few.size": 2}, {"model": "trees", "trees.depth": 3, "trees.rate": 0.5}]
    proposer = make_proposer("random", enqueued=enqueued)
    assert proposer.propose([], given={"model": "trees"}).params == enqueued[1]
    proposal = proposer.propose([], given={"model": "net"})
    assert (proposal.params.keys(), proposal.is_enqueued) == ({"model", *NET}, False)


def test_misfit_names_parameter_of_other_model():
    params = {"model": "net", "net.rate": 0.01, "trees.depth": 3}
    assert misfit(SPACE, params) == "the study does not search trees.depth for the model net"
    assert misfit(SPACE, {"model": "other"}) == "model = 'other' is not in the search space"
    assert misfit(SPACE, {"model": ["net"]}) == "model = ['net'] is not in the search space"
    assert misfit(SPACE, {"trees.depth": 3}) == "trees.depth needs the parameter model"
    assert set(needed(SPACE, {})) == {"model"}


def test_space_survives_copy_to_other_process():
    # Workers get it by pickle.
    copied = copy.deepcopy(SPACE)
    assert copied == SPACE
    assert copied.branches == SPACE.branches


def test_budget_is_sum_of_models():
    config = StudyConfig.model_validate({"study": {"name": "s", "sampler": "random", "pruner": "asha"}})
    check_feasible(config, FINITE, 6)
    check_feasible(config, SPACE, 10**6)
    with pytest.raises(StudyFileError, match="only 6 combinations, but 7 trials"):
        check_feasible(config, FINITE, 7)


def reported(number, model, rung, value, state=TrialState.RUNNING):
    return make_trial(number, {"model": model}, value, state, reports={rung: value})


def test_pruner_compares_trials_of_same_model():
    pruner = make_branch_pruner("asha", SPACE)
    rung = rungs(60)[0]
    trees = rungs(200)[0]
    assert rung != trees
    # The nets are worse than all trees, and the best net of three continues.
    trials = [
        *(reported(number, "trees", rung, 0.9 + number / 100) for number in range(3)),
        *(reported(number, "net", rung, number / 100) for number in range(3, 6)),
    ]
    assert [pruner.should_continue(trials, number) for number in (3, 4, 5)] == [False, False, True]
    # The step is no rung of the trees.
    assert all(pruner.should_continue(trials, number) for number in (0, 1, 2))


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_pruner_has_steps_of_each_model(name):
    pruner = make_branch_pruner(name, SPACE)
    assert {*rungs(60), *rungs(200)} <= pruner.decision_steps()


def test_each_model_promotes_its_best_trial():
    pruner = make_branch_pruner("asha", SPACE)
    trials = [
        *(reported(number, "net", rungs(60)[0], number / 100) for number in range(2)),
        *(reported(number, "trees", rungs(200)[0], number / 100) for number in range(2, 4)),
    ]
    paused = {0, 1, 2, 3}
    assert pruner.next_promotion(trials, paused) is None
    assert pruner.next_promotion(trials, paused, min_promoted=1) == 3
    assert pruner.next_promotion(trials, paused - {3}, min_promoted=1) == 1


@pytest.mark.parametrize(("minimizes", "expected"), [(False, 1), (True, 0)])
def test_best_trial_of_all_models_is_promoted_first(minimizes, expected):
    """The minimum of complete trials is not used up by the first model."""
    params = [
        {"model": "net", "net.rate": 0.01, "net.epochs": 60},
        {"model": "trees", "trees.depth": 3, "trees.rate": 0.1},
    ]
    trials = [
        make_trial(0, params[0], state=TrialState.RUNNING, reports={rungs(60)[0]: 0.6}),
        make_trial(1, params[1], state=TrialState.RUNNING, reports={rungs(200)[0]: 0.7}),
    ]
    pruner = make_branch_pruner("asha", SPACE, minimizes=minimizes)
    assert pruner.next_promotion(trials, {0, 1}, min_promoted=1) == expected


def test_paused_trials_count_for_choice_of_model():
    proposer = make_proposer("tpe")
    trials = history(proposer, 40)
    for trial in trials:
        trial.state, trial.value = TrialState.RUNNING, None
        trial.intermediate_values = {1: 0.9 if trial.params["model"] == "trees" else 0.1}
    chosen = []
    while len(chosen) < 30:
        params = proposer.propose(trials).params
        trials.append(make_trial(len(trials), params, state=TrialState.RUNNING))
        chosen.append(params["model"])
    assert Counter(chosen)["trees"] > 15


def test_median_of_other_model_stops_no_trial():
    pruner = make_branch_pruner("median", SPACE)
    step = min(make_pruner("median", 60).decision_steps())
    trees = [
        make_trial(number, {"model": "trees"}, 0.9, reports=dict.fromkeys(range(1, 200), 0.9)) for number in range(9)
    ]
    trials = [*trees, reported(9, "net", step, 0.1)]
    assert pruner.should_continue(trials, 9)
    nets = [make_trial(number, {"model": "net"}, 0.9, reports=dict.fromkeys(range(1, 60), 0.9)) for number in range(9)]
    assert not pruner.should_continue([*nets, reported(9, "net", step, 0.1)], 9)
