"""The dashboard's way to its database; what it shows is looked at from outside."""

import optuna_dashboard
import pytest
import waitress
from sqlalchemy.exc import OperationalError

from hpo.errors import StorageError
from hpo.ui import dashboard_server as dashboard


@pytest.fixture
def answers(monkeypatch):
    """What happens each time that optuna-dashboard asks the database what it needs to know at its start."""
    answers = []

    def wsgi(rdb):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(optuna_dashboard, "wsgi", wsgi)
    return answers


def test_a_database_that_goes_away_while_it_is_opened_is_told_in_one_line(storage_url, answers):
    answers.append(OperationalError("SELECT", {}, ConnectionError("gone")))
    with pytest.raises(StorageError, match=r"^cannot use .*: gone$"):
        dashboard.open_app(storage_url)


def test_the_dashboard_of_a_launch_waits_for_it(storage_url, answers, monkeypatch):
    served = []
    monkeypatch.setattr(waitress, "serve", lambda app, **_: served.append(app))
    answers += [OperationalError("SELECT", {}, ConnectionError("gone"))] * 2 + ["the application"]
    dashboard.serve_for_parent(storage_url, None)
    assert served == ["the application"]
