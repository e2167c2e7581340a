"""CIFAR-10 fetched from a server on the loopback interface, or placed by hand; its images are noise."""

import hashlib
import io
import os
import re
import socket
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.data import cifar10
from hpo.data.cifar10 import BATCHES, FOLDER, Archive, find_images, load_images, mirrored, shifted
from hpo.errors import DataError

RECORDS = 3
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ARCHIVE = "cifar-10-binary.tar.gz"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)


def batch_files():
    rng = np.random.default_rng(0)
    files = {}
    for name in BATCHES:
        records = rng.integers(0, 256, (RECORDS, 3073), np.uint8)
        records[:, 0] %= 10
        files[name] = records.tobytes()
    return files | {"batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Server:
    """Serves one archive; ``cut`` breaks the connection after so many bytes of the next answer."""

    content: bytes
    ranges: bool = True
    status: int | None = None
    cut: int | None = None
    asked: list[str | None] = field(default_factory=list)
    port: int = 0

    def archive(self, **changes):
        md5 = hashlib.md5(self.content, usedforsecurity=False).hexdigest()
        url = f"http://127.0.0.1:{self.port}/{ARCHIVE}"
        return Archive(url, md5, len(self.content))._replace(**changes)


def handler_of(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            server.asked.append(asked)
            start = int(re.search(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
            self.send_response(server.status or (206 if start else 200))
            body = server.content[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut, server.cut = server.cut, None
            self.wfile.write(body[:cut])

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def server():
    serving = Server(tar_of({f"{FOLDER}/{name}": content for name, content in batch_files().items()}))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(serving)) as http:
        serving.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        http.shutdown()
        thread.join()


def assert_one_line(error):
    assert "\n" not in str(error.value)


def assert_whole(folder):
    for name, content in batch_files().items():
        assert (folder / name).read_bytes() == content


def place_folder(data_dir):
    (data_dir / FOLDER).mkdir(parents=True)
    for name, content in batch_files().items():
        (data_dir / FOLDER / name).write_bytes(content)
    return data_dir / FOLDER


def left_behind(data_dir):
    return sorted(path.name for path in data_dir.iterdir() if not path.name.startswith("."))


def test_downloads_checks_and_unpacks(server, tmp_path, capsys):
    folder = find_images(tmp_path / "new", server.archive())
    assert_whole(folder)
    assert left_behind(tmp_path / "new") == [FOLDER]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"Downloading {server.archive().url}, {len(server.content):,} bytes\n"


def test_on_a_terminal_a_bar_shows_the_progress(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    find_images(tmp_path, server.archive())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ARCHIVE in printed.err
    assert "Downloading" not in printed.err


def test_the_second_time_nothing_is_asked(server, tmp_path):
    for _ in range(2):
        find_images(tmp_path, server.archive())
    assert server.asked == [None]


def test_two_launches_at_once_download_once(server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(find_images, [tmp_path] * 2, [server.archive()] * 2))
    assert server.asked == [None]
    assert folders[0] == folders[1]


def test_a_download_that_was_cut_goes_on_where_it_stopped(server, tmp_path):
    server.cut = 20_000
    with pytest.raises(DataError, match="goes on after 20,000 bytes") as error:
        find_images(tmp_path, server.archive())
    assert_one_line(error)
    assert not (tmp_path / FOLDER).exists()
    assert_whole(find_images(tmp_path, server.archive()))
    assert server.asked == [None, "bytes=20000-"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.cut, server.ranges = 20_000, False
    with pytest.raises(DataError):
        find_images(tmp_path, server.archive())
    assert_whole(find_images(tmp_path, server.archive()))


def test_a_whole_download_that_was_not_unpacked_is_not_asked_for_again(server, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(server.content)
    assert_whole(find_images(tmp_path, server.archive()))
    assert server.asked == []


def test_a_part_longer_than_the_archive_starts_again(server, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(server.content + b"more")
    assert_whole(find_images(tmp_path, server.archive()))
    assert server.asked == [None]


def test_a_wrong_checksum_is_told_and_the_download_forgotten(server, tmp_path):
    with pytest.raises(DataError, match=r"its MD5 is [0-9a-f]{32} instead of 0000") as error:
        find_images(tmp_path, server.archive(md5="0000"))
    assert_one_line(error)
    assert left_behind(tmp_path) == []
    assert_whole(find_images(tmp_path, server.archive()))


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_tells_how_to_place_the_archive_by_hand(server, tmp_path, status):
    server.status = status
    with pytest.raises(DataError, match=f"HTTP status {status}") as error:
        find_images(tmp_path, server.archive())
    assert_one_line(error)
    assert f"put {ARCHIVE} or its folder {FOLDER} into {tmp_path}" in str(error.value)
    assert left_behind(tmp_path) == []


def test_without_a_network_it_tells_how_to_place_the_archive_by_hand(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{ARCHIVE}"
    with pytest.raises(DataError, match="cannot be fetched") as error:
        find_images(tmp_path, Archive(url, "", 1))
    assert_one_line(error)
    assert url in str(error.value)
    assert f"put {ARCHIVE} or its folder {FOLDER} into {tmp_path}" in str(error.value)


def test_an_archive_placed_by_hand_is_used_and_kept(server, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(server.content)
    assert_whole(find_images(tmp_path, server.archive()))
    assert server.asked == []
    assert left_behind(tmp_path) == [FOLDER, ARCHIVE]


def test_another_archive_placed_by_hand_is_refused_and_kept(server, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(b"the Python version")
    with pytest.raises(DataError, match=rf"{ARCHIVE}: damaged: its MD5") as error:
        find_images(tmp_path, server.archive())
    assert_one_line(error)
    assert left_behind(tmp_path) == [ARCHIVE]


def test_only_the_expected_files_are_unpacked(server, tmp_path):
    wanted = {f"{FOLDER}/{name}": content for name, content in batch_files().items()}
    server.content = tar_of({"../escaped": b"x", f"{FOLDER}/readme.html": b"x"} | wanted)
    folder = find_images(tmp_path / "data", server.archive())
    assert sorted(path.name for path in folder.iterdir()) == sorted(batch_files())
    assert left_behind(tmp_path) == ["data"]


def test_what_a_killed_launch_unpacked_is_not_used(server, tmp_path):
    (tmp_path / f"{FOLDER}.part" / FOLDER).mkdir(parents=True)
    (tmp_path / f"{FOLDER}.part" / FOLDER / "test_batch.bin").write_bytes(b"half")
    assert_whole(find_images(tmp_path, server.archive()))
    assert left_behind(tmp_path) == [FOLDER]


def test_a_folder_placed_by_hand_is_used(tmp_path):
    folder = place_folder(tmp_path)
    images = load_images(find_images(tmp_path))
    assert images.X.shape == (6 * RECORDS, 3072)
    assert images.X.dtype == np.uint8
    assert images.y.dtype == np.intp
    assert images.classes == NAMES
    last = np.frombuffer((folder / "test_batch.bin").read_bytes(), np.uint8).reshape(RECORDS, 3073)
    assert (images.X[-RECORDS:] == last[:, 1:]).all()
    assert (images.y[-RECORDS:] == last[:, 0]).all()


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    (place_folder(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"{FOLDER}/{name}: missing") as error:
        find_images(tmp_path)
    assert_one_line(error)


@pytest.mark.parametrize("size", [0, RECORDS * 3073 - 1, RECORDS * 3073 + 1])
def test_a_file_of_another_size_is_named(tmp_path, size):
    (place_folder(tmp_path) / "data_batch_3.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"data_batch_3.bin: damaged: {size} bytes instead of 9219") as error:
        find_images(tmp_path)
    assert_one_line(error)


def test_a_label_of_no_class_is_refused_with_its_file(tmp_path):
    batch = place_folder(tmp_path) / "data_batch_2.bin"
    batch.write_bytes(b"\x0a" + batch.read_bytes()[1:])
    with pytest.raises(DataError, match=r"data_batch_2.bin: damaged: label 10 of 10 classes"):
        load_images(tmp_path / FOLDER)


@pytest.mark.cifar10
@pytest.mark.skipif(
    not (Path(os.environ.get("HPO_DATA_DIR", "/nonexistent")) / FOLDER).is_dir(),
    reason=f"no {FOLDER} in $HPO_DATA_DIR",
)
def test_the_real_images_are_6000_of_each_class(monkeypatch):
    monkeypatch.undo()
    images = load_images(Path(os.environ["HPO_DATA_DIR"]) / FOLDER)
    assert images.X.shape == (60_000, 3072)
    assert (np.bincount(images.y) == 6000).all()
    assert (np.bincount(images.y[50_000:]) == 1000).all()
    assert images.classes == NAMES


# Variants.


def test_in_a_mirror_left_and_right_are_exchanged():
    image = np.zeros((3, 32, 32), np.uint8)
    image[1, 5, 0] = 7
    expected = np.zeros((3, 32, 32), np.uint8)
    expected[1, 5, 31] = 7
    assert (mirrored(image.reshape(1, -1)) == expected.reshape(1, -1)).all()


@given(st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_the_mirror_of_a_mirror_is_the_image(n, seed):
    images = np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)
    assert (mirrored(mirrored(images)) == images).all()


def test_a_shifted_image_repeats_its_edge():
    image = np.zeros((3, 32, 32), np.uint8)
    image[2, 10, 20], image[0, 0, 5] = 7, 9
    expected = np.zeros((3, 32, 32), np.uint8)
    expected[2, 12, 19], expected[0, :3, 4] = 7, 9
    assert (shifted(image.reshape(1, -1), 2, -1) == expected.reshape(1, -1)).all()


@given(st.integers(-15, 15), st.integers(-15, 15), st.integers(0, 2**32 - 1))
def test_shifts_and_mirrors(down, right, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, 3072), np.uint8)
    assert (shifted(images, 0, 0) == images).all()
    assert (mirrored(shifted(images, down, right)) == shifted(mirrored(images), down, -right)).all()
    there_and_back = shifted(shifted(images, down, right), -down, -right).reshape(-1, 3, 32, 32)
    assert (there_and_back == images.reshape(-1, 3, 32, 32))[..., 15:17, 15:17].all()
