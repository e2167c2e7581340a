"""When a launch starts its dashboard; the processes are made up, the socket is real."""

import socket

import pytest

from hpo.ui import dashboard_server as dashboard_module
from hpo.ui.dashboard_server import DashboardProcess, listen


class FakeProcess:
    def __init__(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.alive = False

    def join(self, timeout: float) -> None:
        pass


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    started = []

    def process_for(target, *arguments) -> FakeProcess:
        assert target is dashboard_module.serve_for_parent
        started.append(FakeProcess())
        return started[-1]

    monkeypatch.setattr(dashboard_module, "process_for", process_for)
    return started


@pytest.fixture
def listener():
    with listen("127.0.0.1", 8080) as listener:
        yield listener


def test_a_dashboard_starts_when_somebody_asks_for_it(started, listener):
    companion = DashboardProcess("sqlite:///hpo.db", listener)
    assert [companion.tend(), started] == [False, []]
    with socket.create_connection(listener.getsockname()):
        for _ in range(2):
            assert companion.tend() is False
            assert len(started) == 1
    companion.stop()
    assert not started[0].is_alive()


def test_a_dashboard_that_nobody_asked_for_needs_no_end(started, listener):
    DashboardProcess("sqlite:///hpo.db", listener).stop()
    assert started == []


def test_a_dashboard_that_died_is_replaced_without_being_asked_for(started, listener, monkeypatch):
    companion = DashboardProcess("sqlite:///hpo.db", listener)
    with socket.create_connection(listener.getsockname()):
        companion.tend()
    started[0].kill()
    assert [companion.tend(), len(started)] == [False, 1]
    monkeypatch.setattr(dashboard_module, "RESTART_SECONDS", 0.0)
    companion._pause = 0.0
    assert [companion.tend(), len(started)] == [True, 2]
