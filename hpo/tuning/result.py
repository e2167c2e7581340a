"""What is taken away of a study: the best trial's parameters, measured on every split, and its predictor.

The only place that reads the test split.
"""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.data.cache import PreparedData, load_prepared, load_test
from hpo.errors import TrialFailureError
from hpo.models.optional_dependencies import has_torch
from hpo.models.predictor import Predictor, accuracy, loss, unpack_layers
from hpo.storage.leases import KEPT_WEIGHTS
from hpo.storage.study import Study
from hpo.tuning import confirmation
from hpo.tuning.confirmation import Confirmed
from hpo.utils.system import versions

SCHEMA_VERSION = 1
_PACKAGES = ("hpo", "optuna", "numpy", "scikit-learn", "sqlalchemy")


def export_best(study: Study, spec: StudyConfig, folder: Path) -> tuple[dict[str, Any], Predictor]:
    """What is exported of the winner, in the order of its keys, and the predictor that it is about.

    Args:
        study: an open study.
        spec: its file.
        folder: its prepared data.

    Raises:
        TrialFailureError: no trial is complete.
    """
    data = load_prepared(folder)
    confirmed = confirmation.confirmation_of(study, spec, data.fingerprint)
    trial = next(iter([one.trial for one in confirmed] or confirmation.candidates(study)), None)
    if trial is None:
        raise TrialFailureError(f"the study '{spec.study.name}' has no complete trial yet; let more run with --trials")
    return _export(study, spec, data, folder, trial, confirmed)


def export_trial(study: Study, spec: StudyConfig, folder: Path, number: int) -> tuple[dict[str, Any], Predictor]:
    """The same of another trial.

    Raises:
        TrialFailureError: it is not complete, or its weights are not kept.
    """
    trials = study.trials
    if number >= len(trials):
        raise _without_weights(spec, number)
    return _export(study, spec, load_prepared(folder), folder, trials[number], [])


def _export(
    study: Study,
    spec: StudyConfig,
    data: PreparedData,
    folder: Path,
    trial: FrozenTrial,
    confirmed: Sequence[Confirmed],
) -> tuple[dict[str, Any], Predictor]:
    packed = study.leases.weights(trial.number)
    if packed is None:
        raise _without_weights(spec, trial.number)
    assert trial.datetime_complete is not None
    layers = unpack_layers(packed)
    test = load_test(folder)
    hyperparameters = spec.hyperparameters(trial.params)
    states = Counter(trial.state for trial in study.trials)
    created = max([trial.datetime_complete, *confirmation.newest(confirmed)])
    parameters = {
        "schema_version": SCHEMA_VERSION,
        "study": spec.study.name,
        "trial": trial.number,
        "params": hyperparameters.model_dump(mode="json"),
        "metrics": {
            "train_accuracy": accuracy(layers, data.train.features, data.train.y),
            "validation_accuracy": accuracy(layers, data.validation.features, data.validation.y),
            "test_accuracy": accuracy(layers, test.features, test.y),
            "train_loss": loss(layers, data.train.features, data.train.y, hyperparameters.regularization),
        },
        "confirmation": confirmation.describe(confirmed),
        "trials": {
            "complete": states[TrialState.COMPLETE],
            "pruned": states[TrialState.PRUNED],
            "failed": states[TrialState.FAIL],
        },
        "data": _describe(data),
        "seed": spec.study.seed,
        # The same study gives the same JSON whenever it is exported.
        "created": created.astimezone(UTC).isoformat(timespec="seconds"),
        "versions": versions([*_PACKAGES, *(["torch"] if hyperparameters.backend == "torch" and has_torch() else [])]),
    }
    return parameters, Predictor(data.classes, data.preprocessor, layers)


def _without_weights(spec: StudyConfig, number: int) -> TrialFailureError:
    return TrialFailureError(
        f"the study '{spec.study.name}' has no weights of a trial {number}; "
        f"they are kept of the {KEPT_WEIGHTS} best complete trials"
    )


def to_json(parameters: dict[str, Any]) -> str:
    """Strict JSON: no NaN, no Infinity."""
    return json.dumps(parameters, indent=2, allow_nan=False) + "\n"


def _describe(data: PreparedData) -> dict[str, Any]:
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        **data.sizes._asdict(),
        "features": data.features,
        "pca": {"variance": data.pca, "components": data.components} if data.pca else None,
    }
