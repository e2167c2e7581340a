"""``python -m hpo.launch``: run a study to the end of its budget.

Every process of a launch runs this module first: what takes long to import waits until the command line has been read.
"""

from pathlib import Path
from typing import Any

import click

from hpo.fleet.forkserver import importing, server_running
from hpo.ui import cli
from hpo.utils.signals import signals_blocked


@cli.command("python -m hpo.launch")
@cli.study_argument
@cli.option("--workers", type=click.IntRange(1), help="Trials at a time.  [default: the number of cores]")
@cli.option("--trials", type=click.IntRange(1), help="The study's trials in total.  [default: as in its file]")
@cli.option("--timeout", type=cli.Duration(), help="Stop after this time: 90s, 30m, 2h.")
@cli.storage_option
@cli.option("--storage-timeout", type=cli.Duration(), default="5m", help="Wait so long for a database that went away.")
@cli.option("--trial-timeout", type=cli.Duration(), help="End a trial that has trained for so long.")
@cli.option("--memory-limit", type=cli.Size(), help="End a trial that takes its worker beyond this: 500M, 2G.")
@cli.option("--confirm", type=click.IntRange(0, cli.MAX_CONFIRM), default=3, help="Train so many of the best again.")
@cli.option(
    "--enqueue",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Try the parameters in this JSON file first; can be given several times.",
)
@cli.option("--output", type=click.Path(path_type=Path), help="Where best.json goes.  [default: results/STUDY]")
@cli.host_option
@cli.port_option
@cli.option("--no-dashboard", is_flag=True, help="Do without the dashboard.")
@cli.option("--quiet", is_flag=True, help="Show no progress.")
@cli.verbose_option
def launch(**arguments: Any) -> int:
    """Run STUDY, a name or a .toml file, to the end of its budget; print the best parameters as JSON."""
    with server_running():
        # While the server imports the same. An import that Ctrl-C strikes could keep it for itself.
        with signals_blocked(), importing():
            from hpo.storage import database as storage
            from hpo.tuning.tuner import Options, run

            storage.preload()
        return run(Options(**arguments))


if __name__ == "__main__":
    cli.main(launch)
