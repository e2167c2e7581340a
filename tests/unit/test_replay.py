"""Studies in virtual time: what they spend, and what they are told."""

from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from benchmarks.curves import EPOCHS, Curves, Point, Surrogate, Task, designed, record
from benchmarks.found import spent
from benchmarks.replay import Ours, Stock, StopOnly, VirtualStudy, multiply_adds, seconds
from benchmarks.search import Result, quartiles, ratio
from hpo.config.study import StudyConfig
from hpo.data.cache import Split
from hpo.search.optuna_adapter import running_trial
from hpo.search.space import distributions
from hpo.storage.leases import Progress

SPACE = {
    "learning_rate": {"low": 1e-7, "high": 1e-2, "log": True},
    "regularization": {"low": 1e-7, "high": 1e-2, "log": True},
    "hidden_size": {"low": 32, "high": 400},
    "epochs": {"low": 100, "high": 500},
}


class Rising:
    """Curves that rise to what the learning rate is worth, with noise."""

    def curve(self, point: Point, rng: np.random.Generator):
        best = 0.6 - 0.08 * abs(np.log10(point.learning_rate) + 3)
        noise = 0.01 * rng.standard_normal()
        return np.round(best * (1 - np.exp(-np.arange(1, EPOCHS + 1) / 30)) + noise, 3).clip(0, 1)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def spec_of(sampler="random", pruner="asha", trials=20, seed=0):
    return StudyConfig.model_validate(
        {
            "study": {"name": "s", "sampler": sampler, "pruner": pruner, "trials": trials, "seed": seed},
            "data": {"dataset": "digits"},
            "space": SPACE,
        }
    )


def replayed(spec, workers=2, contender=None, finished=20):
    """The story of a study until so many of its trials have ended."""
    contender = contender or Ours(spec)

    def ended(story):
        return sum(trial.state.is_finished() for trial in story.trials) >= finished

    return VirtualStudy(contender, Rising(), spec, workers).run(ended)


def trained(trial):
    return max(trial.intermediate_values, default=0)


@settings(max_examples=20, deadline=None)
@given(
    workers=st.integers(1, 8), pruner=st.sampled_from(["asha", "hyperband", "median", "none"]), seed=st.integers(0, 9)
)
def test_every_epoch_is_paid_once(workers, pruner, seed):
    story = replayed(spec_of(pruner=pruner, seed=seed), workers, finished=10**9 if pruner == "none" else 20)
    done = sum(trained(trial) * multiply_adds(trial.params["hidden_size"]) for trial in story.trials)
    running = sum(trial.state == TrialState.RUNNING for trial in story.trials)
    if not running:
        assert story.compute == pytest.approx(done)
    assert story.compute >= done * (1 - 1e-9)


def test_one_worker_takes_as_long_as_its_epochs():
    story = replayed(spec_of(pruner="none"), workers=1)
    assert story.seconds == pytest.approx(sum(trained(t) * seconds(t.params["hidden_size"]) for t in story.trials[:20]))


def test_the_same_seed_gives_the_same_story():
    one, other = replayed(spec_of("tpe")), replayed(spec_of("tpe"))
    assert one == other
    assert one != replayed(spec_of("tpe", seed=1))


def test_trials_of_a_sampler_that_does_not_learn_do_not_depend_on_the_workers():
    one, eight = (replayed(spec_of(), workers).trials[:20] for workers in (1, 8))
    assert [trial.params for trial in one] == [trial.params for trial in eight]


def test_paused_trials_are_promoted_and_in_the_end_pruned():
    story = replayed(spec_of())
    ended = [trial.state for trial in story.trials[:20]]
    assert set(ended) == {TrialState.COMPLETE, TrialState.PRUNED}
    best = max(trial.value for trial in story.trials if trial.state == TrialState.COMPLETE)
    assert story.best[-1][2] == best


def test_a_study_that_has_not_got_there_gets_more_trials():
    story = replayed(spec_of(trials=5), finished=12)
    assert len(story.trials) > 10


@pytest.mark.parametrize(
    "pruner", [optuna.pruners.HyperbandPruner(1, EPOCHS, 3), optuna.pruners.MedianPruner(), optuna.pruners.NopPruner()]
)
def test_optuna_is_asked_and_told(pruner):
    spec = spec_of("tpe")
    story = replayed(spec, contender=Stock(spec, pruner))
    pruned = sum(trial.state == TrialState.PRUNED for trial in story.trials)
    assert (pruned == 0) is isinstance(pruner, optuna.pruners.NopPruner)
    assert all(trial.params.keys() == SPACE.keys() for trial in story.trials)


def test_stop_only_pauses_nobody_and_lets_the_first_go_on():
    spec = spec_of("random")
    contender = StopOnly(spec)
    study = VirtualStudy(contender, Rising(), spec, 1)
    story = study.run(lambda story: len(story.best) > 0)
    assert [trial.state for trial in story.trials[:1]] == [TrialState.COMPLETE]
    assert contender.leaves(story.trials[:1], 0) is None


def test_what_is_known_at_a_price():
    story = replayed(spec_of())
    (first, at, value), *_ = story.best
    assert story.reached(value) == (first, at)
    assert story.reached(0.99) is None
    assert story.best_within(first) == value
    assert story.best_within(first * 0.99) == 0


def test_quartiles_are_of_the_values_even_if_some_are_infinite():
    assert quartiles([4, 1, 3, 2, np.inf]) == [2, 3, 4]
    results = [[Result(compute, 1.0, []) for compute in computes] for computes in ([6, 8, np.inf], [1, 2, 4])]
    assert ratio(*results) == {"ratio": 4, "low": 3, "high": None, "n": 3}
    assert ratio(*results[::-1])["ratio"] == 0.25
    never = [Result(np.inf, 1.0, [])] * 2
    assert ratio(never, never)["ratio"] == 1
    assert ratio(never, results[1])["ratio"] is None  # JSON has no infinity
    assert ratio(results[1], never)["ratio"] == 0


def test_the_surrogate_is_near_what_was_recorded():
    curves = Curves.load()
    first = Curves(curves.points[:48], curves.correct[:48])
    surrogate = Surrogate(first)
    whole = np.flatnonzero(first.lengths == EPOCHS)
    predicted = surrogate._smooth(first.points[whole])
    assert np.abs(predicted - first.correct[whole] / 1000)[:, 20:].mean() < 0.02
    rng = np.random.default_rng(0)
    drawn = surrogate.curve(Point(*first.points[whole[0]]), rng)
    assert drawn.shape == (EPOCHS,)
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_the_recorded_points_are_designed_ones():
    designed_points = {task.point for task in designed()}
    curves = Curves.load()
    assert len(curves.points) > 90
    assert {Point(*point) for point in curves.points} <= designed_points


def test_curves_round_trip(tmp_path):
    curves = Curves.load()
    curves.save(tmp_path / "c.npz")
    again = Curves.load(tmp_path / "c.npz")
    assert np.array_equal(again.points, curves.points)
    assert np.array_equal(again.correct, curves.correct)


def test_a_curve_is_recorded_to_its_end_or_until_it_is_hopeless():
    rng = np.random.default_rng(0)
    X = np.hstack([rng.standard_normal((40, 3)), np.ones((40, 1))]).astype(np.float32)
    learnable = Split(X, (X[:, 0] > 0).astype(np.intp))
    upside_down = Split(X, (X[:, 0] <= 0).astype(np.intp))
    whole, hopeless = (
        record(
            spec_of(),
            SimpleNamespace(train=learnable, validation=validation, classes=np.arange(2)),
            Task(0, Point(1e-2, 1e-7, 32)),
        )
        for validation in (learnable, upside_down)
    )
    assert whole.shape == (EPOCHS,)
    assert whole[-1] > 900
    assert (hopeless[:60] >= 0).all()
    assert (hopeless[60:] == -1).all()


def test_a_real_study_has_spent_what_its_trials_have_trained():
    space = distributions(spec_of())
    params = {"learning_rate": 1e-3, "regularization": 1e-3, "hidden_size": 100, "epochs": 200}
    trials = [running_trial(number, params, space) for number in range(3)]
    trials[0].intermediate_values.update({11: 0.4, 200: 0.56})
    trials[0].state, trials[0].value = TrialState.COMPLETE, 0.56
    trials[1].intermediate_values.update({11: 0.3})
    unfinished = [Progress(1, 9, 1, False), Progress(2, 5, 1, True)]
    study = SimpleNamespace(trials=trials, leases=SimpleNamespace(unfinished=lambda: unfinished))
    now = spent(study, since=0.0)
    assert now.compute == pytest.approx((200 + 11 + 5) * multiply_adds(100))
    assert now.best == 0.56
    assert now.seconds > 0
