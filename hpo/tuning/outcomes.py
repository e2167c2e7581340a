"""Explanation of a study's trials that are not complete, with advice."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.errors import TrialFailureError
from hpo.fleet.status import NO_NAMES, display_name
from hpo.runner.limits import MEMORY, TIMEOUT
from hpo.storage.tables.leases import ENDED_OUTSIDE
from hpo.storage.trial_store import REASON, failure_reason, is_ended_outside

COMPLETED_OUTSIDE = "completed by another program, without weights"

_DIVERGED = re.compile(r"diverged: .*\(loss (.*)\)$")
_PRUNED = re.compile(r"pruned (at|before|as) ")

_LIMITS = {TIMEOUT: "--trial-timeout", MEMORY: "--memory-limit"}

# The trials that a message names one by one.
_MAX_NUMBERS = 10


def explain_no_complete(config: StudyConfig, trials: Sequence[FrozenTrial]) -> str:
    """Return why a study has no complete trial, and what to do."""
    finished = [trial for trial in trials if trial.state.is_finished()]
    name = config.study.name
    if not finished:
        return f"no trial of the study '{name}' has ended yet; the same launch goes on"
    causes = Counter(_cause(trial) for trial in finished)
    unfinished = len(trials) - len(finished)
    advice = list(dict.fromkeys(filter(None, (_advice(config, cause) for cause in causes))))
    if unfinished:
        advice.append("the same launch goes on with the unfinished trials")
    if len(causes) == 1 and not unfinished:
        cause, count = next(iter(causes.items()))
        subject, was, its = ("the only trial", "was", "its") if count == 1 else (f"all {count} trials", "were", "their")
        cause = re.sub("^(over|pruned|ended|completed)", rf"{was} \1", cause).replace("over ", f"over {its} ", 1)
        return f"{subject} {cause}: {'; '.join(advice)}"
    counts = [f"{count} {cause}" for cause, count in causes.most_common()]
    trained = " and trained by hpo" * (COMPLETED_OUTSIDE in causes)
    counts += [f"{unfinished} unfinished"] * (unfinished > 0)
    return f"no trial of the study '{name}' is complete{trained}: {', '.join(counts)}: {'; '.join(advice)}"


def complete_trial(name: str, trials: Sequence[FrozenTrial], number: int, advice: Callable[[], str]) -> FrozenTrial:
    """Return the trial of a number.

    Args:
        name: The name of the study.
        trials: All trials of the study.
        number: The number.
        advice: Returns the advice for a trial that is not complete.

    Raises:
        TrialFailureError: if there is no such trial, or if it is not complete.
    """
    if number >= len(trials):
        known = f"its trials are 0 to {len(trials) - 1}" if trials else "it has no trials yet"
        raise TrialFailureError(f"the study '{name}' has no trial {number}; {known}")
    trial = trials[number]
    if trial.state != TrialState.COMPLETE:
        state = trial.state.name.lower() if trial.state.is_finished() else "unfinished"
        problem = f"trial {number} of the study '{name}' is not complete ({state}), so it has no result"
        raise TrialFailureError(f"{problem}; {advice()}")
    return trial


def describe_failures(trials: Sequence[FrozenTrial], noun: str = "trial", names: Mapping[int, str] = NO_NAMES) -> str:
    """Return the failed trials by reason, an empty text if none failed.

    Args:
        trials: The trials.
        noun: The kind of the trials.
        names: Display names by trial number. A trial without one is shown as its number.
    """
    numbers = defaultdict(list)
    for trial in trials:
        if (reason := failure_reason(trial)) is not None:
            numbers[_explain(reason)].append(display_name(trial.number, names))
    return "; ".join(f"{_numbered(noun, failed)} failed: {reason}" for reason, failed in numbers.items())


def describe_unfinished(trials: Sequence[FrozenTrial], budget: int, paused: int) -> str:
    """Return how many trials of a budget have ended, and the states of the others."""
    finished = sum(trial.state.is_finished() for trial in trials)
    interrupted, missing = len(trials) - finished - paused, max(0, budget - len(trials))
    states = ((paused, "paused"), (interrupted, "interrupted"), (missing, "not started"))
    rest = "".join(f", {count} {state}" for count, state in states if count)
    return f"{finished} of {max(budget, len(trials))} trials are finished{rest}"


def _numbered(noun: str, numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    more = f" and {len(numbers) - _MAX_NUMBERS} more" if len(numbers) > _MAX_NUMBERS else ""
    return f"{noun}s {', '.join(numbers[:_MAX_NUMBERS])}{more}"


def _reason(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(REASON, ENDED_OUTSIDE))


def _explain(reason: str) -> str:
    return f"{reason}, over its {_LIMITS[reason]}" if reason in _LIMITS else reason


def _cause(trial: FrozenTrial) -> str:
    reason = _reason(trial)
    if trial.state == TrialState.COMPLETE:
        return COMPLETED_OUTSIDE
    if is_ended_outside(trial):
        return ENDED_OUTSIDE
    if diverged := _DIVERGED.match(reason):
        return f"diverged (loss {diverged[1]})"
    if reason in _LIMITS:
        return f"over {_LIMITS[reason]}"
    if trial.state == TrialState.PRUNED and _PRUNED.match(reason):
        return "pruned"
    return f"failed ({_explain(reason)})"


def _advice(config: StudyConfig, cause: str) -> str:
    if cause.startswith("diverged"):
        is_unscaled = config.data is not None and config.data.scale == "none"
        scaled = ", and scale the features (data.scale)" * is_unscaled
        return f"lower the learning rate{scaled}, under another study.name"
    if cause.startswith("over "):
        return f"raise {cause.removeprefix('over ')} together with --trials, or change study.name"
    if cause in (ENDED_OUTSIDE, COMPLETED_OUTSIDE):
        return "raise --trials"
    if cause == "pruned":
        return 'raise --trials, or set study.pruner to "none" under another study.name'
    return "fix the cause and change study.name"
