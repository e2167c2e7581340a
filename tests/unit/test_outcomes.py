"""Messages about trials that are not complete."""

import pytest
from factories import make_storage_config
from optuna.trial import TrialState, create_trial

from hpo.storage.study import best_trial
from hpo.tuning.outcomes import describe_failures, describe_unfinished, explain_no_complete

DIVERGED = "diverged: epoch 1: the loss or a weight is not finite (loss nan)"
RUNNING = (TrialState.RUNNING, None)


def make_trials(*endings):
    """Return trials of these states and reasons."""
    trials = []
    for number, (state, reason) in enumerate(endings):
        trial = create_trial(state=state, user_attrs={} if reason is None else {"reason": reason})
        trial.number = number
        trials.append(trial)
    return trials


def pruned(reason):
    return TrialState.PRUNED, reason


def failed(reason):
    return TrialState.FAIL, reason


@pytest.mark.parametrize(
    ("endings", "explained"),
    [
        ([pruned(DIVERGED)] * 4, "all 4 trials diverged (loss nan): lower the learning rate, under another study.name"),
        ([pruned(DIVERGED)], "the only trial diverged (loss nan): lower the learning rate, under another study.name"),
        (
            [pruned("timeout"), failed("timeout")],
            "all 2 trials were over their --trial-timeout: raise --trial-timeout together with --trials, "
            "or change study.name",
        ),
        (
            [failed("memory")],
            "the only trial was over its --memory-limit: raise --memory-limit together with --trials, "
            "or change study.name",
        ),
        (
            [pruned("pruned at epoch 3")] * 3,
            'all 3 trials were pruned: raise --trials, or set study.pruner to "none" under another study.name',
        ),
        (
            [failed("crashed 3 times: killed by SIGKILL")] * 2,
            "all 2 trials failed (crashed 3 times: killed by SIGKILL): fix the cause and change study.name",
        ),
        (
            [pruned(DIVERGED), pruned(DIVERGED), failed("timeout"), RUNNING],
            "no trial of the study 's' is complete: 2 diverged (loss nan), 1 over --trial-timeout, 1 unfinished: "
            "lower the learning rate, under another study.name; "
            "raise --trial-timeout together with --trials, or change study.name; "
            "the same launch goes on with the unfinished trials",
        ),
        ([RUNNING], "no trial of the study 's' has ended yet; the same launch goes on"),
        ([], "no trial of the study 's' has ended yet; the same launch goes on"),
        ([failed(None)], "the only trial was ended outside of hpo: raise --trials"),
    ],
)
def test_cause_and_advice_fit_the_trials(endings, explained):
    assert explain_no_complete(make_storage_config(), make_trials(*endings)) == explained


def test_unscaled_features_are_named_as_cause():
    config = make_storage_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"scale": "none"})})
    explained = explain_no_complete(config, make_trials(pruned(DIVERGED)))
    assert explained.endswith("lower the learning rate, and scale the features (data.scale), under another study.name")


def test_failures_are_grouped_by_reason():
    trials = make_trials(failed("timeout"), pruned("timeout"), failed("crashed 3 times: x"), *[failed("timeout")] * 11)
    assert describe_failures(trials) == (
        "trials 0, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more failed: timeout, over its --trial-timeout; "
        "trial 2 failed: crashed 3 times: x"
    )
    assert describe_failures(make_trials(RUNNING)) == ""


def test_failures_are_listed_by_name():
    trials = make_trials(failed("crashed 3 times: x"), RUNNING, failed("crashed 3 times: x"))
    assert describe_failures(trials, "confirmation trial", {0: "5 seed 1/3"}) == (
        "confirmation trials 5 seed 1/3, 2 failed: crashed 3 times: x"
    )


def test_unfinished_trials_are_counted_by_state():
    trials = make_trials(pruned("pruned at epoch 3"), *[RUNNING] * 5)
    counted = "1 of 9 trials are finished, 3 paused, 2 interrupted, 3 not started"
    assert describe_unfinished(trials, budget=9, paused=3) == counted
    assert describe_unfinished(trials[:1], budget=1, paused=0) == "1 of 1 trials are finished"


@pytest.mark.parametrize(("sign", "expected"), [(1, 1), (-1, 0)])
def test_best_trial_follows_sign(sign, expected):
    values = [0.1, 0.9, None, 0.1, 0.9]
    trials = [create_trial(state=TrialState.COMPLETE if value else TrialState.FAIL, value=value) for value in values]
    for number, trial in enumerate(trials):
        trial.number = number
    assert best_trial(trials, sign).number == expected
