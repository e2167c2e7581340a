"""Wrappers of a script's sampler: the same parameters in each process, with any restarts."""

import copy
from random import Random
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import CmaEsSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState, create_trial
from script_samplers import GRID, LIGHT_SAMPLERS, load, make_script_sampler, run_trial, suggest

from hpo.search.sampling.reseeding import (
    GIVEN_PARAMS,
    ReplayedRandomSampler,
    ReseededSampler,
    find_seed,
    generators_in,
    reseeded,
)

N_TRIALS = 16
WITHOUT_CONDITIONS = ["grid", "qmc", "qmc-scrambled", "cmaes", "cmaes-margin"]


def make_study(sampler, *, conditional=False):
    study = optuna.create_study(storage=InMemoryStorage(), sampler=sampler)
    study.set_user_attr("conditional", conditional)
    return study


def wrap(name, seed=3, default_seed=0, workers=4):
    return reseeded(make_script_sampler(name, seed), default_seed, workers)


def is_conditional(name):
    return name not in WITHOUT_CONDITIONS


def undisturbed(name, **arguments):
    """Return the parameters of trials that one process runs."""
    study = make_study(wrap(name, **arguments), conditional=is_conditional(name))
    return [run_trial(study) for _ in range(N_TRIALS)]


# Restarts


@pytest.mark.parametrize("seed", [pytest.param(None, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", LIGHT_SAMPLERS)
def test_restarts_do_not_change_parameters(name, seed):
    expected = undisturbed(name, seed=seed)
    study = make_study(None, conditional=is_conditional(name))
    assert [run_trial(load(study._storage, wrap(name, seed=seed))) for _ in range(N_TRIALS)] == expected
    assert len({tuple(params.items()) for params in expected}) > 5


@pytest.mark.parametrize("name", ["random", "tpe-univariate", "nsgaii"])
def test_parameters_of_a_trial_are_independent(name):
    trial = make_study(wrap(name)).ask()
    assert len({trial.suggest_float(f"x{index}", 0, 1) for index in range(5)}) == 5


@pytest.mark.parametrize("n_suggested", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1, 3))])
@pytest.mark.parametrize("name", LIGHT_SAMPLERS)
def test_deaths_within_trials_do_not_change_parameters(name, n_suggested):
    """Each trial is begun by one process and continued by another."""
    expected = undisturbed(name)
    storage = make_study(None, conditional=is_conditional(name))._storage
    for number in range(N_TRIALS):
        trial = load(storage, wrap(name)).ask()
        for _ in zip(range(n_suggested), suggest(trial), strict=False):
            pass
        study = load(storage, wrap(name))
        resumed = Trial(study, trial._trial_id)
        list(suggest(resumed))
        study.tell(resumed, resumed.user_attrs["loss"])
        assert resumed.params == expected[number]


@pytest.mark.parametrize("name", LIGHT_SAMPLERS)
def test_workers_with_different_pasts_propose_the_same(name):
    """One worker has run the even trials, one the odd trials, one none."""
    study = make_study(None, conditional=is_conditional(name))
    samplers = [wrap(name), wrap(name)]
    for number in range(N_TRIALS):
        run_trial(load(study._storage, samplers[number % 2]))
    proposals = []
    for sampler in (*samplers, wrap(name)):
        storage = copy.deepcopy(study._storage)
        proposals.append(run_trial(load(storage, sampler)))
    assert proposals[0] == proposals[1] == proposals[2]


def test_order_in_which_trials_end_does_not_change_parameters():
    """A worker that has seen the later trials first groups their parameters in another order."""
    study, early = make_study(None, conditional=True), wrap("tpe-group")
    trials = [load(study._storage, wrap("tpe-group")).ask({"x": FloatDistribution(0, 1)}) for _ in range(8)]
    for trial in reversed(trials):
        trial.suggest_float(f"y{trial.number % 4}", 0, 1)
        study.tell(trial, trial.params["x"])
        early.infer_relative_search_space(study, trial)
    proposals = []
    for sampler in (early, wrap("tpe-group")):
        trial = load(copy.deepcopy(study._storage), sampler).ask()
        proposals.append([trial.suggest_float(name, 0, 1) for name in ("x", "y0", "y1", "y2", "y3")])
    assert proposals[0] == proposals[1]


@pytest.mark.parametrize("name", [name for name in LIGHT_SAMPLERS if name not in {"grid", "brute-force"}])
def test_trials_of_empty_histories_differ(name):
    """Workers that start at once propose different parameters."""
    study = make_study(None)
    trials = [load(study._storage, wrap(name)).ask() for _ in range(8)]
    params = []
    for trial in trials:
        list(suggest(trial))
        params.append(tuple(trial.params.items()))
    assert len(set(params)) >= 5


def test_grid_is_visited_once_by_many_workers():
    study = make_study(None)
    trials = [load(study._storage, wrap("grid")).ask() for _ in range(24)]
    for trial in trials:
        list(suggest(trial))
    assert len({tuple(trial.params.items()) for trial in trials}) == 24


def test_restarts_do_not_change_repeated_points_of_grid():
    """After each point of the grid has been started, the sampler draws unfinished points."""
    found = []
    for samplers in ([wrap("grid")] * 40, [wrap("grid") for _ in range(40)]):
        study = make_study(None)
        for sampler in samplers:
            load(study._storage, sampler).ask()
        found.append([trial.system_attrs["grid_id"] for trial in study.trials])
    assert found[0] == found[1]
    assert len(set(found[0][24:])) > 1


def test_quasi_random_points_are_taken_once():
    """Two workers read the counter of Optuna at once; the number of the trial is safe."""
    study = make_study(None)
    run_trial(load(study._storage, wrap("qmc-scrambled")))
    trials = [load(study._storage, wrap("qmc-scrambled")).ask() for _ in range(8)]
    for trial in reversed(trials):
        list(suggest(trial))
    backwards = [trial.params for trial in trials]
    assert backwards == undisturbed("qmc-scrambled")[1:9]
    plain = make_study(make_script_sampler("qmc-scrambled", 3))
    assert [run_trial(plain) for _ in range(9)][1:] == backwards


# Seeds


def test_seed_follows_seed_of_script():
    for name in LIGHT_SAMPLERS:
        if name == "generators":
            continue
        first, again, other = (find_seed(make_script_sampler(name, seed)) for seed in (3, 3, 4))
        assert first == again
        assert first != other


@pytest.mark.parametrize("name", [name for name in LIGHT_SAMPLERS if name != "grid"])
def test_unseeded_sampler_has_default_seed(name):
    assert find_seed(make_script_sampler(name, None)) is None
    assert wrap(name, seed=None, default_seed=5).seed == 5
    assert undisturbed(name, seed=None, default_seed=5) != undisturbed(name, seed=None, default_seed=6)


@pytest.mark.parametrize(
    ("generator", "is_seeded"),
    [
        (np.random.RandomState(1), True),
        (np.random.RandomState(), False),
        (np.random.default_rng(1), True),
        (np.random.default_rng([1, 2]), True),
        (np.random.default_rng(), False),
        (np.random.Generator(np.random.MT19937(1)), True),
        (Random(1), False),
    ],
)
def test_seeded_generator_is_recognized(generator, is_seeded):
    sampler = RandomSampler()
    sampler.generator = generator
    assert (find_seed(sampler) is not None) is is_seeded


def test_search_of_seed_does_not_change_sampler():
    for name in LIGHT_SAMPLERS:
        untouched, searched = (make_script_sampler(name, 3) for _ in range(2))
        find_seed(searched)
        assert run_trial(make_study(searched)) == run_trial(make_study(untouched))


@pytest.mark.parametrize(
    ("name", "count"), [("random", 1), ("tpe", 2), ("cmaes", 2), ("nsgaii", 2), ("qmc", 1), ("partial-fixed", 2)]
)
def test_generators_of_optunas_samplers_are_found(name, count):
    assert len(list(generators_in(make_script_sampler(name, 3)))) == count


def test_generators_of_nested_samplers_are_found():
    sampler = CmaEsSampler(independent_sampler=TPESampler())
    assert len(list(generators_in(sampler))) == 3
    # The points of a large grid are not searched.
    assert len(list(generators_in(GridSampler({"x": list(range(5000))})))) == 1


def test_generators_of_strategy_are_found():
    """A sampler may have parts with generators that are no samplers."""
    sampler = NSGAIISampler()
    sampler.strategy = SimpleNamespace(rng=np.random.RandomState(), several=[np.random.default_rng(), Random()])
    assert len(list(generators_in(sampler))) == 5


# Calls


def test_other_attributes_are_those_of_sampler():
    sampler = GridSampler(GRID)
    study = make_study(wrapped := reseeded(sampler, 0, workers=4))
    run_trial(study)
    assert wrapped.is_exhausted(study) is False
    assert str(wrapped) == "GridSampler"
    assert wrapped.wrapped is sampler
    with pytest.raises(AttributeError, match="population_size"):
        wrapped.population_size  # noqa: B018  # the access is the test
    assert reseeded(NSGAIISampler(population_size=9), 0, workers=4).population_size == 9
    assert copy.deepcopy(wrapped).is_exhausted(study) is False


def test_grid_stops_study_after_its_last_point():
    study = make_study(wrap("grid"))
    study.optimize(lambda trial: list(suggest(trial)) and trial.user_attrs["loss"], n_trials=100)
    assert len(study.trials) == 24


def test_sampler_sees_all_calls():
    calls = []

    class Recorder(RandomSampler):
        def reseed_rng(self):
            calls.append("reseed_rng")

        def before_trial(self, study, trial):
            calls.append("before_trial")

        def infer_relative_search_space(self, study, trial):
            calls.append("infer_relative_search_space")
            return super().infer_relative_search_space(study, trial)

        def sample_relative(self, study, trial, search_space):
            calls.append("sample_relative")
            return super().sample_relative(study, trial, search_space)

        def sample_independent(self, study, trial, param_name, param_distribution):
            calls.append(param_name)
            return super().sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study, trial, state, values):
            calls.append("after_trial")

    for workers in (1, 4):
        calls.clear()
        sampler = reseeded(Recorder(seed=1), 0, workers)
        run_trial(make_study(sampler))
        sampler.reseed_rng()
        relative = ["infer_relative_search_space", "sample_relative"]
        assert calls == ["before_trial", *relative, "x", "layers", "kind", "after_trial", "reseed_rng"]


# One worker with a seeded random sampler


def test_only_seeded_random_sampler_of_one_worker_keeps_its_stream():
    class Subclass(RandomSampler):
        pass

    assert isinstance(reseeded(RandomSampler(seed=1), 0, workers=1), ReplayedRandomSampler)
    assert isinstance(reseeded(RandomSampler(seed=1), 0, workers=2), ReseededSampler)
    assert isinstance(reseeded(RandomSampler(), 0, workers=1), ReseededSampler)
    assert isinstance(reseeded(Subclass(seed=1), 0, workers=1), ReseededSampler)
    assert isinstance(reseeded(TPESampler(seed=1), 0, workers=1), ReseededSampler)


def replayed():
    return reseeded(RandomSampler(seed=1), 0, workers=1)


def plain_params(n_trials, enqueued=()):
    study = make_study(RandomSampler(seed=1), conditional=True)
    for params in enqueued:
        study.enqueue_trial(params)
    return [run_trial(study) for _ in range(n_trials)]


@settings(max_examples=40)
@given(
    # Per trial the number of suggestions before each death of its worker.
    deaths=st.lists(st.lists(st.integers(0, 7), max_size=2), max_size=6),
    restarts=st.sets(st.integers(0, 6)),
    enqueued=st.lists(st.sampled_from([{"x": 0.5}, {"layers": 1, "kind": "a"}, {"x": 1, "layers": 3, "kind": "b"}])),
)
def test_one_worker_draws_as_plain_optuna(deaths, restarts, enqueued):
    n_trials = 7
    storage = make_study(None, conditional=True)._storage
    study = load(storage, replayed())
    for params in enqueued:
        study.enqueue_trial(params)
    found = []
    for number in range(n_trials):
        if number in restarts:
            study = load(storage, replayed())
        trial = study.ask()
        for n_suggested in deaths[number] if number < len(deaths) else ():
            for _ in zip(range(n_suggested), suggest(trial), strict=False):
                pass
            study = load(storage, replayed())
            trial = Trial(study, trial._trial_id)
        list(suggest(trial))
        study.tell(trial, 0.0)
        found.append(trial.params)
    assert found == plain_params(n_trials, enqueued)


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_trials_without_value_are_replayed(state):
    study = make_study(replayed(), conditional=True)
    for _ in range(3):
        trial = study.ask()
        list(suggest(trial))
        study.tell(trial, state=state)
    assert run_trial(load(study._storage, replayed())) == plain_params(4)[3]


def test_replay_sees_trials_of_all_brackets():
    study = make_study(replayed(), conditional=True)
    for _ in range(8):
        run_trial(study)
    resumed = load(study._storage, replayed())
    resumed.pruner = HyperbandPruner(max_resource=27)
    trial = resumed.ask()
    trial.report(0.5, 1)
    # The pruner has its brackets from the first decision on.
    trial.should_prune()
    list(suggest(trial))
    assert trial.params == plain_params(9)[8]


def test_promoted_trial_draws_from_the_end_of_the_stream():
    study = make_study(replayed())
    first = study.ask()
    run_trial(study)
    assert 0 <= first.suggest_float("late", 0, 1) <= 1
    assert run_trial(study)


def test_given_parameters_are_not_drawn():
    study = make_study(replayed(), conditional=True)
    space = {name: FloatDistribution(0, 1) for name in ("x", "y")}
    given = {"params": {"x": 0.5, "y": 0.5}, "distributions": space}
    study.add_trial(create_trial(value=0.0, **given, system_attrs={GIVEN_PARAMS: ["x", "y"]}))
    assert run_trial(study) == plain_params(1)[0]


def test_trial_without_parameters_is_replayed():
    study = make_study(replayed(), conditional=True)
    study.add_trial(create_trial(value=0.0))
    assert run_trial(study) == plain_params(1)[0]
