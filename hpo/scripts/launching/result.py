"""Result of a script's study as JSON: the best parameters of any objective."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import TrialFailureError
from hpo.scripts.launching.confirmation import confirmed_trials, is_feasible, optuna_view, ranked, to_json
from hpo.storage.study import Study
from hpo.storage.tables.weight_retention import KEPT_WEIGHTS
from hpo.storage.trial_store import REASON, TRACEBACK
from hpo.tuning.confirmation import Confirmed, completion_times, sign_of
from hpo.tuning.outcomes import complete_trial
from hpo.utils.system import versions

SCHEMA_VERSION = 1
_PACKAGES = ("hpo", "optuna", "numpy", "sqlalchemy")


def study_result(study: Study, number: int | None = None) -> dict[str, Any]:
    """Return the exported result of a study that a script or a function made.

    Args:
        study: The study.
        number: The trial to export; None for the best, or for the Pareto front of several objectives.

    Raises:
        TrialFailureError: if no trial is complete, or the trial of this number is not.
    """
    view = optuna_view(study)
    trials = view.get_trials(deepcopy=False)
    confirmed: list[Confirmed] = []
    is_single = len(study.directions) == 1
    if number is not None:
        chosen = [complete_trial(study.name, trials, number, lambda: "give another --trial")]
    elif is_single:
        confirmed = confirmed_trials(study)
        chosen = [confirmed[0].trial] if confirmed else ranked(trials, sign_of(study))[:1]
    else:
        chosen = sorted(view.best_trials, key=lambda trial: trial.number)
    if not chosen:
        raise TrialFailureError(_no_best(study.name, trials))
    directions = [direction.name.lower() for direction in study.directions]
    settings, states = study.settings, Counter(trial.state for trial in trials)
    return {
        "schema_version": SCHEMA_VERSION,
        "study": study.name,
        **({"direction": directions[0]} if is_single else {"directions": directions}),
        **(_describe(chosen[0]) if is_single or number is not None else _describe_front(chosen)),
        "confirmation": finite(to_json(confirmed)),
        "trials": {
            "complete": states[TrialState.COMPLETE],
            "pruned": states[TrialState.PRUNED],
            "failed": states[TrialState.FAIL],
            "unfinished": sum(count for state, count in states.items() if not state.is_finished()),
        },
        "script": {
            "name": settings["objective.call"],
            "arguments": settings["objective.arguments"],
            "fingerprint": study.fingerprint,
        },
        "seed": settings["study.seed"],
        "created": _created(chosen, confirmed),
        "versions": versions(_PACKAGES),
    }


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a result in a few lines for people."""
    counts = ", ".join(f"{count} {state}" for state, count in result["trials"].items() if count)
    name = result["study"]
    if "pareto_front" in result:
        return [f"{name}: {len(result['pareto_front'])} trials in the Pareto front; {counts}"]
    confirmation = result["confirmation"]
    mean = f" (mean of {confirmation['seeds']} repeats: {confirmation['mean']:.6g})" if confirmation else ""
    params = "  ".join(f"{key} {value}" for key, value in result["params"].items())
    return [f"{name}: trial {result['trial']} is the best: {result['value']}{mean}; {counts}", *filter(None, [params])]


def artifact_of(study: Study, number: int | None) -> bytes:
    """Return the last checkpoint of a complete trial.

    Args:
        study: The study.
        number: The trial; None for a study whose trials have no order.

    Raises:
        TrialFailureError: if it is not kept.
    """
    if number is None or len(study.directions) > 1:
        raise TrialFailureError(
            f"the study '{study.name}' has several objectives, so its trials have no order and no checkpoint of a "
            "complete trial is kept; let the objective write a file"
        )
    artifact = study.store.weights(number)
    if artifact is None:
        raise TrialFailureError(_no_artifact(study, number))
    return artifact


def _no_artifact(study: Study, number: int) -> str:
    problem = f"the study '{study.name}' has no checkpoint of trial {number}"
    kept = study.store.retained_trials()
    if not kept:
        return f"{problem}, because its objective saves none; save one with hpo.save_checkpoint"
    numbers = ", ".join(map(str, kept))
    return f"{problem}; they are kept of the {KEPT_WEIGHTS} best complete trials; --trial takes any of {numbers}"


def _describe_front(front: Sequence[FrozenTrial]) -> dict[str, Any]:
    return {
        "values": [finite(trial.values) for trial in front],
        "pareto_front": [_describe(trial) for trial in front],
    }


def _describe(trial: FrozenTrial) -> dict[str, Any]:
    values = {"value": finite(trial.value)} if len(trial.values) == 1 else {"values": finite(trial.values)}
    attributes = {key: value for key, value in trial.user_attrs.items() if key not in (REASON, TRACEBACK)}
    return {
        "trial": trial.number,
        "params": finite(trial.params),
        **values,
        "user_attrs": finite(attributes),
    }


def _created(chosen: Sequence[FrozenTrial], confirmed: Sequence[Confirmed]) -> str | None:
    """Return the time of the last trial that the result depends on, so that each export gives the same JSON."""
    ended = [trial.datetime_complete for trial in chosen if trial.datetime_complete is not None]
    last = max(completion_times(confirmed), default=max(ended, default=None))
    # Optuna's objects have local times.
    return None if last is None else last.astimezone(UTC).isoformat(timespec="seconds")


def finite(value: Any) -> Any:
    """Return a value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _no_best(name: str, trials: Sequence[FrozenTrial]) -> str:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if complete and not any(map(is_feasible, complete)):
        return f"no complete trial of the study '{name}' satisfies its constraints; raise --trials"
    ended = Counter(trial.state.name.lower() for trial in trials if trial.state.is_finished())
    reasons = Counter(str(trial.user_attrs[REASON]) for trial in trials if REASON in trial.user_attrs)
    counts = ", ".join(f"{count} {state}" for state, count in ended.items()) or "none has ended"
    most = f"; most often: {reasons.most_common(1)[0][0]}" if reasons else ""
    return f"no trial of the study '{name}' is complete ({counts}){most}; correct the script, or raise --trials"
