"""Record of each call of ``optimize`` in its study, so that a launch that is started again knows where it is."""

from dataclasses import asdict, dataclass
from typing import Any

import optuna

_PREFIX = "hpo:optimize:"


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


_ADDED = "hpo:added"


def count_added(study: optuna.Study) -> int:
    """Return the number of trials that launches of the script have enqueued or added."""
    return int(study._storage.get_study_system_attrs(study._study_id).get(_ADDED, 0))


def write_added(study: optuna.Study, count: int) -> None:
    """Write the number of trials that launches of the script have enqueued or added."""
    study._storage.set_study_system_attr(study._study_id, _ADDED, count)
