"""``python -m hpo.reproduce``: the experiments of the report, its figures next to ours.

As in `hpo.launch`, the slow imports wait until the command line is parsed.
"""

from pathlib import Path
from typing import Any

import click

from hpo.fleet.forkserver import importing, server_running
from hpo.paper.names import EXPERIMENTS
from hpo.ui import cli
from hpo.utils.signals import signals_blocked


@cli.command("python -m hpo.reproduce")
@cli.option("--only", type=click.Choice(EXPERIMENTS), multiple=True, help="Experiment to run; may be repeated.")
@cli.option("--quick", is_flag=True, help="Cut hours down to minutes, to check that everything works.")
@cli.workers_option
@cli.storage_option
@cli.storage_timeout_option
@cli.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("results", "reproduction.md"),
    help="File of the table, or folder of reproduction.md.",
)
@cli.quiet_option
@cli.verbose_option
def reproduce(**options: Any) -> int:
    """Run the experiments of the report; print its figures next to ours, as a table in Markdown."""
    with server_running(cli.PRELOAD):
        with signals_blocked(), importing():
            from hpo.paper.reproduction import ReproduceOptions, run
            from hpo.storage.database import connection

            connection.preload()
        return run(ReproduceOptions(**options))


if __name__ == "__main__":
    cli.main(reproduce)
