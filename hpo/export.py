"""``python -m hpo.export``: the best parameters of a study as JSON, and its predictor."""

from pathlib import Path
from typing import Any

import click

from hpo.config.loader import find_study, load_config
from hpo.errors import MissingDataError, OutputError
from hpo.models.predictor import Predictor
from hpo.storage.database import Database
from hpo.tuning.result import export_study, to_json
from hpo.ui import cli
from hpo.ui.logs import configure_logging, stderr_console
from hpo.utils.files import file_in, write_text


@cli.command("python -m hpo.export")
@cli.study_argument
@cli.storage_option
@cli.option("--trial", type=cli.Integer(0), help="Number of a trial to export instead of the best trial.")
@cli.option("--output", type=click.Path(path_type=Path), help="File, or folder of best.json, instead of stdout.")
@cli.option("--model", type=click.Path(path_type=Path, dir_okay=False), help="File for the predictor, a .npz file.")
@cli.verbose_option
def export(study: str, storage: str, trial: int | None, output: Path | None, model: Path | None, verbose: bool) -> None:
    """Print the best parameters of STUDY as JSON."""
    configure_logging(verbose=verbose)
    if model is not None and model.suffix != ".npz":
        raise OutputError(f"{model}: not a .npz file; give --model a name that ends with .npz")
    parameters, predictor = _export(study, storage, trial)
    if predictor is None:
        _note_missing_data(parameters, model)
    elif model is not None:
        predictor.save(model)
    if output is None:
        cli.print_data(to_json(parameters))
    else:
        name = cli.RESULT_NAME if trial is None else f"trial_{trial}.json"
        write_text(file_in(output, name), to_json(parameters))


def _export(study: str, storage: str, trial: int | None) -> tuple[dict[str, Any], Predictor | None]:
    return export_study(load_config(find_study(study)), Database.parse(storage), trial)


def _note_missing_data(parameters: dict[str, Any], model: Path | None) -> None:
    missing = f"the data {parameters['data']['name']!r} and their prepared copy are missing"
    if model is not None:
        raise MissingDataError(f"{missing}, so there is no preprocessing for {model}; leave out --model")
    stderr_console().print(f"hpo: {missing}; metrics that were not recorded are null", markup=False, soft_wrap=True)


if __name__ == "__main__":
    cli.main(export)
