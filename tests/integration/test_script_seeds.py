"""The seed that a user's function reads as an attribute of its trial, and repeats with other seeds."""

import copy
import json

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from script_studies import CONFIG, open_script_study, run_function

from hpo.runner.function_trial import trial_seed
from hpo.scripts.launching.confirmation import (
    candidates,
    confirmed_trials,
    enqueue_repeats,
    has_read_seed,
    open_confirmation,
    read_repeats,
)
from hpo.scripts.launching.result import study_result
from hpo.tuning.confirmation import CONFIRMATION_SEEDS, confirmation_config

pytestmark = pytest.mark.postgresql_is_slow

SECOND = confirmation_config(CONFIG)


@pytest.fixture(params=[StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE])
def study(request, database):
    with open_script_study(database, request.param) as study:
        yield study


@pytest.fixture
def minimizing(database):
    with open_script_study(database) as study:
        yield study


READS = {
    "item": lambda trial: trial.user_attrs["seed"],
    "get": lambda trial: trial.user_attrs.get("seed"),
    "default": lambda trial: trial.user_attrs.get("seed", -1),
    "in": lambda trial: trial.user_attrs["seed"] if "seed" in trial.user_attrs else -1,  # noqa: SIM401  # tested
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_function_that_reads_seed_gets_it_as_attribute(minimizing, read):
    script_study = run_function(minimizing, read, 3)
    seeds = [trial.user_attrs["seed"] for trial in script_study.trials]
    assert seeds == [trial.value for trial in script_study.trials] == [trial_seed(0, number) for number in range(3)]
    assert len(set(seeds)) == 3
    assert all(has_read_seed(trial, CONFIG) for trial in script_study.trials)


OTHER_READS = {
    "nothing": lambda _: 1.0,
    "another attribute": lambda trial: trial.user_attrs.get("other", 1.0),
    "all attributes": lambda trial: 1.0 + len(dict(trial.user_attrs)) + len(trial.user_attrs.items()),
    "a copy": lambda trial: 1.0 + len(copy.deepcopy(trial.user_attrs)) + len(json.dumps(trial.user_attrs)) - 2,
    "a missing attribute": lambda trial: 1.0 if "other" not in trial.user_attrs else 0.0,
}


@pytest.mark.parametrize("function", OTHER_READS.values(), ids=OTHER_READS)
def test_function_that_does_not_read_seed_has_no_attribute(minimizing, function):
    (trial,) = run_function(minimizing, function, 1).trials
    assert (trial.user_attrs, trial.value) == ({}, 1.0)
    assert not has_read_seed(trial, CONFIG)


def test_missing_attribute_is_key_error(minimizing):
    (trial,) = run_function(minimizing, lambda trial: trial.user_attrs["other"], 1).trials
    assert trial.user_attrs["reason"] == "KeyError: 'other'"


def test_own_seed_of_script_stays(minimizing):
    def function(trial):
        trial.set_user_attr("seed", "mine")
        assert trial.user_attrs["seed"] == trial.user_attrs.get("seed") == "mine"
        return 1.0

    (trial,) = run_function(minimizing, function, 1).trials
    assert (trial.state, trial.user_attrs) == (TrialState.COMPLETE, {"seed": "mine"})
    assert not has_read_seed(trial, CONFIG)


def noisy(trial):
    """Return a value near x, whose noise depends on the seed alone."""
    return trial.suggest_float("x", 0, 10) + trial.suggest_int("n", 1, 3) + trial.user_attrs["seed"] / 2**31


def confirm(study, function=noisy, count=2):
    """Repeat the best trials of a study; return their numbers and all repeats."""
    best = candidates(study)[:count]
    with open_confirmation(study, CONFIG) as second:
        repeats = enqueue_repeats(second, CONFIG, best)
        run_function(second, function, len(repeats), SECOND)
        return [trial.number for trial in best], read_repeats(second)


def test_best_trials_are_repeated_with_other_seeds(study):
    run_function(study, noisy, 6)
    best, repeats = confirm(study)
    trials, sign = study.trials, -1 if study.direction == StudyDirection.MINIMIZE else 1
    assert best == sorted(range(6), key=lambda number: -sign * trials[number].value)[:2]
    assert len(repeats) == 2 * CONFIRMATION_SEEDS
    assert [repeat.params for repeat in repeats] == [
        trials[number].params for number in best for _ in range(CONFIRMATION_SEEDS)
    ]
    seeds = [repeat.user_attrs["seed"] for repeat in repeats]
    assert len(set(seeds)) == CONFIRMATION_SEEDS
    assert seeds[:CONFIRMATION_SEEDS] == seeds[CONFIRMATION_SEEDS:]
    assert not set(seeds) & {trial.user_attrs["seed"] for trial in trials}


def test_mean_of_repeats_selects_winner(study):
    run_function(study, noisy, 6)
    sign = -1 if study.direction == StudyDirection.MINIMIZE else 1
    best = candidates(study)[0]

    def disappointing(trial):
        return noisy(trial) - sign * 100 * (trial.params["x"] == best.params["x"])

    (first, second), _ = confirm(study, disappointing)
    result = study_result(study)
    assert (first, result["trial"]) == (best.number, second)
    confirmation = result["confirmation"]
    assert [entry["trial"] for entry in confirmation["trials"]] == [second, first]
    assert confirmation["seeds"] == len(confirmation["values"]) == CONFIRMATION_SEEDS
    assert confirmation["mean"] == pytest.approx(sum(confirmation["values"]) / CONFIRMATION_SEEDS)
    assert confirmation["trials"][0]["value"] == study.trials[second].value


def test_trial_whose_repeats_fail_does_not_win(minimizing):
    run_function(minimizing, noisy, 4)
    best = candidates(minimizing)[0]

    def unreliable(trial):
        # It fails before it has recorded all parameters.
        if trial.suggest_float("x", 0, 10) == best.params["x"]:
            raise ValueError("another seed fails")
        return noisy(trial)

    (first, second), _ = confirm(minimizing, unreliable)
    assert (first, study_result(minimizing)["trial"]) == (best.number, second)


def test_missing_repeats_are_enqueued_once(minimizing):
    run_function(minimizing, noisy, 4)
    best = candidates(minimizing)
    with open_confirmation(minimizing, CONFIG) as second:
        seen = [len(enqueue_repeats(second, CONFIG, best[:count])) for count in (1, 2, 2, 1, 3)]
    assert seen == [CONFIRMATION_SEEDS * count for count in (1, 2, 2, 2, 3)]


def test_result_is_not_confirmed_before_repeats_have_ended(minimizing):
    run_function(minimizing, noisy, 4)
    with open_confirmation(minimizing, CONFIG) as second:
        repeats = enqueue_repeats(second, CONFIG, candidates(minimizing)[:1])
        run_function(second, noisy, len(repeats) - 1, SECOND)
        assert confirmed_trials(minimizing) == []
        assert study_result(minimizing)["confirmation"] is None
        run_function(second, noisy, len(repeats), SECOND)
    assert study_result(minimizing)["confirmation"]["seeds"] == CONFIRMATION_SEEDS


def test_result_is_not_confirmed_after_better_trial(minimizing):
    run_function(minimizing, noisy, 3)
    confirm(minimizing)
    run_function(minimizing, lambda trial: noisy(trial) - 100, 4)
    result = study_result(minimizing)
    assert (result["trial"], result["confirmation"]) == (3, None)


def test_seed_depends_on_seed_of_study(database):
    config = CONFIG.model_copy(update={"study": CONFIG.study.model_copy(update={"name": "other", "seed": 1})})
    with open_script_study(database, config=config) as study:
        (trial,) = run_function(study, lambda trial: trial.user_attrs["seed"], 1, config).trials
    assert trial.user_attrs["seed"] == trial_seed(1, 0) != trial_seed(0, 0)
    assert has_read_seed(trial, config)
    assert not has_read_seed(trial, CONFIG)
