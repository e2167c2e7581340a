"""Lookup and reading of study files.

A ``StudyFileError`` names the file, the key, the problem and the allowed values in one line.
"""

import difflib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpo.config.presets import PresetError, expand_presets
from hpo.config.study import (
    Choices,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    ObjectiveConfig,
    Range,
    Setting,
    SplitConfig,
    StudyConfig,
    StudyTable,
    Table,
)
from hpo.errors import StudyFileError
from hpo.utils.npz import open_regular

_MAX_BYTES = 10**6

_TABLE_NAMES = ("study", "data", "train", "space", "objective", "model")
_TABLES: dict[tuple[str, ...], type[Table]] = {
    ("study",): StudyTable,
    ("data",): DataConfig,
    ("data", "split"): SplitConfig,
    ("objective",): ObjectiveConfig,
    ("model",): ModelConfig,
}

# Allowed values by the type of Pydantic's error.
_ALLOWED = {
    "bool_type": "true or false (a boolean)",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number greater than or equal to {ge}",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number less than or equal to {le}",
    "literal_error": "{expected}",
    "string_too_short": "a string of at least {min_length} character",
    "string_type": "a string",
    "too_short": "a list of at least {min_length} item",
    "tuple_type": "a list",
}

# Allowed values of the keys that allow several types.
_ALLOWED_TYPES: dict[tuple[str, ...], str] = {
    ("data", "label"): "the name of a column, or its position from 0,",
    ("model", "kind"): 'a kind of model, or a list of names of letters, digits, "_" and "-",',
    **{
        ("data", key): 'a list of names or positions of columns, such as ["id", 0],'
        for key in ("drop", "categorical", "numeric", "date")
    },
}


def is_script(name: str) -> bool:
    """Return whether the argument of a command names a script or a function, and no study file."""
    return name.endswith(".py") or ":" in name


def find_study(name: str) -> Path:
    """Return the path of a study file.

    Args:
        name: The path of a ``.toml`` file, or the name of a study in ``./studies`` or in the package.

    Raises:
        StudyFileError: if no study has this name.
    """
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    package = Path(__file__).parents[1]
    # A checkout has the shipped studies next to the package, a wheel has them inside of it.
    folders = [
        folder for folder in (Path("studies"), package / "studies", package.parent / "studies") if folder.is_dir()
    ]
    for folder in folders:
        if (path := folder / f"{name}.toml").is_file():
            return path
    names = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise StudyFileError(f"no study named '{name}'; use one of {', '.join(names)}, or give the path of a .toml file")


def load_config(path: Path, allowed_imports: Iterable[str] = ()) -> StudyConfig:
    """Read a study file.

    Args:
        path: The study file.
        allowed_imports: Packages of estimators that may be imported, besides the known ones.

    Raises:
        StudyFileError: if the file is missing or not TOML, or if a key or the type of a value is wrong.
    """
    config = _validated(_read(path), path)
    return config.model_copy(update={"allowed_imports": frozenset(allowed_imports)})


def function_of(config: StudyConfig) -> str:
    """Return the function that a study file calls, with a file that is relative to the folder of the study file.

    Raises:
        StudyFileError: if it is no function, or if the study file has tables for the training of a model.
    """
    assert config.objective is not None, "the study file calls a function"
    call = config.objective.call
    place, _, name = call.partition(":")
    if not (place and name):
        raise StudyFileError(f'{config.path}: objective.call: "file.py:function" or "module:function" is allowed')
    for table, content in (("data", config.data), ("model", config.model), ("train", config.train)):
        if content:
            raise StudyFileError(f"{config.path}: [{table}] is not for a study with [objective]; remove the table")
    return f"{config.path.parent / place}:{name}" if place.endswith(".py") else call


def with_overrides(config: StudyConfig, name: str, changes: Mapping[str, Setting]) -> StudyConfig:
    """Return the config with another study name and other settings.

    Args:
        config: The config to change.
        name: The new name of the study.
        changes: New values of keys of [study] or [train].

    Raises:
        StudyFileError: if a new value is not allowed.
    """
    tables = config.model_dump(exclude_none=True)
    tables["study"]["name"] = name
    for key, value in changes.items():
        tables["study" if key in tables["study"] else "train"][key] = value
    return _validated(tables, config.path).model_copy(update={"allowed_imports": config.allowed_imports})


def unknown_key(key: str, allowed: Iterable[str]) -> str:
    """Describe an unknown key, with the most similar key that is allowed."""
    allowed = list(allowed)
    similar = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {similar[0]}? " if similar else ""
    return f"unknown key; {hint}allowed are {', '.join(allowed)}"


def invalid_value(error: ErrorDetails) -> str:
    """Describe a value that Pydantic refuses, with the allowed values."""
    problem = _lower_first(error["msg"])
    if error["type"] in _ALLOWED:
        problem = f"{_ALLOWED[error['type']].format_map(error.get('ctx', {}))} is allowed"
    return f"{problem}, not {_as_toml(error['input'])}"


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise StudyFileError(f"{path}: not a study file: it has more than {_MAX_BYTES:,} bytes")
        return tomllib.loads(content.decode("utf-8").replace("\r\n", "\n"))
    except FileNotFoundError:
        raise StudyFileError(f"{path}: no such study file") from None
    except OSError as error:
        raise StudyFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StudyFileError(f"{path}: not TOML: the text is not UTF-8") from None
    except RecursionError:
        raise StudyFileError(f"{path}: not TOML: its values are nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{path}: not TOML: {_lower_first(str(error))}") from None


def _validated(tables: dict[str, Any], path: Path) -> StudyConfig:
    for name in tables:
        if name not in _TABLE_NAMES:
            raise StudyFileError(f"{path}: {name}: {unknown_key(name, _TABLE_NAMES)}")
    try:
        tables = expand_presets(tables)
    except PresetError as error:
        raise StudyFileError(f"{path}: {error}") from None
    tables = _with_flat_keys(tables, path)
    try:
        return StudyConfig.model_validate(tables | {"path": path})
    except ValidationError as error:
        raise StudyFileError(f"{path}: {_describe(_most_specific(error.errors()))}") from None


def _with_flat_keys(tables: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the tables with keys "NAME.hyperparameter" in place of the tables of each model of a list.

    Raises:
        StudyFileError: if a key of ``[model]`` is unknown, or if a hyperparameter belongs to no model of the list.
    """
    model = tables.get("model")
    if not isinstance(model, dict):
        return tables
    for key, value in model.items():
        if key not in ModelConfig.model_fields and not isinstance(value, dict):
            raise StudyFileError(f"{path}: model.{key}: {unknown_key(key, ModelConfig.model_fields)}")
    try:
        names = ModelConfig.model_validate(model).names
    except ValidationError as error:
        details = _most_specific(error.errors())
        details["loc"] = ("model", *details["loc"])
        raise StudyFileError(f"{path}: {_describe(details)}") from None
    if not names:
        return tables
    return tables | {
        table: _flat(table, tables[table], names, path)
        for table in ("train", "space")
        if isinstance(tables.get(table), dict)
    }


def _flat(table: str, content: dict[str, Any], names: Collection[str], path: Path) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if key in names and isinstance(value, dict):
            flat |= {f"{key}.{name}": setting for name, setting in value.items()}
        elif key.partition(".")[0] in names and "." in key:
            flat[key] = value
        else:
            tables = " or ".join(f"[{table}.{name}]" for name in names)
            raise StudyFileError(f"{path}: {table}.{key}: model.kind is a list; move the key to {tables}")
    return flat


def _most_specific(errors: list[ErrorDetails]) -> ErrorDetails:
    """Return the error that helps most.

    A misspelt key is reported before the key that is missing because of it. A text in place of a number is reported as
    not a number, rather than as not an integer.
    """
    return min(errors, key=lambda error: (error["type"] != "extra_forbidden", error["loc"][-1:] == ("int",)))


def _describe(error: ErrorDetails) -> str:
    """Return one line with the key, the problem and the allowed values."""
    # After the table and the key, a location has Pydantic's names of the types that were tried.
    types = ("range", "choices", "int", "float", "str", "bool")
    location = tuple(str(part) for i, part in enumerate(error["loc"]) if i < 2 or part not in types)
    location += tuple(error.get("ctx", {}).get("at", ()))
    return f"{'.'.join(location) or 'the file'}: {_problem(error, location)}"


def _problem(error: ErrorDetails, location: tuple[str, ...]) -> str:
    match error["type"]:
        case "study_file":
            problem = error["msg"]
        case "extra_forbidden":
            searched = Choices if "choices" in error["loc"] else Range
            table = EstimatorConfig if location[:1] == ("model",) else searched
            problem = unknown_key(location[-1], _TABLES.get(location[:-1], table).model_fields)
        case "model_type" if location[:1] == ("space",):
            allowed = "{ low, high, log } or { choices } are allowed here, a fixed value is allowed in [train]"
            problem = f"{error['input']!r} is not a range; {allowed}"
        case "model_type" | "dict_type":
            problem = f"a table is allowed, not {error['input']!r}"
        case "missing":
            problem = "missing"
        case "string_pattern_mismatch":
            problem = f"{error['input']!r} is not a valid name; letters, digits, '.', '_' and '-' are allowed"
        case _ if location[:2] in _ALLOWED_TYPES:
            problem = f"{_ALLOWED_TYPES[location[:2]]} is allowed, not {_as_toml(error['input'])}"
        case _:
            problem = invalid_value(error)
    return problem


def _as_toml(value: Any) -> str:
    """Return a value for a message, as it is written in a study file."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value) if isinstance(value, tuple) else value)


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:]
