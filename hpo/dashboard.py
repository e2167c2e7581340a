"""``python -m hpo.dashboard``: optuna-dashboard on the database of a study."""

from hpo.storage import database as storage
from hpo.ui import cli
from hpo.ui.dashboard_server import address, listen, open_app, port_of, serve


@cli.command("python -m hpo.dashboard")
@cli.storage_option
@cli.host_option
@cli.port_option
@cli.verbose_option
def dashboard(storage: str, host: str, port: int, verbose: bool) -> None:
    """Show the studies of a database in optuna-dashboard."""
    show(storage, host, port, verbose)


def show(storage_url: str, host: str, port: int, verbose: bool = False) -> None:
    """Serve a database that exists, and say where."""
    url = storage.parse_url(storage_url)
    storage.check_exists(url)
    listener = listen(host, port)
    if port_of(listener) != port:
        cli.say(f"port {port} is taken")
    cli.say(f"dashboard of {storage.show_url(url)}: {address(listener)} (Ctrl-C ends it)")
    serve(open_app(storage_url), listener, verbose)


if __name__ == "__main__":
    cli.main(dashboard)
