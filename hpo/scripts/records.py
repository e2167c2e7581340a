"""Records of the calls of ``optimize`` in the study, from which a restarted launch continues."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import optuna

_PREFIX = "hpo:optimize:"
_ADDED = "hpo:added"
_SEEN = "hpo:seen"


@dataclass(frozen=True)
class OptimizeRecord:
    """One call of ``Study.optimize``.

    Attributes:
        base: The trials of the study that had ended before the call.
        is_stopped: Whether the script ended the call before its budget: by ``study.stop`` or its ``timeout``.
    """

    base: int
    is_stopped: bool = False


def read_record(study: optuna.Study, call: int) -> OptimizeRecord | None:
    """Return the record of the call of a number, None if no launch has come to it."""
    content: Any = study._storage.get_study_system_attrs(study._study_id).get(f"{_PREFIX}{call}")
    return None if content is None else OptimizeRecord(**content)


def write_record(study: optuna.Study, call: int, record: OptimizeRecord) -> None:
    """Write the record of a call."""
    study._storage.set_study_system_attr(study._study_id, f"{_PREFIX}{call}", asdict(record))


def count_added(study: optuna.Study) -> int:
    """Return the number of trials that launches of the script have enqueued or added."""
    return int(study._storage.get_study_system_attrs(study._study_id).get(_ADDED, 0))


def write_added(study: optuna.Study, count: int) -> None:
    """Write the number of trials that launches of the script have enqueued or added."""
    study._storage.set_study_system_attr(study._study_id, _ADDED, count)


def read_seen(study: optuna.Study) -> dict[int, int]:
    """Return the number of trials of a study at each call of ``optimize`` of the script, for any of its studies."""
    content: dict[str, int] = study._storage.get_study_system_attrs(study._study_id).get(_SEEN, {})
    return {int(call): count for call, count in content.items()}


def write_seen(study: optuna.Study, seen: Mapping[int, int]) -> None:
    """Write the number of trials of a study at each call of ``optimize`` of the script."""
    study._storage.set_study_system_attr(study._study_id, _SEEN, {str(call): count for call, count in seen.items()})
