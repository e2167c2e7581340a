"""``python -m hpo.export``: the best parameters of a study as JSON, and its predictor.

The only place that reads the test split.
"""

import json
import platform
from collections import Counter
from datetime import UTC
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from optuna.trial import TrialState

from hpo import cli, confirmation, storage
from hpo.data import Prepared, load_prepared, load_test, prepare
from hpo.errors import OutputError, TrialFailureError
from hpo.files import writing
from hpo.leases import check_version
from hpo.predictor import Predictor, accuracy, loss, unpack_layers
from hpo.spec import StudySpec, find_study, load_spec
from hpo.study import Study, load_study, refuse_other

SCHEMA_VERSION = 1
_PACKAGES = ("hpo", "optuna", "numpy", "scikit-learn", "sqlalchemy")


def export_best(study: Study, spec: StudySpec, folder: Path) -> tuple[dict[str, Any], Predictor]:
    """What is exported, in the order of its keys, and the predictor that it is about.

    Args:
        study: an open study.
        spec: its file.
        folder: its prepared data.

    Raises:
        TrialFailureError: no trial is complete.
    """
    data = load_prepared(folder)
    confirmed = confirmation.confirmation_of(study, spec, data.fingerprint)
    trial = next(iter([one.trial for one in confirmed] or confirmation.contenders(study)), None)
    packed = None if trial is None else study.leases.weights(trial.number)
    if trial is None or packed is None:
        raise TrialFailureError(f"the study '{spec.study.name}' has no complete trial yet; let more run with --trials")
    layers = unpack_layers(packed)
    test = load_test(folder)
    hyperparameters = spec.hyperparameters(trial.params)
    states = Counter(trial.state for trial in study.trials)
    assert trial.datetime_complete is not None
    created = max([trial.datetime_complete, *confirmation.newest(confirmed)])
    parameters = {
        "schema_version": SCHEMA_VERSION,
        "study": spec.study.name,
        "trial": trial.number,
        "params": hyperparameters.model_dump(),
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
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }
    return parameters, Predictor(data.classes, data.feature_map, layers)


def to_json(parameters: dict[str, Any]) -> str:
    """Strict JSON: no NaN, no Infinity."""
    return json.dumps(parameters, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, text: str) -> None:
    """Write the exported JSON.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path) as file:
        file.write(text.encode())


def _describe(data: Prepared) -> dict[str, Any]:
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        **data.sizes._asdict(),
        "features": data.features,
        "pca": {"variance": data.pca, "components": data.components} if data.pca else None,
    }


@cli.command("python -m hpo.export")
@cli.study_argument
@cli.storage_option
@cli.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file, instead of stdout.")
@cli.option("--model", type=click.Path(path_type=Path, dir_okay=False), help="Write the predictor, a .npz file.")
@cli.verbose_option
def export(study: str, storage: str, output: Path | None, model: Path | None, verbose: bool) -> None:
    """Print the best parameters of STUDY as JSON."""
    if model is not None and model.suffix != ".npz":
        raise OutputError(f"{model}: a model is a .npz file; give --model a name that ends so")
    path = find_study(study)
    text, predictor = export_study(load_spec(path), path, storage)
    if model is not None:
        predictor.save(model)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_json(output, text)


def export_study(spec: StudySpec, path: Path, storage_url: str) -> tuple[str, Predictor]:
    """The best parameters as JSON, and the predictor they made.

    Raises:
        StorageError: the database has no such study.
        TrialFailureError: the study has no complete trial.
        StudyMismatchError: the study was made from another file or other data.
    """
    url = storage.parse_url(storage_url)
    storage.check_exists(url)
    with storage.explained(url), load_study(url, spec) as study:
        check_version(study.engine)
        folder = prepare(spec, path)
        refuse_other(study.optuna, spec, load_prepared(folder).fingerprint, storage.show_url(url))
        parameters, predictor = export_best(study, spec, folder)
        return to_json(parameters), predictor


if __name__ == "__main__":
    cli.main(export)
