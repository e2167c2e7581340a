"""Settings of an estimator: the parameters of its constructor, and their checks in a study file."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hpo.config.loader import unknown_key
from hpo.config.study import Range, Setting, StudyConfig
from hpo.data.metrics import TaskName
from hpo.errors import StudyFileError
from hpo.models.base import RefusalError
from hpo.models.estimators.budget import budget_of, train
from hpo.models.estimators.fitted import input_dtype
from hpo.models.estimators.lookup import find_estimator, package_of, task_of

# The text of a study file for the value None, because TOML has none.
NONE = "none"

# Arguments that keep an estimator silent, by its package.
_SILENT: Mapping[str, Mapping[str, Any]] = {
    "lightgbm": {"verbose": -1},
    "xgboost": {"verbosity": 0},
    "catboost": {"verbose": False, "allow_writing_files": False, "thread_count": 1},
}
# Parameters of the number of passes or members, which a trial fit of the check keeps small.
_LENGTHS = ("n_estimators", "max_iter")
_CHECK_LENGTH = 2
# Rows and columns of the random data of the check.
_CHECK_SHAPE = (120, 12)
_CHECK_CLASSES = 3


@dataclass(frozen=True)
class _Checked:
    """Study file to check, and the part of its content that the check depends on."""

    content: str
    config: StudyConfig = field(compare=False)


class _Candidate(NamedTuple):
    """Settings of one check, and the key whose value differs from the other checks."""

    key: str | None
    settings: dict[str, Any]


def estimator_type(config: StudyConfig) -> type[Any]:
    """Import the estimator of a study file with one model.

    Raises:
        StudyFileError: if there is no such estimator, or if its package may not be imported.
    """
    assert config.model is not None, "the study file has an estimator"
    if config.model.estimator is None:
        example = "sklearn.ensemble.HistGradientBoostingClassifier"
        raise _error(config, "model", "estimator", f'missing; give an import path, such as "{example}"')
    try:
        return find_estimator(config.model.estimator, config.allowed_imports)
    except ValueError as error:
        raise _error(config, "model", "estimator", str(error)) from None


def settings_of(config: StudyConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a trial as JSON values, with None for the text "none"."""
    return _with_none(config.params_to_settings(params))


def make_estimator(config: StudyConfig, settings: Mapping[str, Any], random_state: int) -> Any:
    """Return an untrained estimator.

    It is silent, uses one processor, and takes all rows of the training split, unless the settings say otherwise.

    Args:
        config: The study file.
        settings: The settings of a trial.
        random_state: The seed, unless the settings have one.
    """
    found = estimator_type(config)
    defaults = _parameters(found)
    arguments = dict(_SILENT.get(package_of(found), {}))
    arguments |= {key: value for key, value in (("n_jobs", 1), ("random_state", random_state)) if key in defaults}
    if defaults.get("early_stopping") == "auto":
        arguments["early_stopping"] = False
    return found(**arguments | dict(settings))


def float_names(config: StudyConfig) -> frozenset[str]:
    """Return the parameters that are floats by default."""
    return frozenset(key for key, value in _parameters(estimator_type(config)).items() if isinstance(value, float))


def check_settings(config: StudyConfig, task: TaskName | None) -> None:
    """Check the estimator, and the keys and values of ``[train]`` and ``[space]``.

    Args:
        config: The study file.
        task: The task; None if it is not known yet.

    Raises:
        StudyFileError: if the estimator does not exist or has another task, or if it refuses a key or a value.
    """
    known = _parameters(estimator_type(config))
    for table, keys in (("train", config.train), ("space", config.space)):
        for key in keys:
            if key not in known:
                raise _error(config, table, key, unknown_key(key, sorted(known)))
    for key, default in known.items():
        if default is inspect.Parameter.empty and not config.values(key):
            problem = f"{estimator_type(config).__name__} needs a value; give it in [train]"
            raise _error(config, "train", key, problem)
    content = config.model_dump_json(include={"model", "train", "space"})
    _check_task(config, _check_values(_Checked(content, config)), task)


def _check_task(config: StudyConfig, own_task: TaskName | None, task: TaskName | None) -> None:
    name = estimator_type(config).__name__
    if own_task is None:
        raise _error(config, "model", "estimator", f"{name} is neither a classifier nor a regressor")
    if task not in (None, own_task):
        kind = "a classifier" if own_task == "classification" else "a regressor"
        raise _error(config, "model", "estimator", f"{name} is {kind}, but the task is {task}")


def max_steps(config: StudyConfig) -> int:
    """Return the steps of the longest trial that the study can have."""
    return max(budget_of(make_estimator(config, settings, 0)).steps for _, settings in _candidates(config))


def has_costly_reports(config: StudyConfig) -> bool:
    """Return whether a trial of the study prepares the data again whenever its ensemble grows."""
    return any(budget_of(make_estimator(config, settings, 0)).is_costly for _, settings in _candidates(config))


def cost_parameter(config: StudyConfig) -> str | None:
    """Return the searched parameter of the number of passes or members, None without one."""
    return next((name for name in _LENGTHS if name in config.space), None)


def _parameters(found: type[Any]) -> dict[str, Any]:
    """Return the parameters of the constructor with their default values."""
    signature = inspect.signature(found.__init__).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {parameter.name: parameter.default for parameter in signature if parameter.kind not in kinds}
    del named["self"]
    if inspect.Parameter.empty in named.values():
        return named
    # XGBoost gives most of its parameters to the constructor of a base class.
    defaults: dict[str, Any] = found().get_params(deep=False)
    return named | defaults


def _candidates(config: StudyConfig) -> Iterator[_Candidate]:
    """Yield settings with each value, end of a range and choice, together with the lowest and the highest others."""
    floats = float_names(config)
    values = {key: _trial_values(config, key, key in floats) for key in [*config.train, *config.space]}
    for index in (0, -1):
        others = {key: values[key][index] for key in values}
        yield _Candidate(None, _with_none(others))
        for key in config.space:
            for value in values[key]:
                yield _Candidate(key, _with_none(others | {key: value}))


def _trial_values(config: StudyConfig, key: str, is_float: bool) -> tuple[Setting, ...]:
    """Return the fixed value, the ends of the range or the choices, with the types that a trial gets."""
    searched = config.space.get(key)
    if not isinstance(searched, Range):
        return config.values(key)
    is_float = is_float or any(isinstance(end, float) for end in searched.ends)
    return tuple(map(float, searched.ends)) if is_float else searched.ends


def _with_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if value == NONE else value for key, value in settings.items()}


# A launch checks its study file several times.
@lru_cache(maxsize=32)
def _check_values(checked: _Checked) -> TaskName | None:
    """Fit the estimator to random data with each value; return its task.

    The refusal of one parameter is an error. A combination of parameters can be refused with other data, or be allowed
    in another combination. Then its trial ends.
    """
    task: TaskName | None = None
    refusals, config = [], checked.config
    for key, settings in _candidates(config):
        estimator = make_estimator(config, settings, 0)
        task = task_of(estimator)
        _check_length(config, estimator)
        lengths = {name: _CHECK_LENGTH for name in _LENGTHS if _is_long(estimator.get_params(deep=False).get(name))}
        refusal = _refusal(estimator.set_params(**lengths), task)
        refusals.append(refusal)
        if refusal is not None and type(refusal.__cause__).__name__ == "InvalidParameterError":
            named = [name for name in [*config.train, *config.space] if f"'{name}'" in str(refusal)]
            refused = named[0] if named else str(key)
            raise _error(config, _table(config, refused), refused, str(refusal.__cause__))
    # Only scikit-learn has an error of its own for the refusal of a parameter.
    if all(refusals) and package_of(estimator_type(config)) in _SILENT:
        raise _error(config, "model", "estimator", str(refusals[0]))
    return task


def _check_length(config: StudyConfig, estimator: Any) -> None:
    steps = budget_of(estimator).steps
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        key = next(name for name in _LENGTHS if name in estimator.get_params(deep=False))
        raise _error(config, _table(config, key), key, f"an integer of at least 1 is allowed, not {steps!r}")


def _is_long(length: object) -> bool:
    return isinstance(length, int) and length > _CHECK_LENGTH


def _refusal(estimator: Any, task: TaskName | None) -> RefusalError | None:
    """Return the error of a fit to random data, None without one."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=_CHECK_SHAPE).astype(input_dtype(estimator))
    y: NDArray[Any] = np.abs(X[:, 0]) + 1.0 if task == "regression" else np.arange(len(X)) % _CHECK_CLASSES
    classes = None if task == "regression" else np.arange(_CHECK_CLASSES)
    try:
        with threadpool_limits(1):
            train(budget_of(estimator), estimator, X, y, 1, classes)
    except RefusalError as error:
        return error
    return None


def _table(config: StudyConfig, key: str) -> str:
    return "train" if key in config.train else "space"


def _error(config: StudyConfig, table: str, key: str, problem: str) -> StudyFileError:
    return StudyFileError(f"{config.path}: {config.key(table, key)}: {problem}")
