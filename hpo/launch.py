"""``python -m hpo.launch``: run a study to the end of its budget.

Every process of a launch imports this module first, so the slow imports wait until the command line is parsed.
"""

from pathlib import Path
from typing import Any

import click

from hpo.fleet.forkserver import importing, server_running
from hpo.ui import cli
from hpo.utils.signals import signals_blocked


@cli.command("python -m hpo.launch")
@cli.study_argument
@cli.workers_option
@cli.option("--trials", type=cli.Integer(1), help="Total number of trials.  [default: as in the study file]")
@cli.option("--timeout", type=cli.Duration(), help="Stop after this time: 90s, 30m, 2h.")
@cli.storage_option
@cli.storage_timeout_option
@cli.option("--trial-timeout", type=cli.Duration(), help="End a trial after this time of training.")
@cli.option("--memory-limit", type=cli.ByteSize(), help="End a trial if its worker needs more memory: 500M, 2G.")
@cli.option("--confirm", type=cli.Integer(0, cli.MAX_CONFIRM), default=3, help="Number of best trials to repeat.")
@cli.enqueue_option
@cli.option("--output", type=click.Path(path_type=Path), help="Folder of best.json, or file.  [default: results/STUDY]")
@cli.host_option
@cli.port_option
@cli.allow_host_option
@cli.option("--no-dashboard", is_flag=True, help="Serve no dashboard.")
@cli.quiet_option
@cli.verbose_option
def launch(**options: Any) -> int:
    """Run STUDY, a name or a .toml file, to the end of its budget; print the best parameters as JSON."""
    with server_running(cli.PRELOAD):
        # Meanwhile the server imports the same modules. A Ctrl-C within an import could be lost.
        with signals_blocked(), importing():
            from hpo.storage import database
            from hpo.tuning.launching import LaunchOptions, run

            database.preload()
        return run(LaunchOptions(**options))


if __name__ == "__main__":
    cli.main(launch)
