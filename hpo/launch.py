"""``python -m hpo.launch``: run a study to the end of its budget.

Every process of a launch imports this module first, so the slow imports wait until the command line is parsed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.fleet.forkserver import importing, server_running
from hpo.ui import cli
from hpo.utils.signals import signals_blocked

if TYPE_CHECKING:
    from hpo.config.study import StudyConfig

_MODEL_OPTIONS = ("allow_import", "refit")
_SCRIPT_OPTIONS = ("arguments", "direction", "pruner", "gpus", "allow_changes")


@cli.command("python -m hpo.launch")
@cli.study_argument
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@cli.workers_option
@cli.option("--trials", type=cli.Integer(1), help="Total number of trials.  [default: as in the study file]")
@cli.option("--timeout", type=cli.Duration(), help="Stop after this time: 90s, 30m, 2h.")
@cli.storage_option
@cli.storage_timeout_option
@cli.option("--trial-timeout", type=cli.Duration(), help="End a trial after this time of training.")
@cli.option("--memory-limit", type=cli.ByteSize(), help="End a trial if its worker needs more memory: 500M, 2G.")
@cli.option("--refit", is_flag=True, help="Then train the best trial on all rows but the test rows, for best.npz.")
@cli.confirm_option
@cli.enqueue_option
@cli.allow_import_option
@cli.option("--output", type=click.Path(path_type=Path), help="Folder of best.json, or file.  [default: results/STUDY]")
@cli.option("--direction", multiple=True, type=click.Choice(["minimize", "maximize"]), help="Direction of a function.")
@cli.option("--pruner", type=click.Choice(["asha"]), help="Pruner of a script, instead of its own.")
@cli.option("--gpus", type=cli.GpuList(), default="auto", help="GPUs of a script's workers: auto, none, or 0,1.")
@cli.option("--allow-changes", is_flag=True, help="Go on with a script that has changed.")
@cli.host_option
@cli.port_option
@cli.allow_host_option
@cli.option("--no-dashboard", is_flag=True, help="Serve no dashboard.")
@cli.quiet_option
@cli.verbose_option
def launch(**options: Any) -> int:
    """Run STUDY to the end of its budget.

    STUDY is the name of a study or a .toml file; then the best parameters are printed as JSON. Or it is an Optuna
    script (train.py) or a function (train.py:objective, module:objective). ARGUMENTS after -- are the script's own.
    """
    # A Ctrl-C within an import could be lost.
    with signals_blocked():
        from hpo.config.loader import find_study, function_of, is_script, load_config

    if is_script(options["study"]):
        return _launch_script(options["study"], options)
    config = load_config(find_study(options["study"]))
    if config.objective is not None:
        return _launch_script(function_of(config), options, config)
    _refuse_script_options(options)
    has_estimators = config.model is not None and config.model.has_estimators
    with server_running(cli.PRELOAD + cli.ESTIMATOR_PRELOAD * has_estimators):
        # Meanwhile the server imports the same modules.
        with signals_blocked(), importing():
            from hpo.storage.database import connection
            from hpo.tuning.launching import LaunchOptions, run

            connection.preload()
        return run(LaunchOptions(**options))


def _launch_script(target: str, options: dict[str, Any], study_file: "StudyConfig | None" = None) -> int:
    if options["direction"] and ":" not in target:
        raise click.UsageError("--direction is not for a script, which gives the direction to create_study")
    for name in _MODEL_OPTIONS:
        if options.pop(name):
            raise click.UsageError(f"--{name.replace('_', '-')} is for a study file that trains a model")
    with server_running():
        from hpo.scripts.launching.command import ScriptOptions, run

        del options["study"]
        return run(ScriptOptions(target=target, is_storage_given=cli.is_given("storage"), **options), study_file)


def _refuse_script_options(options: dict[str, Any]) -> None:
    """Remove the options of scripts, and refuse them for a study file."""
    for name in _SCRIPT_OPTIONS:
        if cli.is_given(name) and options[name]:
            problem = "arguments after the study are" if name == "arguments" else f"--{name.replace('_', '-')} is"
            raise click.UsageError(f"{problem} for a script such as train.py, not for a study file")
        del options[name]


if __name__ == "__main__":
    cli.main(launch)
