"""Lookup of an estimator by its import path."""

import difflib
from collections.abc import Collection, Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from hpo.data.metrics import TaskName

# Packages whose import needs no permission, with the name of each in the package index.
PACKAGES = {"sklearn": "scikit-learn", "lightgbm": "lightgbm", "xgboost": "xgboost", "catboost": "catboost"}


def find_estimator(path: str, allowed: Collection[str] = ()) -> type[Any]:
    """Import the class of an estimator.

    Args:
        path: The import path of the class, such as ``sklearn.ensemble.RandomForestClassifier``.
        allowed: Packages besides `PACKAGES` that may be imported.

    Raises:
        ValueError: if the package may not be imported or is missing, or if it has no such class.
    """
    package, (place, _, name) = path.partition(".")[0], path.rpartition(".")
    if not place:
        raise ValueError(f"'{path}' is no import path{_hint(_known_paths(), name)}")
    if package not in PACKAGES and package not in allowed:
        problem = f"'{package}' is not one of {', '.join(PACKAGES)}"
        raise ValueError(f"{problem}; allow its import with --allow-import {package}")
    if find_spec(package) is None:
        raise ValueError(f"'{path}' needs {package}; install it with: pip install {PACKAGES.get(package, package)}")
    module = _import(place)
    if module is None:
        raise ValueError(f"no module '{place}'{_hint(_known_paths(), name) if package == 'sklearn' else ''}")
    found = getattr(module, name, None)
    if not _is_estimator(found):
        names = {key: f"{place}.{key}" for key, value in vars(module).items() if _is_estimator(value)}
        known = _known_paths() if package == "sklearn" else {}
        hint = _hint(known, name) if name in known else _hint(names | known, name)
        raise ValueError(f"'{place}' has no estimator '{name}'{hint}")
    assert isinstance(found, type)
    return found


def package_of(found: type[Any]) -> str:
    """Return the package of a class."""
    return found.__module__.partition(".")[0]


def task_of(estimator: Any) -> TaskName | None:
    """Return the task of an estimator, None if it neither classifies nor predicts a number."""
    from sklearn.base import is_classifier, is_regressor

    if is_classifier(estimator):
        return "classification"
    return "regression" if is_regressor(estimator) else None


def _import(place: str) -> ModuleType | None:
    try:
        return import_module(place)
    except ModuleNotFoundError as error:
        # A module that the package itself lacks is another problem.
        if error.name is not None and place.startswith(error.name):
            return None
        raise ValueError(f"'{place}' cannot be imported: {error}") from error
    except ImportError as error:
        raise ValueError(f"'{place}' cannot be imported: {error}") from error


def _is_estimator(value: Any) -> bool:
    return isinstance(value, type) and all(hasattr(value, name) for name in ("fit", "predict", "get_params"))


def _known_paths() -> dict[str, str]:
    """Return the import path of each classifier and regressor of scikit-learn by its name."""
    from sklearn.utils import all_estimators

    found = all_estimators(type_filter=["classifier", "regressor"])
    return {name: f"{'.'.join(_public(found_type.__module__.split('.')))}.{name}" for name, found_type in found}


def _public(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if not part.startswith("_")]


def _hint(paths: dict[str, str], name: str) -> str:
    similar = difflib.get_close_matches(name, paths, n=1)
    return f"; did you mean {paths[similar[0]]}?" if similar else ""
