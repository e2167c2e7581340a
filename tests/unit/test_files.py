"""Files that are there whole or not at all."""

import os
import stat

import pytest

from hpo.errors import OutputError
from hpo.utils.files import writable_folder, writing


def refusal(function, path):
    """What is said, in one line, of a place that cannot be written."""
    with pytest.raises(OutputError) as caught:
        function(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: cannot be written")
    assert "--output" in message
    return message


def write(path, content=b"new"):
    with writing(path) as file:
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
    """A umask that would let nobody else read."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_a_written_file_has_its_name_and_nothing_else_is_left(tmp_path):
    write(tmp_path / "best.json", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]
    assert (tmp_path / "best.json").read_bytes() == b"content"


def test_a_file_has_no_name_before_it_is_finished(tmp_path):
    path = tmp_path / "best.json"
    with writing(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.exists()


def test_the_former_file_stays_until_the_new_one_is_finished(tmp_path):
    path = tmp_path / "best.json"
    path.write_bytes(b"former")
    with writing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"former"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_former_file_and_no_other(error, tmp_path):
    path = tmp_path / "best.json"
    path.write_bytes(b"former")
    with pytest.raises(error), writing(path) as file:
        file.write(b"half")
        raise error
    assert [left.name for left in tmp_path.iterdir()] == ["best.json"]
    assert path.read_bytes() == b"former"


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    def fill(path):
        with writing(path):
            raise OSError(28, "No space left on device")

    assert "No space left on device" in refusal(fill, tmp_path / "best.json")
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_is_written(tmp_path, umask):
    write(tmp_path / "best.json")
    assert mode(tmp_path / "best.json") == 0o644


def test_writing_into_a_missing_folder_is_refused(tmp_path):
    refusal(write, tmp_path / "missing" / "best.json")
    assert list(tmp_path.iterdir()) == []


def test_writing_into_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refusal(write, tmp_path / "file" / "best.json")


def test_writing_over_a_folder_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    refusal(write, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_missing_folder_is_made_with_its_parents(tmp_path):
    folder = tmp_path / "results" / "digits"
    assert writable_folder(folder) == folder
    assert folder.is_dir()


def test_a_folder_that_is_there_keeps_what_it_has(tmp_path):
    (tmp_path / "best.json").write_bytes(b"former")
    assert writable_folder(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["best.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refusal(writable_folder, tmp_path / "file")
    refusal(writable_folder, tmp_path / "file" / "below")


def test_a_read_only_folder_is_refused_even_to_root(read_only):
    refusal(writable_folder, read_only)
    assert list(read_only.iterdir()) == []
