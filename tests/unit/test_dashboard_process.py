"""Start and restart of a launch's dashboard; the processes are fakes, the socket is real."""

import signal
import socket

import pytest
from fakes import FakeClock, FakeProcess

from hpo.storage.database.connection import Database
from hpo.ui.dashboard_server import (
    DashboardProcess,
    DashboardTimings,
    LaunchDashboard,
    address,
    listen,
    port_of,
    serve_for_parent,
)

DATABASE = Database.parse("postgresql://hpo:hunter2@host/hpo")


class FakeStarter:
    """Starts fake processes and remembers them."""

    def __init__(self) -> None:
        self.started: list[FakeProcess] = []

    def __call__(self, target, database, listener, names) -> FakeProcess:
        assert target is serve_for_parent
        assert database == DATABASE
        self.started.append(FakeProcess())
        return self.started[-1]


@pytest.fixture
def listener():
    with listen("127.0.0.1", 8080) as listener:
        yield listener


@pytest.fixture
def starter():
    return FakeStarter()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def dashboard(listener, starter, clock):
    return DashboardProcess(DATABASE, listener, timings=DashboardTimings(clock=clock), start_process=starter)


def request(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname())


def test_dashboard_starts_with_first_request(dashboard, starter, listener):
    assert [dashboard.ensure_running(), starter.started] == [False, []]
    with request(listener):
        for _ in range(2):
            assert dashboard.ensure_running() is False
            assert len(starter.started) == 1
    dashboard.stop()
    assert starter.started[0].signals == [signal.SIGKILL]
    assert starter.started[0].joined


def test_dashboard_without_request_is_never_started(dashboard, starter):
    dashboard.stop()
    assert starter.started == []


def test_dead_dashboard_is_restarted_after_delay(dashboard, starter, listener, clock):
    with request(listener):
        dashboard.ensure_running()
    starter.started[0].end(1)
    assert [dashboard.ensure_running(), len(starter.started)] == [False, 1]
    clock.advance(2.1)
    assert [dashboard.ensure_running(), len(starter.started)] == [True, 2]


def test_restart_delay_doubles_until_dashboard_is_steady(dashboard, starter, listener, clock):
    with request(listener):
        dashboard.ensure_running()
    for delay_s in (2, 4, 8):
        starter.started[-1].end(1)
        clock.advance(delay_s - 0.1)
        assert not dashboard.ensure_running()
        clock.advance(0.2)
        assert dashboard.ensure_running()
    clock.advance(61)
    assert not dashboard.ensure_running()
    starter.started[-1].end(1)
    assert dashboard.ensure_running()
    starter.started[-1].end(1)
    clock.advance(3.9)
    assert not dashboard.ensure_running()


def test_launch_dashboard_announces_address_and_next_command(listener):
    notes: list[str] = []
    taken = port_of(listener)
    with LaunchDashboard(DATABASE, "127.0.0.1", taken, notes.append) as dashboard:
        assert notes == []
        dashboard.start()
        dashboard.poll()
    assert notes[0] == f"port {taken} is taken"
    assert notes[1].startswith("dashboard: http://127.0.0.1:")
    assert notes[1] != f"dashboard: {address(listener)}"
    command = "python -m hpo.dashboard --storage postgresql://hpo@host/hpo"
    assert notes[2:] == [f"open the dashboard again with: {command}"]


def test_launch_dashboard_without_start_is_silent():
    notes: list[str] = []
    with LaunchDashboard(DATABASE, "127.0.0.1", 8080, notes.append):
        pass
    assert notes == []
