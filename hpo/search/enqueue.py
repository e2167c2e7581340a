"""Parameters that a study is to have before any that its sampler proposes: those it lacks, and those in a file."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.config.study import Parameter, Range, StudyConfig, is_whole
from hpo.errors import EnqueueError

Params = Mapping[str, Any]


def missing(enqueued: Sequence[Params], trials: Iterable[FrozenTrial]) -> list[Params]:
    """Those that the study does not have yet; of what is enqueued n times, as many as it lacks of n."""
    if not enqueued:
        return []
    had = Counter(same(trial.params) for trial in trials)
    lacking = []
    for params in enqueued:
        if had[same(params)]:
            had[same(params)] -= 1
        else:
            lacking.append(params)
    return lacking


def same(params: Params) -> frozenset[tuple[str, Any]]:
    """What equal parameters have in common, to be counted and looked up by."""
    return frozenset(params.items())


def load_enqueued(path: Path, spec: StudyConfig) -> tuple[dict[str, Any], list[str]]:
    """The parameters in a JSON file, as a trial of this study has them, and what else the file says but is not tried.

    Args:
        path: What a launch or an export wrote, or an object of parameters alone.
        spec: The study file.

    Raises:
        EnqueueError: the file cannot be read, or the study cannot try what is in it.
    """
    given = _read(path)
    params = {}
    for key in spec.space:
        if key not in given:
            raise EnqueueError(f"{path}: {key}: missing; this study searches it")
        params[key] = _allowed(spec, key, given[key])
        if params[key] is None:
            raise EnqueueError(f"{path}: {key}: {_describe(spec, key)} is allowed, not {json.dumps(given[key])}")
    return params, [f"{path}: {said}" for said in _left_out(spec, params, given)]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EnqueueError(f"{path}: no such file") from None
    except OSError as error:
        raise EnqueueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise EnqueueError(f"{path}: not JSON: {error}") from None
    params = content.get("params", content) if isinstance(content, dict) else None
    if not isinstance(params, dict):
        raise EnqueueError(f"{path}: an object of parameters is allowed, or the JSON of a launch")
    return params


def _allowed(spec: StudyConfig, key: str, value: Any) -> Parameter | None:
    """The value as a trial of the study would have it; None where no trial would."""
    searched = spec.space[key]
    if isinstance(value, bool):
        return None
    if not isinstance(searched, Range):
        asked = tuple(value) if isinstance(value, list) else value
        return next((stored for stored, choice in searched.stored.items() if choice == asked), None)
    if not isinstance(value, int | float):
        return None
    if not searched.low <= value <= searched.high:
        return None
    if not is_whole(key):
        return float(value)
    return value if isinstance(value, int) else None


def _describe(spec: StudyConfig, key: str) -> str:
    searched = spec.space[key]
    if not isinstance(searched, Range):
        return f"one of {', '.join(map(str, searched.stored))}"
    return f"a {'whole number' if is_whole(key) else 'number'} from {searched.low} to {searched.high}"


def _left_out(spec: StudyConfig, params: Params, given: Params) -> list[str]:
    fixed = spec.hyperparameters(params).model_dump(mode="json")
    return [
        f"{key} = {json.dumps(value)} is left out: this study "
        + (f"trains with {fixed[key]}" if key in fixed else "knows no such hyperparameter")
        for key, value in given.items()
        if key not in params and (key not in fixed or fixed[key] != value)
    ]
