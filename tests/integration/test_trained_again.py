"""Enqueued parameters and trials that are trained again, with one worker in this process, on real databases."""

import datetime as dt
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from workers import WorkerFactory, make_config

from hpo.config.study import StudyConfig
from hpo.data.cache import load_prepared, prepare
from hpo.errors import StudyMismatchError
from hpo.runner.limits import Limits
from hpo.runner.worker_loop import WorkerConfig
from hpo.search.enqueue import same
from hpo.search.samplers import propose
from hpo.storage.leases import KEPT_WEIGHTS
from hpo.tuning.confirmation import candidates, confirmation_config, confirmation_of, repeated
from hpo.tuning.result import export_best
from hpo.tuning.stages import Confirmation

GIVEN = {"learning_rate": 0.05, "regularization": 1e-5, "hidden_size": 20, "epochs": 12}
OTHER = GIVEN | {"hidden_size": 21}


def train_again(bench, study, spec, count=3, data="data"):
    """Confirm the best, as a launch does; returns the second study."""
    second = confirmation_config(spec)
    enqueued = repeated(candidates(study)[:count])
    joined = bench.join(second, data)
    told = second.model_copy(update={"study": second.study.model_copy(update={"trials": len(enqueued)})})
    bench.enqueued = enqueued
    bench.worker(joined, told).run()
    return joined


# Enqueued parameters


def test_what_is_enqueued_comes_before_what_is_proposed(bench):
    spec = make_config()
    study = bench.join(spec)
    bench.enqueued = (
        GIVEN,
        OTHER,
    )
    bench.worker(study, spec).run()
    params = [trial.params for trial in study.trials]
    assert params == [GIVEN, OTHER, propose(spec, study.trials[:2]), propose(spec, study.trials[:3])]
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_what_the_study_has_is_not_tried_again(bench):
    spec, more = make_config(trials=2), make_config(trials=5)
    study = bench.join(spec)
    bench.enqueued = (GIVEN,)
    bench.worker(study, spec).run()
    bench.enqueued = (
        GIVEN,
        study.trials[1].params,
        OTHER,
    )
    bench.worker(study, more).run()
    params = [trial.params for trial in study.trials]
    assert params[2] == OTHER
    assert len(set(map(same, params))) == 5


def test_what_is_enqueued_n_times_is_tried_n_times(bench):
    spec = make_config(trials=6)
    study = bench.join(spec)
    bench.enqueued = (
        GIVEN,
        OTHER,
        GIVEN,
        GIVEN,
    )
    bench.worker(study, spec).run()
    assert [trial.params for trial in study.trials[:4]] == [GIVEN, OTHER, GIVEN, GIVEN]
    assert Counter(same(trial.params) for trial in study.trials)[same(GIVEN)] == 3


# The best, trained again


def test_the_best_are_trained_again_to_their_end_with_other_seeds(bench):
    spec = make_config(trials=12)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    best = candidates(study)
    values = [trial.value for trial in best]
    assert (
        values == sorted((t.value for t in study.trials if t.state == TrialState.COMPLETE), reverse=True)[:KEPT_WEIGHTS]
    )
    second = train_again(bench, study, spec)
    assert [trial.params for trial in second.trials] == [best[rank].params for rank in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert {trial.state for trial in second.trials} == {TrialState.COMPLETE}
    first = [trial.intermediate_values for trial in second.trials[:3]]
    assert best[0].intermediate_values not in first
    assert first[0] != first[1] != first[2] != first[0]


@dataclass(frozen=True)
class InterruptedWorker:
    """A crew that trains in this process, in shifts; ``before`` each shift something happens."""

    bench: WorkerFactory
    before: Callable[[int], object]
    workers: int = 4
    has_time: bool = True
    shifts: list[tuple[int, int, str]] = field(default_factory=list)

    def train(self, study, config, title):
        self.shifts.append((self.workers, config.trials, title))
        self.before(len(self.shifts))
        self.bench.enqueued = config.enqueued
        spec = config.spec
        told = spec.model_copy(update={"study": spec.study.model_copy(update={"trials": config.trials})})
        self.bench.worker(study, told).run()


def stage(bench, study, spec, count):
    config = WorkerConfig(bench.url, spec, Path(), spec.study.trials, Limits(30), verbose=False)
    return Confirmation(study, config, count, "data")


def test_where_others_took_the_places_the_stage_goes_on_until_it_has_its_own(bench):
    spec = make_config()
    study = bench.join(spec)
    bench.worker(study, spec).run()

    def take_two_places(shift):
        if shift == 1:
            second = confirmation_config(spec)
            told = second.model_copy(update={"study": second.study.model_copy(update={"trials": 2})})
            bench.enqueued = (GIVEN, OTHER)
            bench.worker(bench.join(second), told, "worker_b").run()

    confirmation = stage(bench, study, spec, 2)
    assert confirmation.due
    hands = InterruptedWorker(bench, take_two_places)
    confirmation.train(hands)
    assert hands.shifts == [(4, 6, "confirmation of s"), (2, 8, "confirmation of s")]
    assert not confirmation.due
    assert [trial.params for trial in confirmation.trials[2:]] == list(repeated(candidates(study)[:2]))
    confirmation.train(hands)
    assert len(hands.shifts) == 2


def test_nothing_is_due_before_the_end_of_the_search_nor_where_it_is_not_asked_for(bench):
    spec, more = make_config(), make_config(trials=5)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    assert stage(bench, study, spec, 1).due
    assert not stage(bench, study, more, 1).due
    assert not stage(bench, study, spec, 0).due


def test_nothing_is_due_where_nothing_is_complete(bench):
    spec = make_config(space={"learning_rate": {"low": 1e5, "high": 1e6, "log": True}}, trials=1)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    assert not stage(bench, study, spec, 3).due


def test_without_time_nothing_is_trained_again(bench):
    spec = make_config()
    study = bench.join(spec)
    bench.worker(study, spec).run()
    stage(bench, study, spec, 1).train(InterruptedWorker(bench, pytest.fail, has_time=False))


def test_the_winners_net_is_exported(bench, tmp_path):
    spec = make_config(trials=6)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    folder = prepare(spec, tmp_path / "s.toml")
    before, _ = export_best(study, spec, folder)
    assert before["confirmation"] is None
    second = train_again(bench, study, spec, count=6, data=load_prepared(folder).fingerprint)
    with second.engine.begin() as connection:  # the last of them is to win, whatever it is worth
        last = second.trials[-1].params
        ids = [trial._trial_id for trial in second.trials if trial.params == last]
        connection.exec_driver_sql(f"UPDATE trial_values SET value = 2.0 WHERE trial_id IN {tuple(ids)}")
        connection.exec_driver_sql(
            f"UPDATE trials SET datetime_complete = '2031-01-02 03:04:05' WHERE trial_id = {ids[0]}"
        )
    after, predictor = export_best(study, spec, folder)
    winner = study.trials[after["trial"]]
    assert winner.params == last != study.trials[before["trial"]].params
    assert after["params"] == spec.hyperparameters(last).model_dump()
    assert after["metrics"]["validation_accuracy"] == winner.value
    assert (after["confirmation"]["mean"], after["confirmation"]["seeds"]) == (2.0, 3)
    assert len(after["confirmation"]["trials"]) == 6
    assert dt.datetime.fromisoformat(after["created"]).astimezone().year == 2031
    assert predictor.layers[0][0].shape[1] == last["hidden_size"]
    assert {key for key in after if after[key] != before[key]} == {
        "trial", "params", "metrics", "confirmation", "created",
    }  # fmt: skip


def test_with_nothing_searched_the_best_alone_is_trained_again(bench):
    fixed = {"learning_rate": 0.01, "regularization": 1e-4, "hidden_size": 8, "epochs": 5}
    spec = StudyConfig.model_validate(make_config().model_dump() | {"train": fixed, "space": {}})
    study = bench.join(spec)
    bench.worker(study, spec).run()
    (best,) = candidates(study)
    assert best.value == max(trial.value for trial in study.trials)
    second = train_again(bench, study, spec)
    assert len(second.trials) == 3
    assert [one.trial.number for one in confirmation_of(study, spec, "data")] == [best.number]


def test_a_study_of_before_is_exported_without_confirmation(bench, tmp_path):
    """It has the weights of its best trial alone, and no second study."""
    spec = make_config()
    study = bench.join(spec)
    bench.worker(study, spec).run()
    best = candidates(study)[0]
    with study.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE hpo_leases SET weights = NULL WHERE number != {best.number}")
    exported, _ = export_best(study, spec, prepare(spec, tmp_path / "s.toml"))
    assert (exported["trial"], exported["confirmation"]) == (best.number, None)
    assert candidates(study) == [best]


def test_the_second_study_of_a_deleted_one_of_the_same_name_confirms_nothing(bench, tmp_path):
    spec, changed = make_config(), make_config(seed=7)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    train_again(bench, study, spec)
    data = load_prepared(prepare(spec, tmp_path / "s.toml")).fingerprint
    assert confirmation_of(study, spec, "data")
    assert confirmation_of(study, spec, data) == []  # it was joined as "data"
    optuna.delete_study(study_name="s", storage=study.storage)
    study = bench.join(changed)
    bench.worker(study, changed).run()
    assert confirmation_of(study, changed, "data") == []
    with pytest.raises(StudyMismatchError, match=r"'s:confirmation' .* was made from other settings: study\.seed"):
        study.beside(confirmation_config(changed), "data")


def test_a_study_beside_that_is_missing_or_not_ours_is_none(bench):
    spec = make_config()
    study = bench.join(spec)
    assert study.beside(confirmation_config(spec), "data") is None
    optuna.create_study(study_name="s:confirmation", storage=study.storage)
    assert study.beside(confirmation_config(spec), "data") is None
