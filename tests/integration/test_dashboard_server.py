"""The dashboard during an outage at its start."""

import logging

import optuna_dashboard
import pytest
import waitress
from factories import make_outage

from hpo.errors import StorageError
from hpo.ui import dashboard_server


@pytest.fixture
def replies(monkeypatch):
    """Return the list of results of optuna-dashboard's start, which reads the database."""
    replies = []

    def wsgi(rdb):
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(optuna_dashboard, "wsgi", wsgi)
    return replies


def test_outage_at_start_is_one_line(database, replies):
    replies.append(make_outage("gone"))
    with pytest.raises(StorageError, match=r"^cannot use .*: gone$"):
        dashboard_server.open_app(database)


def test_dashboard_of_launch_waits_for_end_of_outage(database, replies, monkeypatch):
    served = []
    monkeypatch.setattr(waitress, "serve", lambda app, **_: served.append(app))
    replies += [make_outage("gone"), make_outage("gone"), "the application"]
    with dashboard_server.listen("127.0.0.1", 8080) as listener:
        dashboard_server.serve_for_parent(database, listener)
    assert len(served) == 1


@pytest.mark.parametrize("verbose", [True, False])
def test_server_is_silent_unless_verbose(monkeypatch, verbose):
    loggers = [logging.getLogger(name) for name in ("optuna_dashboard", "waitress.queue")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.WARNING)
        logger.manager._clear_cache()
    monkeypatch.setattr(waitress, "serve", lambda *_, **__: None)
    with dashboard_server.listen("127.0.0.1", 8080) as listener:
        dashboard_server.serve("the application", listener, verbose=verbose)
    assert [logger.isEnabledFor(logging.WARNING) for logger in loggers] == [verbose, verbose]
