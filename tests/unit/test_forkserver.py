"""Starts of processes while the fork server may die."""

import pytest

from hpo.fleet import forkserver


class FailingProcess:
    """Process that starts after some errors."""

    errors: list[Exception]
    started = 0

    def __init__(self, target, args, daemon):
        assert daemon

    def start(self):
        if self.errors:
            raise self.errors.pop(0)
        FailingProcess.started += 1


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.setattr(forkserver.context, "Process", FailingProcess)
    monkeypatch.setattr(forkserver.forkserver, "ensure_running", lambda: None)
    FailingProcess.started = 0


def test_start_is_repeated_after_death_of_server():
    FailingProcess.errors = [EOFError(), ConnectionRefusedError(), BrokenPipeError()]
    assert isinstance(forkserver.process_for(print), FailingProcess)
    assert FailingProcess.started == 1


def test_other_errors_are_raised():
    FailingProcess.errors = [OSError("no more processes")]
    with pytest.raises(OSError, match="no more processes"):
        forkserver.process_for(print)
