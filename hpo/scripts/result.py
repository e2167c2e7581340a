"""Result of a script's study as JSON: the best parameters of any objective."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import TrialFailureError
from hpo.scripts.script import Script
from hpo.storage.trial_store import REASON, TRACEBACK
from hpo.utils.system import versions

SCHEMA_VERSION = 1
_PACKAGES = ("hpo", "optuna", "numpy", "sqlalchemy")


def study_result(study: optuna.Study, script: Script, fingerprint: str, seed: int) -> dict[str, Any]:
    """Return the exported result of a study.

    Args:
        study: The study.
        script: The script.
        fingerprint: The fingerprint of the script.
        seed: The seed of trials whose sampler has no other.

    Raises:
        TrialFailureError: if no trial is complete.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise TrialFailureError(_no_complete(study.study_name, trials))
    result: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "study": study.study_name}
    directions = [direction.name.lower() for direction in study.directions]
    if len(directions) == 1:
        result |= {"direction": directions[0], **_describe(study.best_trial)}
    else:
        front = sorted(study.best_trials, key=lambda trial: trial.number)
        result |= {
            "directions": directions,
            "values": [_finite(trial.values) for trial in front],
            "pareto_front": [_describe(trial) for trial in front],
        }
    states = Counter(trial.state for trial in trials)
    ended = [trial.datetime_complete for trial in complete if trial.datetime_complete is not None]
    return result | {
        "trials": {
            "complete": states[TrialState.COMPLETE],
            "pruned": states[TrialState.PRUNED],
            "failed": states[TrialState.FAIL],
            "unfinished": sum(count for state, count in states.items() if not state.is_finished()),
        },
        "script": {"name": script.path.name, "arguments": list(script.arguments), "fingerprint": fingerprint},
        "seed": seed,
        "created": max(ended).isoformat(timespec="seconds") if ended else None,
        "versions": versions(_PACKAGES),
    }


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a result in a few lines for people."""
    counts = ", ".join(f"{count} {state}" for state, count in result["trials"].items() if count)
    name = result["study"]
    if "pareto_front" in result:
        return [f"{name}: {len(result['pareto_front'])} trials in the Pareto front; {counts}"]
    params = "  ".join(f"{key} {value}" for key, value in result["params"].items())
    return [f"{name}: trial {result['trial']} is the best: {result['value']}; {counts}", *filter(None, [params])]


def _describe(trial: FrozenTrial) -> dict[str, Any]:
    values = {"value": _finite(trial.value)} if len(trial.values) == 1 else {"values": _finite(trial.values)}
    attributes = {key: value for key, value in trial.user_attrs.items() if key not in (REASON, TRACEBACK)}
    return {"trial": trial.number, "params": _finite(trial.params), **values, "user_attrs": _finite(attributes)}


def _finite(value: Any) -> Any:
    """Return a value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _no_complete(name: str, trials: list[FrozenTrial]) -> str:
    ended = Counter(trial.state.name.lower() for trial in trials if trial.state.is_finished())
    reasons = Counter(str(trial.user_attrs[REASON]) for trial in trials if REASON in trial.user_attrs)
    counts = ", ".join(f"{count} {state}" for state, count in ended.items()) or "none has ended"
    most = f"; most often: {reasons.most_common(1)[0][0]}" if reasons else ""
    return f"no trial of the study '{name}' is complete ({counts}){most}; correct the script, or raise --trials"
