"""Parameters that a study tries before the proposals of its sampler."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from hpo.config.study import MODEL, Parameter, Range, StudyConfig
from hpo.errors import EnqueueError
from hpo.search.space import ConditionalSpace, Params, Space, needed, params_key
from hpo.utils.npz import open_regular

__all__ = ["Params", "load_enqueued", "params_key", "pending"]


def pending(enqueued: Sequence[Params], trials: Iterable[FrozenTrial]) -> list[Params]:
    """Return the enqueued parameters that have no trial.

    Parameters that are enqueued n times need n trials.
    """
    if not enqueued:
        return []
    tried = Counter(params_key(trial.params) for trial in trials)
    remaining = []
    for params in enqueued:
        if tried[params_key(params)]:
            tried[params_key(params)] -= 1
        else:
            remaining.append(params)
    return remaining


def load_enqueued(
    path: Path, config: StudyConfig, space: Space, settings_of: Callable[[Params], Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Read parameters for a trial from a JSON file.

    Args:
        path: The JSON of a launch or an export, or an object of parameters.
        config: The study file.
        space: The search space of the study.
        settings_of: Returns all settings of a trial with the given parameters, as JSON values.

    Returns:
        The parameters, and one warning for each key of the file that is ignored.

    Raises:
        EnqueueError: if the file cannot be read, or the study does not allow its parameters.
    """
    content = _with_model(path, space, _read(path))
    params: dict[str, Any] = {MODEL: content[MODEL]} if isinstance(space, ConditionalSpace) else {}
    for key, distribution in needed(space, params).items():
        if key == MODEL and key in params:
            continue
        if key not in content:
            raise EnqueueError(f"{path}: {key}: missing; this study searches it")
        value = _to_param(config, key, distribution, content[key])
        if value is None:
            allowed = _describe(config, key, distribution)
            raise EnqueueError(f"{path}: {key}: {allowed} is allowed, not {json.dumps(content[key])}")
        params[key] = value
    return params, [f"{path}: {warning}" for warning in _warnings(params, content, settings_of(params))]


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = json.load(file)
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


def _with_model(path: Path, space: Space, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with the model's name before each of its parameters, if the study compares models.

    Raises:
        EnqueueError: if the model is missing, or is not one of the study.
    """
    if not isinstance(space, ConditionalSpace):
        return content
    name, names = content.get(MODEL), list(space.branches)
    if name not in names:
        problem = "missing" if name is None else f"not {json.dumps(name)}"
        raise EnqueueError(f"{path}: {MODEL}: one of {', '.join(names)} is allowed, {problem}")
    own = space.branches[name].space
    return {(f"{name}.{key}" if f"{name}.{key}" in own else key): value for key, value in content.items()}


def _to_param(config: StudyConfig, key: str, distribution: BaseDistribution, value: Any) -> Parameter | None:
    """Return the value as a trial stores it, None if not allowed."""
    searched = config.space[key]
    if not isinstance(searched, Range):
        choice = _choice(value)
        return next((stored for stored, allowed in searched.stored.items() if _choice(allowed) == choice), None)
    if isinstance(value, bool):
        return None
    if not isinstance(value, int | float) or not searched.low <= value <= searched.high:
        return None
    if isinstance(distribution, FloatDistribution):
        return float(value)
    return value if isinstance(value, int) else None


def _choice(value: Any) -> tuple[bool, Any]:
    """Return a key that is equal for equal choices: true is not 1, and null is the text "none"."""
    plain = tuple(value) if isinstance(value, list) else "none" if value is None else value
    return isinstance(value, bool), plain


def _describe(config: StudyConfig, key: str, distribution: BaseDistribution) -> str:
    searched = config.space[key]
    if not isinstance(searched, Range):
        return f"one of {', '.join(map(str, searched.stored))}"
    kind = "number" if isinstance(distribution, FloatDistribution) else "whole number"
    return f"a {kind} from {searched.low} to {searched.high}"


def _warnings(params: Params, content: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} = {json.dumps(value)} is ignored: "
        + (f"this study trains with {settings[key]}" if key in settings else "this study has no such hyperparameter")
        for key, value in content.items()
        if key not in params and (key not in settings or settings[key] != value)
    ]
