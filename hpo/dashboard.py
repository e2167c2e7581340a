"""``python -m hpo.dashboard``: optuna-dashboard on the database of a study."""

import logging

from hpo.storage.database.connection import Database
from hpo.ui import cli
from hpo.ui.dashboard_server import address, exposure, listen, open_app, port_of, serve
from hpo.ui.exit_codes import EXIT_INTERRUPTED
from hpo.ui.logs import configure_logging

_LOGGER = logging.getLogger("hpo.dashboard")


@cli.command("python -m hpo.dashboard")
@cli.storage_option
@cli.host_option
@cli.port_option
@cli.allow_host_option
@cli.verbose_option
def dashboard(storage: str, host: str, port: int, allow_host: tuple[str, ...], verbose: bool) -> int:
    """Show the studies of a database in optuna-dashboard."""
    configure_logging(verbose=verbose)
    with Database.parse(storage).reading() as database:
        listener = listen(host, port)
        if port_of(listener) != port:
            _LOGGER.info("port %s is taken", port)
        _LOGGER.info("dashboard of %s: %s (Ctrl-C ends it)", database.shown, address(listener))
        if warning := exposure(listener):
            _LOGGER.warning(warning)
        serve(open_app(database), listener, allow_host, verbose)
    # The server ends only if it is interrupted, and waitress catches that exception.
    return EXIT_INTERRUPTED


if __name__ == "__main__":
    cli.main(dashboard)
