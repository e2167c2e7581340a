"""Atomic writing of files."""

import os
import stat

import pytest

from hpo.errors import OutputError
from hpo.utils.files import atomic_write, writable_folder


def refusal(function, path):
    """Return the message about a place that cannot be written, which is one line."""
    with pytest.raises(OutputError) as caught:
        function(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: cannot be written")
    assert "--output" in message
    return message


def write(path, content=b"new"):
    with atomic_write(path) as file:
        file.write(content)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def read_only(tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.fixture
def umask():
    """Set a umask that makes new files private."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_written_file_leaves_no_other_file(tmp_path):
    write(tmp_path / "best.json", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]
    assert (tmp_path / "best.json").read_bytes() == b"content"


def test_file_appears_after_last_write(tmp_path):
    path = tmp_path / "best.json"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.exists()


def test_previous_file_stays_until_replaced(tmp_path):
    path = tmp_path / "best.json"
    path.write_bytes(b"previous")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"previous"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_previous_file(error, tmp_path):
    path = tmp_path / "best.json"
    path.write_bytes(b"previous")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert [left.name for left in tmp_path.iterdir()] == ["best.json"]
    assert path.read_bytes() == b"previous"


def test_full_disk_leaves_no_file(tmp_path):
    def fill(path):
        with atomic_write(path):
            raise OSError(28, "No space left on device")

    assert "No space left on device" in refusal(fill, tmp_path / "best.json")
    assert list(tmp_path.iterdir()) == []


def test_written_file_is_readable_by_others(tmp_path, umask):
    write(tmp_path / "best.json")
    assert mode(tmp_path / "best.json") == 0o644


def test_write_into_missing_folder_fails(tmp_path):
    refusal(write, tmp_path / "missing" / "best.json")
    assert list(tmp_path.iterdir()) == []


def test_write_below_file_fails(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refusal(write, tmp_path / "file" / "best.json")


def test_write_over_folder_fails(tmp_path):
    (tmp_path / "folder").mkdir()
    refusal(write, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_missing_folder_is_created_with_parents(tmp_path):
    folder = tmp_path / "results" / "digits"
    assert writable_folder(folder) == folder
    assert folder.is_dir()


def test_existing_folder_keeps_its_files(tmp_path):
    (tmp_path / "best.json").write_bytes(b"previous")
    assert writable_folder(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]


def test_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refusal(writable_folder, tmp_path / "file")
    refusal(writable_folder, tmp_path / "file" / "below")


def test_read_only_folder_is_refused_for_root(read_only):
    refusal(writable_folder, read_only)
    assert list(read_only.iterdir()) == []
