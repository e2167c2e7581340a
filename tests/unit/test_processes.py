"""Starting processes while the server that they are forked from may die."""

import pytest

from hpo import processes


class FakeProcess:
    """Starts in the end, after these errors."""

    errors: list[Exception]
    started = 0

    def __init__(self, target, args, daemon):
        assert daemon

    def start(self):
        if self.errors:
            raise self.errors.pop(0)
        FakeProcess.started += 1


@pytest.fixture(autouse=True)
def _faked(monkeypatch):
    monkeypatch.setattr(processes.context, "Process", FakeProcess)
    monkeypatch.setattr(processes.forkserver, "ensure_running", lambda: None)
    monkeypatch.setattr(processes.process_for.retry, "wait", lambda _: 0.0)
    FakeProcess.started = 0


def test_a_server_that_dies_while_it_is_asked_is_asked_again():
    FakeProcess.errors = [EOFError(), ConnectionRefusedError(), BrokenPipeError()]
    assert isinstance(processes.process_for(print), FakeProcess)
    assert FakeProcess.started == 1


def test_other_errors_get_out():
    FakeProcess.errors = [OSError("no more processes")]
    with pytest.raises(OSError, match="no more processes"):
        processes.process_for(print)
