"""A worker without a launch, in this process."""

import os
import signal
from pathlib import Path

import pytest
from commands import write_study
from optuna.trial import TrialState

from hpo.config.loader import load_config
from hpo.errors import StudyFileError
from hpo.runner.standalone import StandaloneOptions, run, stop_event
from hpo.runner.training_objective import TrainingObjective
from hpo.storage.database.connection import Database
from hpo.storage.study import load_study
from hpo.storage.trial_store import REASON

URL = "sqlite:///hpo.db"


@pytest.fixture
def options():
    return StandaloneOptions(
        study=str(write_study()),
        storage=URL,
        storage_timeout=30.0,
        trials=2,
        trial_timeout=None,
        memory_limit=None,
        verbose=False,
    )


def trials_of(options):
    with load_study(Database.parse(URL), load_config(Path(options.study))) as study:
        return study.trials


def test_worker_creates_and_finishes_study(options):
    assert run(options)
    assert [trial.state for trial in trials_of(options)] == [TrialState.COMPLETE] * 2


def test_signal_stops_worker_and_keeps_trial(options, monkeypatch):
    call = TrainingObjective.__call__

    def call_with_signal(objective, trial):
        os.kill(os.getpid(), signal.SIGTERM)
        return call(objective, trial)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingObjective, "__call__", call_with_signal)
        assert not run(options)
    assert TrialState.RUNNING in [trial.state for trial in trials_of(options)] or len(trials_of(options)) < 2
    assert run(options)
    assert [trial.state for trial in trials_of(options)] == [TrialState.COMPLETE] * 2


def test_repeated_error_of_objective_fails_trial(options, monkeypatch):
    call = TrainingObjective.__call__

    def call_with_bug(objective, trial):
        if trial.number == 0:
            raise KeyError("bug")
        return call(objective, trial)

    monkeypatch.setattr(TrainingObjective, "__call__", call_with_bug)
    for _ in range(3):
        with pytest.raises(KeyError, match="bug"):
            run(options)
    assert run(options)
    first, second = trials_of(options)
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert first.user_attrs[REASON] == "crashed 3 times: KeyError: 'bug'"


def test_invalid_study_is_refused_before_database(options, tmp_path):
    (tmp_path / "tiny.toml").write_text((tmp_path / "tiny.toml").read_text().replace('"random"', '"guessing"'))
    with pytest.raises(StudyFileError, match="guessing"):
        run(options)
    assert not (tmp_path / "hpo.db").exists()


def test_stop_event_is_set_by_signal():
    with stop_event() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait()
