"""Enqueued parameters and repeated trials, with one worker in this process, on real databases."""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import optuna
import pytest
from factories import execute
from optuna.trial import TrialState
from workers import WorkerFactory, make_config, make_objective

from hpo.config.study import StudyConfig
from hpo.data.prepared.cache import prepare
from hpo.errors import StudyMismatchError, TrialFailureError
from hpo.models.nets.hyperparameters import hyperparameters_of
from hpo.runner.limits import Limits
from hpo.runner.training_objective import TrainingObjective
from hpo.runner.worker_loop import WorkerConfig
from hpo.search.enqueue import params_key
from hpo.search.sampling.samplers import make_sampler, propose
from hpo.storage.database.connection import close
from hpo.storage.tables.weight_retention import KEPT_WEIGHTS
from hpo.tuning.confirmation import Confirmation, candidates, confirmation_config, confirmed_trials, repeat_params
from hpo.tuning.result import export_best, export_recorded, export_trial

pytestmark = pytest.mark.postgresql_is_slow

FIRST = {"learning_rate": 0.05, "regularization": 1e-5, "hidden_size": 20, "epochs": 12}
SECOND = FIRST | {"hidden_size": 21}


def with_budget(config, budget):
    return config.model_copy(update={"study": config.study.model_copy(update={"trials": budget})})


def proposal(config, trials):
    """Return the parameters that the sampler proposes after these trials."""
    objective = make_objective(config)
    sampler = make_sampler(config.study.sampler, objective.cost_parameter)
    return propose(sampler, objective.space, trials, config.study.seed)


@contextmanager
def opened(database):
    rdb = database.open()
    yield rdb
    close(rdb)


def search(bench, config):
    """Train a study to its end."""
    study = bench.join(config)
    bench.worker(study, config).run()
    return study


def confirm(bench, study, config, count=3, fingerprint="data"):
    """Repeat the best trials as a launch does; return the confirmation study."""
    second_config = confirmation_config(config)
    second = bench.join(second_config, fingerprint)
    bench.enqueued = repeat_params(candidates(study)[:count])
    bench.worker(second, with_budget(second_config, len(bench.enqueued))).run()
    return second


def test_enqueued_parameters_come_before_proposals(bench):
    config = make_config()
    study = bench.join(config)
    bench.enqueued = (
        FIRST,
        SECOND,
    )
    bench.worker(study, config).run()
    params = [trial.params for trial in study.trials]
    assert params == [FIRST, SECOND, proposal(config, study.trials[:2]), proposal(config, study.trials[:3])]
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_existing_parameters_are_not_enqueued(bench):
    config, more = make_config(trials=2), make_config(trials=5)
    study = bench.join(config)
    bench.enqueued = (FIRST,)
    bench.worker(study, config).run()
    bench.enqueued = (
        FIRST,
        study.trials[1].params,
        SECOND,
    )
    bench.worker(study, more).run()
    params = [trial.params for trial in study.trials]
    assert params[2] == SECOND
    assert len(set(map(params_key, params))) == 5


def test_repeated_enqueued_parameters_are_repeated(bench):
    config = make_config(trials=6)
    study = bench.join(config)
    bench.enqueued = (
        FIRST,
        SECOND,
        FIRST,
        FIRST,
    )
    bench.worker(study, config).run()
    assert [trial.params for trial in study.trials[:4]] == [FIRST, SECOND, FIRST, FIRST]
    assert Counter(params_key(trial.params) for trial in study.trials)[params_key(FIRST)] == 3


def test_repeats_have_other_seeds(bench):
    config = make_config(trials=12)
    study = search(bench, config)
    best = candidates(study)
    values = [trial.value for trial in best]
    assert (
        values == sorted((t.value for t in study.trials if t.state == TrialState.COMPLETE), reverse=True)[:KEPT_WEIGHTS]
    )
    second = confirm(bench, study, config)
    assert [trial.params for trial in second.trials] == [best[rank].params for rank in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert {trial.state for trial in second.trials} == {TrialState.COMPLETE}
    first = [trial.intermediate_values for trial in second.trials[:3]]
    assert best[0].intermediate_values not in first
    assert first[0] != first[1] != first[2] != first[0]


@dataclass(frozen=True)
class LocalTrainer:
    """Trainer with one worker in this process.

    Attributes:
        before: Called with the number of each round before its training.
        rounds: The highest number of workers, the budget and the title of each round.
    """

    bench: WorkerFactory
    before: Callable[[int], object]
    has_time: bool = True
    rounds: list[tuple[int | None, int, str]] = field(default_factory=list)

    def train(self, training):
        config = training.config
        self.rounds.append((training.max_workers, config.budget, training.title))
        self.before(len(self.rounds))
        self.bench.enqueued = config.enqueued
        self.bench.worker(training.study, with_budget(config.config, config.budget)).run()


def make_stage(bench, study, config, count):
    def worker_config(config):
        objective = TrainingObjective.from_config(config, prepare(config))
        objective.fingerprint = "data"
        return WorkerConfig(bench.database, config, objective, config.study.trials, Limits(30), verbose=False)

    return Confirmation(study, worker_config(config), count, worker_config)


def test_stage_repeats_until_its_own_trials_finished(bench):
    config = make_config()
    study = search(bench, config)

    def train_other_repeats(number):
        if number == 1:
            second = with_budget(confirmation_config(config), 2)
            bench.enqueued = (FIRST, SECOND)
            bench.worker(bench.join(second), second, "worker_b").run()

    confirmation = make_stage(bench, study, config, 2)
    assert confirmation.is_needed
    trainer = LocalTrainer(bench, train_other_repeats)
    confirmation.run(trainer)
    assert trainer.rounds == [(6, 6, "confirmation of s"), (2, 8, "confirmation of s")]
    assert not confirmation.is_needed
    assert [trial.params for trial in confirmation.trials[2:]] == list(repeat_params(candidates(study)[:2]))
    confirmation.run(trainer)
    assert len(trainer.rounds) == 2


def test_stage_repeats_what_a_launch_with_higher_count_needs(bench):
    config = make_config()
    study = search(bench, config)
    best = candidates(study)

    def raise_budget(_):
        bench.join(confirmation_config(config)).store.raise_budget(len(repeat_params(best[:3])))

    make_stage(bench, study, config, 1).run(LocalTrainer(bench, raise_budget))
    other = make_stage(bench, study, config, 3)
    assert [trial.params for trial in other.trials] == list(repeat_params(best[:3]))
    assert not other.is_needed


def test_trial_without_parameters_counts_as_missing_repeat(bench):
    """A worker of another launch writes the number of a trial before its parameters."""
    config = make_config(trials=3)
    study = search(bench, config)
    stage = make_stage(bench, study, config, 1)
    with stage._open() as second:
        second.store.raise_budget(3)
        assert second.store.allocate("worker of another launch") is not None
        assert [trial.params for trial in second.trials] == [{}]
        assert stage._worker_config(second.trials).budget == 3


def test_confirmation_is_needed_after_search_on_request(bench):
    config, more = make_config(), make_config(trials=5)
    study = search(bench, config)
    assert make_stage(bench, study, config, 1).is_needed
    assert not make_stage(bench, study, more, 1).is_needed
    assert not make_stage(bench, study, config, 0).is_needed


def test_confirmation_needs_complete_trial(bench):
    config = make_config(space={"learning_rate": {"low": 1e5, "high": 1e6, "log": True}}, trials=1)
    study = search(bench, config)
    assert not make_stage(bench, study, config, 3).is_needed


def test_trial_without_result_is_refused(bench):
    config = make_config(space={"learning_rate": {"low": 1e5, "high": 1e6, "log": True}}, trials=1)
    diverged = search(bench, config)
    with pytest.raises(TrialFailureError, match=r"trial 0 .* not complete \(pruned\).*; no trial can be exported"):
        export_recorded(diverged, config, 0)
    with pytest.raises(TrialFailureError, match=r"has no trial 7; its trials are 0 to 0"):
        export_trial(diverged, config, prepare(config), 7)


def test_trial_without_weights_is_refused_with_others_that_have_them(bench):
    config = make_config(trials=3)
    study = search(bench, config)
    best, *others = (trial.number for trial in candidates(study))
    execute(bench.database, f"UPDATE hpo_leases SET weights = NULL WHERE number = {best}")
    kept = ", ".join(map(str, others))
    with pytest.raises(TrialFailureError, match=rf"no weights of trial {best}; .*--trial exports any of {kept}$"):
        export_trial(study, config, prepare(config), best)


def test_stage_without_time_trains_nothing(bench):
    config = make_config()
    study = search(bench, config)
    make_stage(bench, study, config, 1).run(LocalTrainer(bench, pytest.fail, has_time=False))


def test_net_of_winner_is_exported(bench):
    config = make_config(trials=6)
    study = search(bench, config)
    data = prepare(config)
    before, _ = export_best(study, config, data)
    assert before["confirmation"] is None
    second = confirm(bench, study, config, count=6, fingerprint=data.fingerprint)
    # The repeats of the last parameters get the highest values, so that another trial wins.
    last = second.trials[-1].params
    ids = [trial._trial_id for trial in second.trials if trial.params == last]
    execute(bench.database, f"UPDATE trial_values SET value = 2.0 WHERE trial_id IN {tuple(ids)}")
    execute(bench.database, f"UPDATE trials SET datetime_complete = '2031-01-02 03:04:05' WHERE trial_id = {ids[0]}")
    # A new connection has no cached trials.
    study = bench.join(config)
    after, predictor = export_best(study, config, data)
    winner = study.trials[after["trial"]]
    assert winner.params == last != study.trials[before["trial"]].params
    assert after["params"] == hyperparameters_of(config, last).model_dump()
    assert after["metrics"]["validation_accuracy"] == winner.value
    assert (after["confirmation"]["mean"], after["confirmation"]["seeds"]) == (2.0, 3)
    assert len(after["confirmation"]["trials"]) == 6
    assert after["created"] == "2031-01-02T03:04:05+00:00"
    assert predictor.members[0].model.weights[0][0].shape[1] == last["hidden_size"]
    assert {key for key in after if after[key] != before[key]} == {
        "trial",
        "validation",
        "params",
        "metrics",
        "confirmation",
        "created",
    }


def test_empty_space_confirms_best_trial(bench):
    fixed = {"learning_rate": 0.01, "regularization": 1e-4, "hidden_size": 8, "epochs": 5}
    config = StudyConfig.model_validate(make_config().model_dump() | {"train": fixed, "space": {}})
    study = search(bench, config)
    (best,) = candidates(study)
    assert best.value == max(trial.value for trial in study.trials)
    second = confirm(bench, study, config)
    assert len(second.trials) == 3
    assert [entry.trial.number for entry in confirmed_trials(study, config, "data")] == [best.number]


def test_old_study_is_exported_without_confirmation(bench):
    # It has only the weights of its best trial, and no confirmation study.
    config = make_config()
    study = search(bench, config)
    best = candidates(study)[0]
    execute(bench.database, f"UPDATE hpo_leases SET weights = NULL WHERE number != {best.number}")
    exported, _ = export_best(study, config, prepare(config))
    assert (exported["trial"], exported["confirmation"]) == (best.number, None)
    assert candidates(study) == [best]


def test_confirmation_of_other_settings_is_ignored(bench):
    config, changed = make_config(), make_config(seed=7)
    study = search(bench, config)
    confirm(bench, study, config)
    assert confirmed_trials(study, config, "data")
    assert confirmed_trials(study, config, prepare(config).fingerprint) == []
    with opened(bench.database) as rdb:
        # A database of an earlier version may have no trigger that removes the confirmation.
        on_table = "" if bench.database.is_sqlite else " ON study_user_attributes"
        execute(bench.database, f"DROP TRIGGER hpo_study_deleted{on_table}")
        optuna.delete_study(study_name="s", storage=rdb)
    study = bench.join(changed)
    bench.worker(study, changed).run()
    assert confirmed_trials(study, changed, "data") == []
    with pytest.raises(StudyMismatchError, match=r"'s:confirmation' .* was made from other settings: study\.seed"):
        study.sibling(confirmation_config(changed), "data")


def test_missing_or_foreign_sibling_is_none(bench):
    config = make_config()
    study = bench.join(config)
    assert study.sibling(confirmation_config(config), "data") is None
    with opened(bench.database) as rdb:
        optuna.create_study(study_name="s:confirmation", storage=rdb)
    assert study.sibling(confirmation_config(config), "data") is None
