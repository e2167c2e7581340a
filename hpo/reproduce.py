"""``python -m hpo.reproduce``: the experiments of the report that hpo began with, its figures beside ours.

As with `hpo.launch`, what takes long to import waits until the command line has been read.
"""

from pathlib import Path
from typing import Any

import click

from hpo.fleet.forkserver import importing, server_running
from hpo.ui import cli
from hpo.utils.signals import signals_blocked


@cli.command("python -m hpo.reproduce")
@cli.option(
    "--only", type=click.Choice(cli.EXPERIMENTS), multiple=True, help="This experiment; can be given several times."
)
@cli.option("--quick", is_flag=True, help="Cut what takes hours down to what takes minutes: it shows that all works.")
@cli.option("--workers", type=click.IntRange(1), help="Trials at a time.  [default: the number of cores]")
@cli.storage_option
@cli.option("--storage-timeout", type=cli.Duration(), default="5m", help="Wait so long for a database that went away.")
@cli.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("results", "reproduction.md"),
    help="Where the table goes.",
)
@cli.option("--quiet", is_flag=True, help="Show no progress.")
@cli.verbose_option
def reproduce(**arguments: Any) -> int:
    """Run the experiments of the report; print its figures beside ours, a table in Markdown."""
    with server_running():
        with signals_blocked(), importing():
            from hpo.paper.reproduction import Options, run
            from hpo.storage import database as storage

            storage.preload()
        return run(Options(**arguments))


if __name__ == "__main__":
    cli.main(reproduce)
