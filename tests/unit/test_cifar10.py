"""CIFAR-10 from a server on the loopback interface, or from the user. The images are noise."""

import hashlib
import logging
import socket
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from cifar_files import ARCHIVE, CLASSES, batch_files, tar_of, write_folder

from hpo.data.cifar10 import BATCHES, FOLDER, OFFICIAL_ARCHIVE, Archive, Cifar10
from hpo.errors import DataError

BATCH_SIZE = 3


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@dataclass
class Server:
    """Server of one archive.

    Attributes:
        content: The archive.
        status: The HTTP status of a refusal.
        cut: The number of bytes after which the next response ends.
        paths: The requested paths.
        port: The port.
    """

    content: bytes
    status: int = 200
    cut: int | None = None
    paths: list[str] = field(default_factory=list)
    port: int = 0

    def archive(self, **changes):
        md5 = hashlib.md5(self.content, usedforsecurity=False).hexdigest()
        url = f"http://127.0.0.1:{self.port}/{ARCHIVE}"
        return Archive(url, md5, len(self.content))._replace(**changes)


def handler_of(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.paths.append(self.path)
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            cut, server.cut = server.cut, None
            self.wfile.write(server.content[:cut])

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def server():
    files = {f"{FOLDER}/{name}": content for name, content in batch_files(BATCH_SIZE).items()}
    server = Server(tar_of(files))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server)) as http:
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        http.shutdown()
        thread.join()


def source_of(data_dir, archive=OFFICIAL_ARCHIVE):
    return Cifar10(data_dir, archive, BATCH_SIZE)


def find_images(data_dir, archive=OFFICIAL_ARCHIVE):
    return source_of(data_dir, archive).find_images()


def assert_one_line(error):
    assert "\n" not in str(error.value)


def assert_complete(folder):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == batch_files(BATCH_SIZE)


def names_in(data_dir):
    return sorted(path.name for path in data_dir.iterdir() if not path.name.startswith("."))


def test_missing_images_are_downloaded(server, tmp_path, capsys, caplog):
    with caplog.at_level(logging.INFO, "hpo"):
        folder = find_images(tmp_path / "new", server.archive())
    assert_complete(folder)
    assert names_in(tmp_path / "new") == [FOLDER]
    assert folder.stat().st_mode & 0o055 == 0o055
    assert caplog.messages == [f"downloading {server.archive().url}, {len(server.content):,} bytes"]
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_terminal_shows_progress_bar(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    find_images(tmp_path, server.archive())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "100%" in printed.err


def test_present_images_are_not_downloaded(server, tmp_path):
    for _ in range(2):
        find_images(tmp_path, server.archive())
    assert server.paths == [f"/{ARCHIVE}"]


def test_concurrent_launches_download_once(server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(find_images, [tmp_path] * 2, [server.archive()] * 2))
    assert server.paths == [f"/{ARCHIVE}"]
    assert folders[0] == folders[1]


def test_cut_download_leaves_nothing(server, tmp_path):
    server.cut = 20_000
    with pytest.raises(DataError, match="failed") as error:
        find_images(tmp_path, server.archive())
    assert_one_line(error)
    assert names_in(tmp_path) == []
    assert_complete(find_images(tmp_path, server.archive()))


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError, match=r"its MD5 is not 0000") as error:
        find_images(tmp_path, server.archive(md5="0000"))
    assert_one_line(error)
    assert names_in(tmp_path) == []
    assert_complete(find_images(tmp_path, server.archive()))


@pytest.mark.parametrize("status", [403, 404, 503])
def test_refused_download_error_gives_advice(server, tmp_path, status):
    server.status = status
    with pytest.raises(DataError, match=f"HTTP status {status}") as error:
        find_images(tmp_path, server.archive())
    assert_one_line(error)
    assert f"put {ARCHIVE} or its folder {FOLDER} into {tmp_path}" in str(error.value)
    assert names_in(tmp_path) == []


def test_missing_network_error_gives_advice(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{ARCHIVE}"
    with pytest.raises(DataError, match=r"failed \(Connection refused\)") as error:
        find_images(tmp_path, Archive(url, "", 1))
    assert_one_line(error)
    assert url in str(error.value)
    assert f"put {ARCHIVE} or its folder {FOLDER} into {tmp_path}" in str(error.value)


def test_given_archive_is_used_and_kept(server, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(server.content)
    assert_complete(find_images(tmp_path, server.archive()))
    assert server.paths == []
    assert names_in(tmp_path) == [FOLDER, ARCHIVE]


def test_wrong_given_archive_is_refused_and_kept(server, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(b"the Python version")
    with pytest.raises(DataError, match=rf"{ARCHIVE}: damaged: its MD5 is [0-9a-f]{{32}} instead of") as error:
        find_images(tmp_path, server.archive())
    assert_one_line(error)
    assert names_in(tmp_path) == [ARCHIVE]


def test_only_expected_files_are_unpacked(server, tmp_path):
    files = {f"{FOLDER}/{name}": content for name, content in batch_files(BATCH_SIZE).items()}
    server.content = tar_of({"../escaped": b"x", f"{FOLDER}/readme.html": b"x"} | files)
    assert_complete(find_images(tmp_path / "data", server.archive()))
    assert names_in(tmp_path) == ["data"]


def test_folder_of_killed_process_is_removed(server, tmp_path):
    (tmp_path / f"{FOLDER}.part").mkdir()
    (tmp_path / f"{FOLDER}.part" / "test_batch.bin").write_bytes(b"half")
    assert_complete(find_images(tmp_path, server.archive()))
    assert names_in(tmp_path) == [FOLDER]


def test_given_folder_is_used(tmp_path):
    folder = write_folder(tmp_path, BATCH_SIZE)
    dataset = source_of(tmp_path).load()
    assert dataset.name == "cifar10"
    assert dataset.X.shape == (6 * BATCH_SIZE, 3072)
    assert dataset.X.dtype == np.uint8
    assert dataset.test_from == 5 * BATCH_SIZE
    last = np.frombuffer((folder / "test_batch.bin").read_bytes(), np.uint8).reshape(BATCH_SIZE, 3073)
    assert (dataset.X[dataset.test_from :] == last[:, 1:]).all()
    assert dataset.labels[dataset.test_from :].tolist() == [CLASSES[label] for label in last[:, 0]]


def test_fingerprint_depends_on_test_batch(tmp_path):
    folder = write_folder(tmp_path, BATCH_SIZE)
    before = source_of(tmp_path).fingerprint()
    batch = folder / "test_batch.bin"
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    assert source_of(tmp_path).fingerprint() != before


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta.txt"])
def test_missing_file_is_named(tmp_path, name):
    (write_folder(tmp_path, BATCH_SIZE) / name).unlink()
    with pytest.raises(DataError, match=f"{FOLDER}/{name}: missing") as error:
        find_images(tmp_path)
    assert_one_line(error)


@pytest.mark.parametrize("size", [0, BATCH_SIZE * 3073 - 1, BATCH_SIZE * 3073 + 1])
def test_file_of_other_size_is_named(tmp_path, size):
    (write_folder(tmp_path, BATCH_SIZE) / "data_batch_3.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"data_batch_3.bin: damaged: {size} bytes instead of 9219") as error:
        find_images(tmp_path)
    assert_one_line(error)


def test_label_without_class_is_refused(tmp_path):
    batch = write_folder(tmp_path, BATCH_SIZE) / "data_batch_2.bin"
    batch.write_bytes(b"\x0a" + batch.read_bytes()[1:])
    with pytest.raises(DataError, match=r"data_batch_2.bin: damaged: label 10 of 10 classes"):
        source_of(tmp_path).load()


@pytest.mark.cifar10
def test_real_images_have_6000_of_each_class(data_dir):
    dataset = Cifar10(data_dir).load()
    assert dataset.X.shape == (60_000, 3072)
    assert Counter(dataset.labels.tolist()) == dict.fromkeys(CLASSES, 6000)
    assert Counter(dataset.labels[50_000:].tolist()) == dict.fromkeys(CLASSES, 1000)
