"""Standard streams that cannot be written."""

import io
import os
import resource
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import OutputError, ReaderGoneError
from hpo.utils.streams import ForgivingFile, StrictFile, let_reader_leave, protect_streams, protect_worker_streams


@pytest.fixture(autouse=True)
def _streams(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


@contextmanager
def descriptor_of(kind):
    """Provide a descriptor whose writes fail."""
    if kind == "full disk":
        descriptors = [os.open("/dev/full", os.O_WRONLY)]
    elif kind == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        descriptors = [writer]
    elif kind == "lost terminal":
        master, slave = os.openpty()
        os.close(master)
        descriptors = [slave]
    else:
        descriptors = [os.open(os.devnull, os.O_RDONLY)]
    try:
        yield descriptors[0]
    finally:
        os.close(descriptors[0])


GONE = ["closed pipe", "lost terminal", "read-only"]


@pytest.mark.parametrize("kind", ["full disk", *GONE])
def test_failure_to_write_stderr_is_ignored(kind):
    with descriptor_of(kind) as descriptor:
        file = ForgivingFile(descriptor)
        assert [file.write(b"line\n"), file.write(b"x" * 100_000)] == [5, 100_000]


def test_closed_stderr_is_ignored():
    assert ForgivingFile(987).write(b"line\n") == 5
    assert not ForgivingFile(987).isatty()


@pytest.mark.parametrize("kind", GONE)
def test_gone_reader_of_stdout_raises_once(kind):
    with descriptor_of(kind) as descriptor:
        file = StrictFile(descriptor)
        with pytest.raises(ReaderGoneError, match="stdout: cannot be written: "):
            file.write(b"data")
        assert file.write(b"data") == 4


@pytest.mark.parametrize("kind", GONE)
def test_reader_of_stdout_may_leave(kind, monkeypatch):
    with descriptor_of(kind) as descriptor:
        file = StrictFile(descriptor)
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(file), line_buffering=True))
        let_reader_leave()
        sys.stdout.write("data\n")
        sys.stdout.write("data\n")
        sys.stdout.detach().detach()


def test_full_stdout_raises_once():
    with descriptor_of("full disk") as descriptor:
        file = StrictFile(descriptor)
        with pytest.raises(OutputError, match="stdout: cannot be written: No space left on device") as caught:
            file.write(b"data")
        assert not isinstance(caught.value, ReaderGoneError)
        assert file.write(b"data") == 4


def test_stalled_reader_does_not_block():
    reader, writer = os.pipe()
    file = ForgivingFile(writer, stall_timeout_s=0.01)
    # More than any pipe holds.
    assert file.write(b"x" * 4_000_000) == 4_000_000
    os.read(reader, 1 << 20)
    file.write(b"later\n")
    os.close(writer)
    with os.fdopen(reader, "rb") as rest:
        assert rest.read() == b"\nlater\n"


def test_slow_reader_gets_everything():
    reader, writer = os.pipe()
    received = []

    def read():
        with os.fdopen(reader, "rb") as file:
            received.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    ForgivingFile(writer, stall_timeout_s=3600).write(b"x" * 1_000_000)
    os.close(writer)
    thread.join()
    assert received == [b"x" * 1_000_000]


@given(lines=st.lists(st.tuples(st.binary(max_size=20), st.booleans()), max_size=20))
def test_written_lines_are_whole_after_any_failures(lines):
    """A line that is written after a lost line starts on a line of its own."""
    reader, writer = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    file = ForgivingFile(writer)
    expected = b""
    for content, is_lost in lines:
        line = content.replace(b"\n", b"") + b"\n"
        file.descriptor = full if is_lost else writer
        file.write(line)
        expected += b"" if is_lost else line
    os.close(writer)
    os.close(full)
    with os.fdopen(reader, "rb") as received:
        assert received.read() == expected


def test_rest_of_torn_line_is_separated(tmp_path):
    with (tmp_path / "log").open("wb") as log, descriptor_of("full disk") as full:
        file = ForgivingFile(log.fileno())
        file.write(b"torn")
        file.descriptor = full
        file.write(b" line\n")
        file.descriptor = log.fileno()
        file.write(b"next line\n")
    assert (tmp_path / "log").read_bytes() == b"torn\nnext line\n"


def test_file_size_limit_is_ignored(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with (tmp_path / "log").open("wb") as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        try:
            file = ForgivingFile(log.fileno())
            assert file.write(b"123456789\n") == 10
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        file.write(b"next\n")
    assert (tmp_path / "log").read_bytes() == b"12345678\nnext\n"


def test_protected_stderr_writes_any_text(monkeypatch, tmp_path):
    with (tmp_path / "log").open("w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stderr", log)
        protect_streams()
        sys.stderr.write("± \udcff\n")
    assert (tmp_path / "log").read_bytes() == b"\\xb1 \\udcff\n"


def test_missing_streams_are_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    protect_streams()
    assert sys.stderr.writable()


def test_streams_of_test_are_kept(capsys):
    protect_streams()
    click.echo("data")
    assert capsys.readouterr().out == "data\n"


def test_output_of_worker_goes_to_stderr(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        protect_worker_streams()
        sys.stdout.write("a library prints\n")
    assert ((tmp_path / "out").read_text(), (tmp_path / "err").read_text()) == ("", "a library prints\n")


def test_no_file_gets_number_of_closed_stream(tmp_path):
    saved = os.dup(0)
    os.close(0)
    try:
        protect_streams()
        with (tmp_path / "hpo.db").open("w") as database:
            assert database.fileno() > 2
        assert os.path.samestat(os.fstat(0), Path(os.devnull).stat())
    finally:
        os.dup2(saved, 0)
        os.close(saved)
