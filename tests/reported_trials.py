"""Lists of trials with reports, for tests of pruners."""

from collections.abc import Mapping

from optuna.trial import FrozenTrial, TrialState, create_trial


def trials_of(*curves: Mapping[int, float], state: TrialState = TrialState.RUNNING) -> list[FrozenTrial]:
    """Return trials with these intermediate values."""
    value = 0.5 if state == TrialState.COMPLETE else None
    return number_trials([create_trial(state=state, value=value, intermediate_values=dict(curve)) for curve in curves])


def number_trials(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Give the trials the numbers of their positions, and return them."""
    for number, trial in enumerate(trials):
        trial.number = number
    return trials
