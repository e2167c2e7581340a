"""The 60,000 images of CIFAR-10 in the official binary layout (no pickle), downloaded where missing."""

import hashlib
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from hpo.errors import DataError

FOLDER = "cifar-10-batches-bin"
BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CLASS_NAMES = "batches.meta.txt"
RECORDS = 10_000  # in each batch: a byte of label, then the red, green and blue planes of 32 x 32 pixels
PIXELS = 3 * 32 * 32

_CONNECT_TIMEOUT = 10.0  # seconds
_READ_TIMEOUT = 30.0  # seconds


class Archive(NamedTuple):
    """Where the archive comes from, and how it is known to be the right one."""

    url: str
    md5: str
    size: int

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


OFFICIAL = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171
)


class Images(NamedTuple):
    """Pixels uint8 (n, 3072), labels intp (n,) and the names of the classes; the test batch comes last."""

    X: NDArray[np.uint8]
    y: NDArray[np.intp]
    classes: list[str]


def find_images(data_dir: Path, archive: Archive = OFFICIAL) -> Path:
    """The folder of the images under ``data_dir``, downloaded and unpacked first where it is missing.

    Raises:
        DataError: the images cannot be fetched, or those that are there are damaged.
        OSError: the data folder cannot be read or written.
    """
    folder = data_dir / FOLDER
    if not folder.is_dir():
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / ".cifar-10.lock"):
            if not folder.is_dir():
                _place(folder, archive)
    _check_files(folder)
    return folder


def load_images(folder: Path) -> Images:
    """All the images of the folder, in the order of ``BATCHES``.

    Raises:
        DataError: a file is missing or damaged.
        OSError: a file cannot be read.
    """
    _check_files(folder)
    records = np.empty((len(BATCHES) * RECORDS, 1 + PIXELS), np.uint8)
    for i, name in enumerate(BATCHES):
        records[i * RECORDS : (i + 1) * RECORDS] = np.fromfile(folder / name, np.uint8).reshape(RECORDS, -1)
    y = records[:, 0].astype(np.intp)
    classes = (folder / CLASS_NAMES).read_text(encoding="ascii").split()
    if y.max() >= len(classes):
        damaged = BATCHES[int(y.argmax()) // RECORDS]
        raise DataError(f"{folder / damaged}: damaged: label {y.max()} of {len(classes)} classes; {_AGAIN}")
    return Images(records[:, 1:], y, classes)


def mirrored(X: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (n, 3072) with left and right exchanged."""
    return X.reshape(-1, 3, 32, 32)[..., ::-1].reshape(X.shape)


def shifted(X: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """Images (n, 3072) moved by so many pixels; what comes in repeats the pixels at the edge."""
    rows, columns = (np.clip(np.arange(32) - pixels, 0, 31) for pixels in (down, right))
    return X.reshape(-1, 3, 32, 32)[..., rows[:, np.newaxis], columns].reshape(X.shape)


_AGAIN = "remove the folder, and the next launch makes it again"


def _check_files(folder: Path) -> None:
    sizes = dict.fromkeys(BATCHES, RECORDS * (1 + PIXELS))
    for name in (*BATCHES, CLASS_NAMES):
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing; {_AGAIN}")
        if (size := path.stat().st_size) != sizes.get(name, size):
            raise DataError(f"{path}: damaged: {size} bytes instead of {sizes[name]}; {_AGAIN}")


def _place(folder: Path, archive: Archive) -> None:
    """Unpack the archive that lies beside the folder's place, or else is downloaded to there."""
    by_hand = folder.with_name(archive.name)
    if by_hand.is_file():
        _check_sum(by_hand, archive)
        _unpack(by_hand, folder)
        return
    part = folder.with_name(f"{archive.name}.part")
    _download(archive, part)
    try:
        _check_sum(part, archive)
    except DataError:
        part.unlink()
        raise
    _unpack(part, folder)
    part.unlink()


def _check_sum(path: Path, archive: Archive) -> None:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != archive.md5:
        raise DataError(f"{path}: damaged: its MD5 is {md5} instead of {archive.md5}; download {archive.url} again")


def _unpack(path: Path, folder: Path) -> None:
    """Whole or not at all: the folder appears under its name when every file is in it."""
    partial = folder.with_name(f"{folder.name}.part")
    try:
        with tarfile.open(path, "r:gz") as tar:
            wanted = {f"{FOLDER}/{name}" for name in (*BATCHES, CLASS_NAMES)}
            tar.extractall(partial, [member for member in tar if member.name in wanted], filter="data")
        _check_files(partial / FOLDER)
        (partial / FOLDER).rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(archive: Archive, part: Path) -> None:
    """Fetch what ``part`` lacks of the archive."""
    import httpx  # workers load prepared data without it

    try:
        _fetch(archive, part)
    except httpx.HTTPStatusError as error:
        raise _not_fetched(archive, part, f"HTTP status {error.response.status_code}") from None
    except httpx.HTTPError as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise _not_fetched(archive, part, reason) from None


def _not_fetched(archive: Archive, part: Path, reason: str) -> DataError:
    kept = f"; the same command goes on after {part.stat().st_size:,} bytes" if part.is_file() else ""
    return DataError(
        f"no CIFAR-10 in {part.parent}, and {archive.url} cannot be fetched ({reason}){kept}; download it "
        f"elsewhere and put {archive.name} or its folder {FOLDER} into {part.parent}"
    )


def _fetch(archive: Archive, part: Path) -> None:
    import httpx

    have = part.stat().st_size if part.is_file() else 0
    if have == archive.size:
        return
    # Without "identity" a server may compress the archive once more, and ranges would count other bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if 0 < have < archive.size else {})
    timeout = httpx.Timeout(_READ_TIMEOUT, connect=_CONNECT_TIMEOUT)
    with httpx.stream("GET", archive.url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        with (
            part.open("ab" if resumed else "wb") as file,
            _progress(archive, have if resumed else 0) as advance,
        ):
            for chunk in response.iter_raw():
                file.write(chunk)
                advance(len(chunk))


@contextmanager
def _progress(archive: Archive, done: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where that is a terminal, else one line; yields what counts bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"Downloading {archive.url}, {archive.size - done:,} bytes", soft_wrap=True, highlight=False)
        yield lambda _: None
        return
    with Progress("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(archive.name, total=archive.size, completed=done)
        yield lambda size: bar.advance(task, size)
