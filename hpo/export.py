"""``python -m hpo.export``: the best parameters of a study as JSON, and its predictor."""

from pathlib import Path

import click

from hpo.config.study import StudyConfig, find_study, load_config
from hpo.data.cache import load_prepared, prepare
from hpo.errors import OutputError
from hpo.models.predictor import Predictor
from hpo.storage import database as storage
from hpo.storage.leases import check_version
from hpo.storage.study import check_same_settings, load_study
from hpo.tuning.result import export_best, export_trial, to_json
from hpo.ui import cli
from hpo.utils.files import write_text


@cli.command("python -m hpo.export")
@cli.study_argument
@cli.storage_option
@cli.option("--trial", type=click.IntRange(0), help="One of the best trials by its number, instead of the best.")
@cli.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file, instead of stdout.")
@cli.option("--model", type=click.Path(path_type=Path, dir_okay=False), help="Write the predictor, a .npz file.")
@cli.verbose_option
def export(study: str, storage: str, trial: int | None, output: Path | None, model: Path | None, verbose: bool) -> None:
    """Print the best parameters of STUDY as JSON."""
    if model is not None and model.suffix != ".npz":
        raise OutputError(f"{model}: a model is a .npz file; give --model a name that ends so")
    path = find_study(study)
    text, predictor = export_study(load_config(path), path, storage, trial)
    if model is not None:
        predictor.save(model)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)


def export_study(spec: StudyConfig, path: Path, storage_url: str, number: int | None = None) -> tuple[str, Predictor]:
    """The parameters of a trial, or the best ones, as JSON, and the predictor they made.

    Raises:
        StorageError: the database has no such study.
        TrialFailureError: the study has no such complete trial.
        StudyMismatchError: the study was made from another file or other data.
    """
    url = storage.parse_url(storage_url)
    storage.check_exists(url)
    with storage.translate_errors(url), load_study(url, spec) as study:
        check_version(study.engine)
        folder = prepare(spec, path)
        check_same_settings(study.optuna, spec, load_prepared(folder).fingerprint, storage.show_url(url))
        if number is None:
            parameters, predictor = export_best(study, spec, folder)
        else:
            parameters, predictor = export_trial(study, spec, folder, number)
        return to_json(parameters), predictor


if __name__ == "__main__":
    cli.main(export)
