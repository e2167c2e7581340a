"""Starts of processes while the fork server may die."""

import tempfile

import pytest
import tenacity

from hpo.errors import OutputError, WorkerStartupError
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


def test_server_that_always_dies_is_one_line(monkeypatch):
    FailingProcess.errors = [ConnectionRefusedError()] * 2
    once = forkserver.process_for.retry_with(stop=tenacity.stop_after_attempt(1))
    with pytest.raises(WorkerStartupError, match="dies at its start"):
        once(print)


@pytest.fixture
def chosen(monkeypatch):
    """The folders in which multiprocessing creates its own folder."""
    folders = []
    monkeypatch.setattr(forkserver, "get_temp_dir", lambda: folders.append(tempfile.gettempdir()))
    return folders


@pytest.mark.parametrize("length", [1, 60, 90, 180])
def test_path_of_socket_is_short_enough(length, tmp_path, chosen, monkeypatch):
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    forkserver._choose_socket_folder()
    assert len(f"{chosen[0]}/pymp-12345678/listener-12345678") <= 103
    assert tempfile.tempdir == str(folder)


def test_short_temporary_folder_is_kept(chosen, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        forkserver._choose_socket_folder()
        assert chosen == [folder]


def test_missing_temporary_folder_is_one_line(chosen, monkeypatch):
    def refuse():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(OutputError, match="set TMPDIR"):
        forkserver._choose_socket_folder()
