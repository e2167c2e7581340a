"""Databases that go away, hang, or cannot be written, while a launch runs."""

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
    find_listener,
    hpo,
    read_until,
    started,
    wait_for_end,
    write_study,
)

from benchmarks.postgres import free_port, running_postgres
from hpo.storage.database.connection import StorageTimings

LONGER_THAN_A_LEASE_S = StorageTimings().lease_s + 2


@pytest.fixture
def server():
    """A PostgreSQL server for one test, which may crash or freeze it."""
    with running_postgres() as postgres:
        yield postgres


def pass_time(process: subprocess.Popen[str], seconds: float) -> None:
    """Let a launch continue for at least this time. It may not end."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


@pytest.mark.slow
def test_server_crash_for_longer_than_lease_changes_no_trial(server, undisturbed):
    url = server.new_database()
    arguments = ["launch", write_study(SHORT), "--workers", 3, "--trials", FEW, "--port", free_port(), "--storage", url]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        dashboard = read_until(process, "dashboard: ").split()[-1]
        read_until(process, "running")
        assert status(dashboard) == 200
        server.crash()
        read_until(process, "the database cannot be used")
        assert status(dashboard) == 500
        find_listener(process.pid, dashboard).kill()
        read_until(process, "the dashboard died; another takes its place")
        pass_time(process, LONGER_THAN_A_LEASE_S)
        server.start()
        assert status(dashboard) == 200
        server.crash()
        server.start()
        assert status(dashboard) == 200
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "Exception" not in stderr
    assert "the database is back" in stderr
    # The second dashboard waited for the server as well.
    assert "died" not in stderr
    assert contents(url) == undisturbed[:FEW]


def status(dashboard: str) -> int:
    """Return the HTTP status of the dashboard's answer."""
    try:
        with urllib.request.urlopen(f"{dashboard}/api/studies") as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.slow
def test_storage_timeout_ends_launch_and_same_command_resumes(server, undisturbed):
    url, study = server.new_database(), write_study(SHORT)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard", "--storage", url]
    with Gates([FEW - 1]) as gates, started(*arguments, "--storage-timeout", "2s", **gates.environment) as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        server.crash()
        read_until(process, "the database cannot be used")
        wait_for_end(process, processes)
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (1, "")
    assert stderr.count("\n") == 1
    assert "could not be used for 2 s" in stderr
    assert "the same command" in stderr
    server.start()
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents(url) == undisturbed[:FEW]


@pytest.mark.slow
def test_hanging_server_is_reported_and_does_not_delay_stop(server):
    url, study = server.new_database(), write_study(ENDLESS)
    arguments = ["launch", study, "--workers", 1, "--storage", url]
    with Gates([0]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        processes = descendants(process.pid)
        with server.hanging():
            assert "no answer" in read_until(process, "the database cannot be used")
            process.terminate()
            wait_for_end(process, processes)
            _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_server_hanging_for_longer_than_lease_changes_no_trial(server, undisturbed):
    url = server.new_database()
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard", "--storage", url]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        with server.hanging():
            pass_time(process, LONGER_THAN_A_LEASE_S)
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert contents(url) == undisturbed[:FEW]


@pytest.mark.slow
def test_full_disk_is_reported_and_waited_for(undisturbed):
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with Gates([FEW - 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        limit_file_size(process, 4096)
        assert "disk" in read_until(process, "the database cannot be used")
        limit_file_size(process, resource.RLIM_INFINITY)
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "the database is back" in stderr
    assert contents("sqlite:///hpo.db") == undisturbed[:FEW]


def limit_file_size(process: subprocess.Popen[str], size: int) -> None:
    """Limit the size of each file that a launch writes, as on a full disk."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for pid in [process.pid, *descendants(process.pid)]:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


@pytest.mark.slow
def test_repeatedly_cut_connections_change_no_trial(server, undisturbed):
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


@pytest.mark.slow
def test_read_only_server_is_reported_and_waited_for(server, undisturbed):
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


def test_launch_without_server_prints_one_line(server):
    url = server.new_database()
    server.crash()
    done = hpo("launch", write_study(), "--no-dashboard", "--storage", url)
    server.start()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Connection refused" in done.stderr
