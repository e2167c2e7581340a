"""User attributes of studies that hpo sets and hides, and the names of the user's own attributes."""

import re
from collections.abc import Mapping
from typing import Any

from hpo.storage.tables.schema import STUDY_KEY

_HIDDEN = ("settings", "data", "times", STUDY_KEY)

# The form of a user's attribute of the same name, such as "user:data".
_ESCAPE = "user:"
_NEEDS_ESCAPE = re.compile(f"({_ESCAPE})*({'|'.join(_HIDDEN)})")


def is_ambiguous(name: str) -> bool:
    """Return whether a user's attribute of this name is stored under another name in a study of hpo."""
    return _NEEDS_ESCAPE.fullmatch(name) is not None


def stored_name(name: str) -> str:
    """Return the name under which a study of hpo stores a user's attribute."""
    return f"{_ESCAPE}{name}" if is_ambiguous(name) else name


def without_hidden(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's attributes of a study, under the names that the user gave."""
    if STUDY_KEY not in attributes:
        # Another program has created the study.
        return dict(attributes)
    return {
        name.removeprefix(_ESCAPE) if is_ambiguous(name) else name: value
        for name, value in attributes.items()
        if name not in _HIDDEN
    }
