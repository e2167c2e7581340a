"""Lookup of the samplers and pruners by their names in a study file."""

from collections.abc import Mapping
from typing import TypeVar

from hpo.errors import StudyFileError

Factory = TypeVar("Factory")


def find_factory(factories: Mapping[str, Factory], key: str, name: str) -> Factory:
    """Return the factory of this name.

    Args:
        factories: All factories by their names.
        key: The key of the study file that names the factory.
        name: The name in the study file.

    Raises:
        StudyFileError: if no factory has this name.
    """
    if name not in factories:
        *others, last = map(repr, factories)
        raise StudyFileError(f"{key}: {', '.join(others)} or {last} is allowed, not {name!r}")
    return factories[name]
