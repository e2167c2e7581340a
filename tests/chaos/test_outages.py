"""A database that goes away, hangs, or has no room left, under a fleet that goes on."""

import resource
import subprocess
import urllib.error
import urllib.request

import pytest
from commands import (
    ENDLESS,
    FEW,
    SHORT,
    Gates,
    contents,
    descendants,
    hpo,
    listening,
    outliving,
    read_until,
    started,
    write_study,
)

from benchmarks.postgres import free_port, running_postgres
from hpo.storage.leases import LEASE_SECONDS


@pytest.fixture
def server():
    """A server of the test's own, to be mistreated."""
    with running_postgres() as postgres:
        yield postgres


def pass_time(process: subprocess.Popen[str], seconds: float) -> None:
    """Let a launch run on for a while; it is not to end by itself."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


def test_the_server_crashes_twice_once_for_longer_than_a_lease(server, undisturbed):
    url = server.new_database()
    arguments = ["launch", write_study(SHORT), "--workers", 3, "--trials", FEW, "--port", free_port(), "--storage", url]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        dashboard = read_until(process, "dashboard: ").split()[-1]
        read_until(process, "running")
        assert status(dashboard) == 200
        for seconds in (LEASE_SECONDS + 2, 0):
            server.crash()
            if seconds:
                read_until(process, "the database cannot be used")
                assert status(dashboard) == 500
                listening(process.pid, dashboard).kill()
                read_until(process, "the dashboard died; another takes its place")
                pass_time(process, seconds)
            server.start()
            assert status(dashboard) == 200
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "Exception" not in stderr
    assert "the database is back" in stderr
    assert "died" not in stderr  # nor did the other dashboard, which waited for the server
    assert contents(url) == undisturbed[:FEW]


def status(dashboard: str) -> int:
    """How the dashboard answers."""
    try:
        with urllib.request.urlopen(f"{dashboard}/api/studies") as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_server_that_stays_away_ends_the_launch_in_one_line_and_the_same_command_goes_on(server, undisturbed):
    url, study = server.new_database(), write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard", "--storage", url]
    with Gates([FEW - 1]) as gates, started(*arguments, "--storage-timeout", "2s", **gates.environment) as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        server.crash()
        read_until(process, "the database cannot be used")
        assert outliving(process, processes) == []
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (1, "")
    assert stderr.count("\n") == 1
    assert "could not be used for 2 s" in stderr
    assert "the same command goes on" in stderr
    server.start()
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents(url) == undisturbed[:FEW]


def test_a_server_that_hangs_is_told_of_and_keeps_nobody_from_stopping(server):
    url, study = server.new_database(), write_study(ENDLESS)
    with started("launch", study, "--workers", 1, "--storage", url) as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        with server.hanging():
            assert "no answer" in read_until(process, "the database cannot be used")
            process.terminate()
            assert outliving(process, processes) == []
            _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_server_that_hangs_for_longer_than_a_lease_loses_nothing(server, undisturbed):
    url = server.new_database()
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard", "--storage", url]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        with server.hanging():
            pass_time(process, LEASE_SECONDS + 2)
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert contents(url) == undisturbed[:FEW]


def test_a_full_disk_is_told_of_and_waited_for(undisturbed):
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        limit_files(process, 4096)
        assert "disk" in read_until(process, "the database cannot be used")
        limit_files(process, resource.RLIM_INFINITY)
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "the database is back" in stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


def limit_files(process: subprocess.Popen[str], size: int) -> None:
    """Let no file of a launch grow beyond this, as on a disk that is full."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for pid in [process.pid, *descendants(process.pid)]:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def test_every_connection_is_cut_again_and_again(server, undisturbed):
    url = server.new_database()
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", 2 * FEW, "--no-dashboard", "--storage", url]
    with Gates([2 * FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        for _ in range(10):
            pass_time(process, 0.2)
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hpo'")
        gates.open(2 * FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert contents(url) == undisturbed[: 2 * FEW]


def test_a_server_that_can_only_be_read_is_told_of_and_waited_for(server, undisturbed):
    url = server.new_database()
    name = url.rpartition("/")[2]
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard", "--storage", url]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        for setting in ("SET default_transaction_read_only = on", "RESET default_transaction_read_only"):
            server.execute(f"ALTER DATABASE {name} {setting}")
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hpo'")
            if "on" in setting.split():
                read_until(process, "the database cannot be used", "read-only")
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "the database is back" in stderr
    assert contents(url) == undisturbed[:FEW]


def test_who_starts_while_the_server_is_away_is_told_so(server):
    url = server.new_database()
    server.crash()
    done = hpo("launch", write_study(), "--no-dashboard", "--storage", url)
    server.start()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Connection refused" in done.stderr
