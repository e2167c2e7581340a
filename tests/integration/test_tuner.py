"""The path from a study config to a result, with real workers in SQLite."""

import math
import os
import signal
import statistics
import sys
import time

import numpy as np
import pytest
from factories import make_outage
from fakes import FakeListener
from subprocess_pool import SubprocessPool
from workers import make_config

from hpo.config.loader import load_config
from hpo.config.study import StudyConfig
from hpo.data.division.splits import raw_splits
from hpo.errors import StudyFileError, StudyMismatchError
from hpo.fleet.forkserver import server_running
from hpo.fleet.supervisor import SupervisorTimings
from hpo.runner.limits import Limits
from hpo.storage.database.connection import Database
from hpo.storage.trial_store import TrialStore
from hpo.tuning.sampling import accuracy_error
from hpo.tuning.tuner import Tuner, TunerTimings, TuningInterruptedError
from hpo.ui.cli import PRELOAD

STUDY = """
[study]
name = "tuned"
trials = 5
sampler = "random"
pruner = "none"

[data]
dataset = "digits"
split = { train = 400, validation = 100, test = 100 }

[train]
regularization = 1e-4
batch_size = 50

[space]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
hidden_size = { low = 8, high = 32 }
epochs = { low = 5, high = 10 }
"""


@pytest.fixture(autouse=True)
def _server():
    with server_running(PRELOAD):
        yield


class Recorder:
    """Listeners and banners of a tuner."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.listener = FakeListener()
        self.banners: list[str] = []

    def listener_for(self, title: str) -> FakeListener:
        self.titles.append(title)
        return self.listener


@pytest.fixture
def recorder():
    return Recorder()


def make_tuner(recorder, config=None, url="sqlite:///hpo.db", **options):
    return Tuner(
        config=config or make_config("tuned"),
        database=Database.parse(url),
        workers=options.pop("workers", 2),
        listener_for=recorder.listener_for,
        limits=Limits(30.0),
        on_start=recorder.banners.append,
        **options,
    )


def test_tuner_searches_confirms_and_exports(recorder, capfd):
    result = make_tuner(recorder, confirm=1).run()
    assert [trial.number for trial in result.trials] == [0, 1, 2, 3]
    assert result.parameters["trials"] == {"complete": 4, "pruned": 0, "failed": 0, "unfinished": 0}
    assert result.parameters["confirmation"]["seeds"] == 3
    assert result.failures == ""
    assert result.predictor.classes.tolist() == list(range(10))
    assert recorder.titles == ["tuned", "tuned", "confirmation of tuned"]
    assert [status.finished for status in recorder.listener.shown][-1] == 3
    (banner,) = recorder.banners
    assert banner.startswith("study tuned: 4 trials in sqlite:///hpo.db\ndata digits: 400/100/100 rows, 64 features")
    assert capfd.readouterr() == ("", "")


def test_finished_study_starts_no_worker(recorder):
    first = make_tuner(recorder).run()
    recorder.banners.clear()

    def refuse(*_: object):
        raise AssertionError("a finished study needs no workers")

    again = make_tuner(recorder, pool_for=refuse).run()
    assert again.parameters == first.parameters
    assert recorder.banners == []


def test_launch_repeats_each_query_of_finished_study(recorder, monkeypatch):
    first = make_tuner(recorder).run()
    calls, failing = 0, None

    def patched(method):
        def call(store, *arguments):
            nonlocal calls
            calls += 1
            if calls == failing:
                raise make_outage("terminating connection due to administrator command")
            return method(store, *arguments)

        return call

    for name in ("close_ended", "raise_budget", "refresh", "best_trained", "retained_trials", "weights"):
        monkeypatch.setattr(TrialStore, name, patched(getattr(TrialStore, name)))
    make_tuner(recorder).run()
    assert calls > 5
    for number in range(1, calls + 1):
        calls, failing = 0, number
        assert make_tuner(recorder).run().parameters == first.parameters


def test_interrupt_raises_progress_and_same_tuner_resumes(recorder):
    tuner = make_tuner(recorder, on_poll=lambda: os.kill(os.getpid(), signal.SIGINT), budget=40)
    with pytest.raises(
        TuningInterruptedError,
        match=r"^\d+ of 40 trials are finished.*; the same command goes on$",
    ):
        tuner.run()
    assert recorder.listener.notes == ["stopping: finishing the current epoch and keeping the checkpoints"]
    result = make_tuner(recorder, budget=40).run()
    assert len(result.trials) == 40


@pytest.mark.slow
def test_timeout_ends_search_without_confirmation(recorder):
    config = make_config("tuned", space={"epochs": {"choices": [5, 10_000_000]}})

    def clock():
        """Return the time, which is up as soon as a trial is complete."""
        return time.monotonic() + 2 * timeout_s * any(status.complete for status in recorder.listener.shown)

    timeout_s = 3600.0
    timings = TunerTimings(supervisor=SupervisorTimings(clock=clock))
    result = make_tuner(recorder, config, confirm=1, timeout_s=timeout_s, timings=timings).run()
    assert result.parameters["confirmation"] is None
    assert result.parameters["params"]["epochs"] == 5
    assert "the time is up: finishing the current epoch and keeping the checkpoints" in recorder.listener.notes


def test_enqueued_parameters_come_first_and_excess_is_noted(recorder):
    first = {"learning_rate": 0.05, "regularization": 1e-5, "hidden_size": 20, "epochs": 12}
    second = first | {"hidden_size": 21}
    result = make_tuner(recorder, enqueued=(first, second), budget=1, warnings=["a warning"]).run()
    assert result.trials[0].params == first
    excess = "no trial is left for 1 of the parameters to try first; raise --trials"
    assert recorder.listener.notes == ["a warning", excess]


def test_invalid_study_is_refused_before_database_is_created(recorder, tmp_path):
    with pytest.raises(StudyFileError, match=r"study\.sampler"):
        make_tuner(recorder, make_config(sampler="magic"))
    fixed = {"learning_rate": 0.01, "regularization": 1e-4, "hidden_size": 8}
    space = {"epochs": {"choices": [5, 6]}} | dict.fromkeys(fixed)
    with pytest.raises(StudyFileError, match="combinations"):
        make_tuner(recorder, make_config(space=space, train=fixed), budget=3)
    assert list(tmp_path.iterdir()) == []


def test_confirmation_of_other_settings_is_refused_before_search(recorder):
    make_tuner(recorder, confirm=1).run()
    with pytest.raises(StudyMismatchError, match="tuned"):
        make_tuner(recorder, make_config("tuned", seed=7), confirm=1).run()


@pytest.mark.slow
def test_pool_of_subprocesses_gives_same_result(recorder, tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(STUDY)
    command = [sys.executable, "-m", "hpo.worker", str(path), "--storage", "sqlite:///other.db"]
    config = load_config(path)
    local = make_tuner(recorder, config).run()
    other = make_tuner(recorder, config, "sqlite:///other.db", pool_for=lambda *_: SubprocessPool(command, 2)).run()
    assert other.parameters | {"created": ""} == local.parameters | {"created": ""}
    assert recorder.listener.notes == []


@pytest.mark.slow
def test_tuner_trains_and_exports_folds(recorder, monkeypatch):
    keys = {"dataset": "digits", "folds": 3, "repeats": 2, "split": {"test": 1497}, "pca": 0.9}
    config = StudyConfig.model_validate(make_config("tuned", trials=2).model_dump(mode="json") | {"data": keys})
    result = make_tuner(recorder, config, confirm=1).run()
    (banner,) = recorder.banners
    assert banner.splitlines()[1].startswith(
        "data digits: 2 x 3 folds of about 200/100 rows, 1497 test rows, 64 features"
    )
    choice = "the choice rests on 300 validation rows: one standard error of an accuracy of 0.9 is 0.018"
    assert banner.splitlines()[-1] == choice
    exported = result.parameters
    assert exported["data"]["folds"] == [{"train": 200, "validation": 100}] * 6
    validation = exported["validation"]
    values = validation["folds"]["values"]
    value = exported["metrics"]["validation_accuracy"]
    assert validation["rows"] == 300
    assert validation["sampling_error"] == accuracy_error(statistics.fmean(values[:3]), 300)
    assert statistics.fmean(values) == value == pytest.approx(result.trials[exported["trial"]].value)
    assert validation["folds"]["standard_error"] == statistics.stdev(values) / 3**0.5
    confirmed = exported["confirmation"]
    assert confirmed["standard_error"] == math.hypot(confirmed["seed_error"], confirmed["sampling_error"])
    assert confirmed["sampling_error"] == accuracy_error(confirmed["mean"], 300)
    X, y = raw_splits(config)["test"]
    assert (result.predictor.predict(X) == y).mean() == exported["metrics"]["test_accuracy"]


@pytest.mark.parametrize(
    ("y", "data", "metric", "problem"),
    [
        (
            [*"ab" * 30, "c", "c", "c"],
            {"order": "day"},
            "roc_auc",
            "roc_auc needs a validation row of each class, and class 'c' has none; use another metric, or "
            "remove the rows of this class",
        ),
        (
            np.linspace(0.1, 1.0, 20),
            {"folds": 17},
            None,
            "r2 needs 2 validation rows, and there is only 1 in fold 1; use another metric, or a larger validation "
            "split",
        ),
    ],
)
def test_metric_without_value_on_validation_rows_is_refused(recorder, tmp_path, y, data, metric, problem):
    X = np.random.default_rng(0).normal(size=(len(y), 2))
    np.savez(tmp_path / "own.npz", X=X, y=np.array(y), day=np.arange(len(y)))
    stored = make_config("tuned").model_dump(mode="json") | {"data": {"dataset": str(tmp_path / "own.npz"), **data}}
    stored["study"]["metric"] = metric
    with pytest.raises(StudyFileError) as caught:
        make_tuner(recorder, StudyConfig.model_validate(stored)).run()
    assert str(caught.value) == f"study.toml: study.metric: {problem}"
