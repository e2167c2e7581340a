"""``python -m hpo.export``: the best parameters of a study as JSON, and its predictor or checkpoint."""

from pathlib import Path
from typing import Any

import click

from hpo.config.loader import find_study, is_script, load_config
from hpo.config.study import StudyConfig
from hpo.errors import MissingDataError, OutputError, StudyFileError
from hpo.scripts.exporting import is_stored, open_script_study
from hpo.scripts.launching.result import artifact_of, study_result
from hpo.storage.database.connection import Database
from hpo.tuning.result import export_study, to_json
from hpo.ui import cli
from hpo.ui.logs import configure_logging, stderr_console
from hpo.utils.files import atomic_write, file_in, write_text


@cli.command("python -m hpo.export")
@cli.study_argument
@cli.storage_option
@cli.option("--trial", type=cli.Integer(0), help="Number of a trial to export instead of the best trial.")
@cli.option("--output", type=click.Path(path_type=Path), help="File, or folder of best.json, instead of stdout.")
@cli.option("--model", type=click.Path(path_type=Path, dir_okay=False), help="File for the predictor, a .npz file.")
@cli.option("--refit", is_flag=True, help="Train the trial once more on all rows but the test rows.")
@cli.option(
    "--artifact", type=click.Path(path_type=Path, dir_okay=False), help="File for the last checkpoint of a script."
)
@cli.allow_import_option
@cli.verbose_option
def export(
    study: str,
    storage: str,
    trial: int | None,
    output: Path | None,
    model: Path | None,
    refit: bool,
    artifact: Path | None,
    **common: Any,
) -> None:
    """Print the best parameters of STUDY as JSON.

    STUDY is the name of a study, a .toml file, or an Optuna script such as train.py.
    """
    configure_logging(verbose=common["verbose"])
    database = Database.parse(storage)
    config = _find_study_file(study, database, common["allow_import"])
    if config is None or config.objective is not None:
        if model is not None:
            raise click.UsageError("--model is for a study file that trains a model; --artifact is for a script")
        if refit:
            raise click.UsageError("--refit is for a study file that trains a model")
        parameters = _export_script(database, study if config is None else config.study.name, trial, artifact)
    else:
        if artifact is not None:
            raise click.UsageError("--artifact is for a script such as train.py; --model is for a study file")
        parameters = _export_model(config, database, trial, model, refit=refit)
    if output is None:
        cli.print_data(to_json(parameters))
    else:
        name = cli.RESULT_NAME if trial is None else f"trial_{trial}.json"
        write_text(file_in(output, name), to_json(parameters))


def _find_study_file(name: str, database: Database, allowed_imports: tuple[str, ...]) -> StudyConfig | None:
    """Return the study file of this name, None if the argument names a script or the study of a script."""
    if is_script(name):
        return None
    try:
        path = find_study(name)
    except StudyFileError:
        if is_stored(database, name):
            return None
        raise
    return None if path.suffix != ".toml" and is_stored(database, name) else load_config(path, allowed_imports)


def _export_script(database: Database, target: str, number: int | None, artifact: Path | None) -> dict[str, Any]:
    with open_script_study(database, target) as study:
        result = study_result(study, number)
        if artifact is not None:
            state = artifact_of(study, result.get("trial"))
            with atomic_write(artifact) as file:
                file.write(state)
        return result


def _export_model(
    config: StudyConfig, database: Database, number: int | None, model: Path | None, *, refit: bool
) -> dict[str, Any]:
    if model is not None and model.suffix != ".npz":
        raise OutputError(f"{model}: not a .npz file; give --model a name that ends with .npz")
    parameters, predictor = export_study(config, database, number, refit=refit)
    if predictor is None:
        _note_missing_data(parameters, model, refit=refit)
    elif model is not None:
        predictor.save(model)
    return parameters


def _note_missing_data(parameters: dict[str, Any], model: Path | None, *, refit: bool) -> None:
    missing = f"the data {parameters['data']['name']!r} and their prepared copy are missing"
    if refit:
        raise MissingDataError(f"{missing}, so nothing can be trained again; leave out --refit")
    if model is not None:
        raise MissingDataError(f"{missing}, so there is no preprocessing for {model}; leave out --model")
    stderr_console().print(f"hpo: {missing}; metrics that were not recorded are null", markup=False, soft_wrap=True)


if __name__ == "__main__":
    cli.main(export)
