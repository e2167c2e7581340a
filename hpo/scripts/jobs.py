"""Job of the workers of one call of ``optimize``, as JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from hpo.runner.limits import Limits


@dataclass(frozen=True)
class ScriptJob:
    """Work of each worker for one call of ``optimize``.

    Attributes:
        target: The script.
        arguments: Its arguments.
        storage: The URL of the launch's database, with its password.
        is_storage_given: Whether all studies are in this database, whatever the script says.
        study: The name of the study.
        study_key: The key in hpo's tables of the study that has the trials.
        study_file: The study file that names the function, None without one.
        enqueued: The parameters to try before the sampler's.
        call: The number of the call among the script's calls of ``optimize``, from 0.
        workers: The number of workers.
        pruner: The pruner in place of the script's, None for the script's.
        limits: The limits of each trial.
        max_failures: The number of failed trials at which a study without a success ends; None for no limit.
        verbose: Whether an error has a traceback.
        confirms: Whether the trials are repeats, which are in the confirmation study of the study.
    """

    target: str
    arguments: tuple[str, ...]
    storage: str
    is_storage_given: bool
    study: str
    study_key: str
    study_file: str | None
    enqueued: tuple[dict[str, Any], ...]
    call: int
    workers: int
    pruner: str | None
    limits: Limits
    max_failures: int | None
    verbose: bool
    confirms: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the job as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the job of a JSON object."""
        tuples = {name: tuple(content[name]) for name in ("arguments", "enqueued")}
        return cls(**{**content, **tuples, "limits": Limits(**content["limits"])})
