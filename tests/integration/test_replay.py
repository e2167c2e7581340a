"""Studies in virtual time: their cost, their trials, and the surrogate of the learning curves."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from benchmarks import completed
from benchmarks.curves import EPOCHS, Curves, Point, Surrogate, Task, designed, record
from benchmarks.replay import HpoSearch, OptunaSearch, StopOnlySearch, VirtualStudy, multiply_adds, seconds, space_of
from benchmarks.search import Result, quartiles, ratio
from benchmarks.time_to_target import spent
from hpo.config.study import StudyConfig
from hpo.data.division.splits import Split
from hpo.search.sampling.tpe import running_trial
from hpo.storage.tables.leases import ActiveTrial

# Each process fits the surrogate, which takes ten seconds.
pytestmark = pytest.mark.slow

SPACE = {
    "learning_rate": {"low": 1e-7, "high": 1e-2, "log": True},
    "regularization": {"low": 1e-7, "high": 1e-2, "log": True},
    "hidden_size": {"low": 32, "high": 400},
    "epochs": {"low": 100, "high": 500},
}


class RisingCurves:
    """Curves with noise that rise to an accuracy that depends on the learning rate."""

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


def make_config(sampler="random", pruner="asha", trials=20, seed=0):
    return StudyConfig.model_validate(
        {
            "study": {"name": "s", "sampler": sampler, "pruner": pruner, "trials": trials, "seed": seed},
            "data": {"dataset": "digits"},
            "space": SPACE,
        }
    )


def replay(config, workers=2, search=None, finished=20):
    """Return the progress of a study when this number of its trials has ended."""

    def is_done(progress):
        return sum(trial.state.is_finished() for trial in progress.trials) >= finished

    return VirtualStudy(search or HpoSearch(config), RisingCurves(), config, workers).run(is_done)


def trained_epochs(trial):
    return max(trial.intermediate_values, default=0)


@settings(max_examples=20, deadline=None)
@given(
    workers=st.integers(1, 8), pruner=st.sampled_from(["asha", "hyperband", "median", "none"]), seed=st.integers(0, 9)
)
def test_each_epoch_is_paid_once(workers, pruner, seed):
    progress = replay(make_config(pruner=pruner, seed=seed), workers, finished=10**9 if pruner == "none" else 20)
    done = sum(trained_epochs(trial) * multiply_adds(trial.params["hidden_size"]) for trial in progress.trials)
    running = sum(trial.state == TrialState.RUNNING for trial in progress.trials)
    if not running:
        assert progress.compute == pytest.approx(done)
    assert progress.compute >= done * (1 - 1e-9)


def test_single_worker_takes_time_of_its_epochs():
    progress = replay(make_config(pruner="none"), workers=1)
    expected = sum(trained_epochs(trial) * seconds(trial.params["hidden_size"]) for trial in progress.trials[:20])
    assert progress.seconds == pytest.approx(expected)


def test_seed_determines_study():
    one, other = replay(make_config("tpe")), replay(make_config("tpe"))
    assert one == other
    assert one != replay(make_config("tpe", seed=1))


def test_unlearned_trials_do_not_depend_on_workers():
    one, eight = (replay(make_config(), workers).trials[:20] for workers in (1, 8))
    assert [trial.params for trial in one] == [trial.params for trial in eight]


def test_paused_trials_are_promoted_or_pruned():
    progress = replay(make_config())
    states = [trial.state for trial in progress.trials[:20]]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    best = max(trial.value for trial in progress.trials if trial.state == TrialState.COMPLETE)
    assert progress.best[-1][2] == best


def test_study_without_target_gets_more_trials():
    progress = replay(make_config(trials=5), finished=12)
    assert len(progress.trials) > 10


@pytest.mark.parametrize(("confirm", "least"), [(0, 1), (2, 6), (10, 20)])
def test_three_trials_complete_for_each_confirmed_one(confirm, least):
    progress = completed.replay(make_config(), RisingCurves(), budget=20, confirm=confirm, seed=1, workers=3)
    states = [trial.state for trial in progress.trials]
    assert len(states) == 20
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert states.count(TrialState.COMPLETE) >= least
    cells = completed.row(20, confirm, [progress])
    assert cells[3].startswith(f"{states.count(TrialState.COMPLETE)} (")


@pytest.mark.parametrize(
    "pruner", [optuna.pruners.HyperbandPruner(1, EPOCHS, 3), optuna.pruners.MedianPruner(), optuna.pruners.NopPruner()]
)
def test_optuna_search_uses_its_pruner(pruner):
    config = make_config("tpe")
    progress = replay(config, search=OptunaSearch(config, pruner))
    pruned = sum(trial.state == TrialState.PRUNED for trial in progress.trials)
    assert (pruned == 0) is isinstance(pruner, optuna.pruners.NopPruner)
    assert all(trial.params.keys() == SPACE.keys() for trial in progress.trials)


def test_stop_only_search_continues_first_trial():
    config = make_config("random")
    search = StopOnlySearch(config)
    progress = VirtualStudy(search, RisingCurves(), config, 1).run(lambda progress: len(progress.best) > 0)
    assert [trial.state for trial in progress.trials[:1]] == [TrialState.COMPLETE]
    assert search.stop_state(progress.trials[:1], 0) is None


def test_progress_has_cost_and_best_value():
    progress = replay(make_config())
    (compute, time, value), *_ = progress.best
    assert progress.cost_of(value) == (compute, time)
    assert progress.cost_of(0.99) is None
    assert progress.best_within(compute) == value
    assert progress.best_within(compute * 0.99) == 0


def test_quartiles_and_ratios_can_be_infinite():
    assert quartiles([4, 1, 3, 2, np.inf]) == [2, 3, 4]
    results = [[Result(compute, 1.0, []) for compute in computes] for computes in ([6, 8, np.inf], [1, 2, 4])]
    assert ratio(*results) == {"ratio": 4, "low": 3, "high": None, "n": 3}
    assert ratio(*results[::-1])["ratio"] == 0.25
    never = [Result(np.inf, 1.0, [])] * 2
    assert ratio(never, never)["ratio"] == 1
    # JSON has no infinity.
    assert ratio(never, results[1])["ratio"] is None
    assert ratio(results[1], never)["ratio"] == 0


def test_surrogate_is_near_recorded_curves():
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


def test_recorded_points_are_designed():
    points = {task.point for task in designed()}
    curves = Curves.load()
    assert len(curves.points) > 90
    assert {Point(*point) for point in curves.points} <= points


def test_curves_survive_a_file():
    curves, path = Curves.load(), Path("curves.npz")
    curves.save(path)
    again = Curves.load(path)
    assert np.array_equal(again.points, curves.points)
    assert np.array_equal(again.correct, curves.correct)


def test_recording_stops_early_at_low_accuracy():
    rng = np.random.default_rng(0)
    X = np.hstack([rng.standard_normal((40, 3)), np.ones((40, 1))]).astype(np.float32)
    learnable = Split(X, (X[:, 0] > 0).astype(np.intp))
    inverted = Split(X, (X[:, 0] <= 0).astype(np.intp))
    whole, stopped = (
        record(
            make_config(),
            SimpleNamespace(folds=[SimpleNamespace(train=learnable, validation=validation)], classes=np.arange(2)),
            Task(0, Point(1e-2, 1e-7, 32)),
        )
        for validation in (learnable, inverted)
    )
    assert whole.shape == (EPOCHS,)
    assert whole[-1] > 900
    assert (stopped[:60] >= 0).all()
    assert (stopped[60:] == -1).all()


def test_spent_counts_epochs_of_all_trials():
    params = {"learning_rate": 1e-3, "regularization": 1e-3, "hidden_size": 100, "epochs": 200}
    trials = [running_trial(number, params, space_of(make_config())) for number in range(3)]
    trials[0].intermediate_values.update({11: 0.4, 200: 0.56})
    trials[0].state, trials[0].value = TrialState.COMPLETE, 0.56
    trials[1].intermediate_values.update({11: 0.3})
    active = [ActiveTrial(1, 9, 1, False), ActiveTrial(2, 5, 1, True)]
    study = SimpleNamespace(trials=trials, store=SimpleNamespace(active_trials=lambda: active))
    now = spent(study, since=0.0)
    assert now.compute == pytest.approx((200 + 11 + 5) * multiply_adds(100))
    assert now.best == 0.56
    assert now.seconds > 0
