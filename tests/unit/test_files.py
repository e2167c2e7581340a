"""Atomic writing of files."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from hpo.errors import OutputError
from hpo.utils.files import atomic_write, check_writable, create_folder_of, file_in, writable_folder


def refusal(function, path):
    """Return the message about a place that cannot be written, which is one line."""
    with pytest.raises(OutputError) as caught:
        function(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: cannot be written")
    # The file may be that of any flag.
    assert "--output" not in message
    assert message.endswith(("; use another place", "; create the folder first"))
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


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o000, 0o666)])
def test_new_file_has_mode_of_umask(umask, expected, tmp_path):
    before = os.umask(umask)
    try:
        write(tmp_path / "best.json")
    finally:
        os.umask(before)
    assert mode(tmp_path / "best.json") == expected


@pytest.mark.parametrize("previous", [0o600, 0o640, 0o755, 0o666])
def test_replaced_file_keeps_its_mode(previous, tmp_path):
    path = tmp_path / "best.json"
    path.write_bytes(b"previous")
    path.chmod(previous)
    inode = path.stat().st_ino
    write(path)
    assert (mode(path), path.read_bytes()) == (previous, b"new")
    assert path.stat().st_ino != inode


def test_replaced_file_keeps_its_owner(tmp_path, monkeypatch):
    path, owners = tmp_path / "best.json", []
    path.write_bytes(b"previous")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
        write(path)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
    # Without privileges the owner cannot be given, so the file itself is overwritten.
    fstat = os.fstat
    monkeypatch.setattr(
        os, "fstat", lambda fd: os.stat_result([*fstat(fd)[:4], owners.append(fd) or len(owners), *fstat(fd)[5:]])
    )

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    inode = path.stat().st_ino
    write(path, b"newer")
    assert (path.stat().st_ino, path.read_bytes()) == (inode, b"newer")
    assert [left.name for left in tmp_path.iterdir()] == ["best.json"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EBUSY, errno.EXDEV])
@pytest.mark.parametrize("content", [b"", b"short", b"longer than the previous content"])
def test_file_that_cannot_be_replaced_is_overwritten(number, content, tmp_path, monkeypatch):
    path = tmp_path / "best.json"
    path.write_bytes(b"the previous content")
    inode = path.stat().st_ino

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", refuse)
    write(path, content)
    assert (path.stat().st_ino, path.read_bytes()) == (inode, content)
    assert [left.name for left in tmp_path.iterdir()] == ["best.json"]


def test_full_disk_at_replacement_keeps_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "best.json"
    path.write_bytes(b"previous")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fchmod", refuse)
    assert "No space left on device" in refusal(write, path)
    assert path.read_bytes() == b"previous"
    assert [left.name for left in tmp_path.iterdir()] == ["best.json"]


def test_links_are_followed(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "best.json").write_bytes(b"previous")
    (tmp_path / "middle.json").symlink_to("shared/best.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "middle.json")
    write(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "middle.json").is_symlink()
    assert (tmp_path / "shared" / "best.json").read_bytes() == b"new"


def test_dangling_link_creates_its_target(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "link.json").symlink_to("shared/best.json")
    write(check_writable(tmp_path / "link.json"))
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "shared" / "best.json").read_bytes() == b"new"


def test_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refusal(write, tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


def test_hard_link_keeps_previous_content(tmp_path):
    (tmp_path / "best.json").write_bytes(b"previous")
    (tmp_path / "backup.json").hardlink_to(tmp_path / "best.json")
    write(tmp_path / "best.json")
    assert (tmp_path / "backup.json").read_bytes() == b"previous"


def test_pipe_receives_content_after_reader_opens_it(tmp_path, caplog):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=write, args=(check_writable(path), b"new" * 50_000))
    writer.start()
    assert path.read_bytes() == b"new" * 50_000
    writer.join()
    assert path.is_fifo()
    assert [left.name for left in tmp_path.iterdir()] == ["pipe"]


def test_pipe_without_reader_is_reported(tmp_path, caplog, monkeypatch):
    path, opened = tmp_path / "pipe", os.open
    os.mkfifo(path)

    def open_with_reader(file, flags, *mode):
        if file == path and not flags & os.O_NONBLOCK:
            readers.append(opened(path, os.O_RDONLY | os.O_NONBLOCK))
        return opened(file, flags, *mode)

    readers = []
    monkeypatch.setattr(os, "open", open_with_reader)
    write(path)
    assert os.read(readers[0], 100) == b"new"
    os.close(readers[0])
    assert caplog.messages == [f"{path}: waiting for a reader of this pipe"]


def test_terminal_receives_content(tmp_path):
    master, slave = os.openpty()
    terminal = Path(os.ttyname(slave))
    write(check_writable(terminal))
    assert os.read(master, 100) == b"new"
    assert terminal.is_char_device()
    for descriptor in (master, slave):
        os.close(descriptor)


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root may create a device; test_terminal_receives_content does not need one"
)
def test_device_stays_device(tmp_path):
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        path.open("wb").close()
    except PermissionError:
        pytest.skip("no device may be created here; test_terminal_receives_content does not need one")
    write(check_writable(path))
    assert path.is_char_device()


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
@pytest.mark.parametrize("linked", [True, False])
def test_open_descriptor_receives_content_at_its_position(folder, linked, tmp_path):
    with (tmp_path / "log").open("wb") as file:
        file.write(b"before ")
        file.flush()
        path = Path(folder, str(file.fileno()))
        if linked:
            (tmp_path / "link").symlink_to(path)
            path = tmp_path / "link"
        write(check_writable(path))
        file.seek(0, os.SEEK_END)
        file.write(b" after")
    assert (tmp_path / "log").read_bytes() == b"before new after"


def test_closed_descriptor_is_refused():
    refusal(write, Path("/dev/fd/987"))


def test_longest_name_is_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write(check_writable(path))
    assert path.read_bytes() == b"new"
    refusal(write, tmp_path / ("x" * 256))


def test_file_of_folder(tmp_path):
    assert file_in(tmp_path, "best.json") == tmp_path / "best.json"
    assert file_in(tmp_path / "other", "best.json") == tmp_path / "other"


def test_check_refuses_what_cannot_be_written(tmp_path, read_only):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    refusal(check_writable, tmp_path / "folder")
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "best.json")
    with pytest.raises(OutputError, match="read-only"):
        check_writable(read_only / "best.json")


def test_check_creates_nothing(tmp_path):
    path = check_writable(tmp_path / "results" / "digits" / "best.json")
    assert list(tmp_path.iterdir()) == []
    create_folder_of(path)
    create_folder_of(path)
    write(path)
    assert path.read_bytes() == b"new"


def test_file_in_read_only_folder_is_writable(read_only):
    read_only.chmod(0o755)
    (read_only / "best.json").write_bytes(b"previous")
    read_only.chmod(0o555)
    write(check_writable(read_only / "best.json"))
    assert (read_only / "best.json").read_bytes() == b"new"


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


def test_reason_names_the_file_that_is_in_the_way(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    message = refusal(write, file / "folder" / "best.json")
    assert message.endswith(f"{file} is not a folder; use another place")
    assert refusal(writable_folder, file).endswith("cannot be written: it is not a folder; use another place")


def test_existing_folder_is_not_to_be_created(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    # The kernel refuses new files in /proc like this.
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    message = refusal(writable_folder, tmp_path)
    assert message.endswith(f"no file can be created in {tmp_path}; use another place")


def test_missing_folder_is_to_be_created(tmp_path):
    assert refusal(write, tmp_path / "missing" / "best.json").endswith("; create the folder first")
