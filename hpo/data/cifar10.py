"""The 60,000 images of CIFAR-10 in the official binary format, downloaded if they are missing."""

import hashlib
import logging
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np
from filelock import FileLock

from hpo.config.study import StudyConfig
from hpo.data.augmentation import ImageShape
from hpo.data.prepared.folders import atomic_folder, data_dir
from hpo.data.prepared.scaling import NamedScale
from hpo.data.sources import Dataset, sha256_of_files
from hpo.errors import DataError, MissingDataError

if TYPE_CHECKING:
    from requests import RequestException

FOLDER = "cifar-10-batches-bin"
# The last batch is the official test set.
BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CLASS_NAMES = "batches.meta.txt"
BATCH_SIZE = 10_000
SHAPE = ImageShape(channels=3, height=32, width=32)

# One byte for the label, then the red, green and blue pixels.
_RECORD_BYTES = 1 + SHAPE.channels * SHAPE.height * SHAPE.width
_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 16
_READABLE_BY_ALL = 0o755
_REPAIR = "remove the folder, and start again to create it"

_LOGGER = logging.getLogger(__name__)


class Archive(NamedTuple):
    """URL and checksum of the archive."""

    url: str
    md5: str
    size_bytes: int

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rpartition("/")[2]


OFFICIAL_ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171
)


@dataclass(frozen=True)
class Cifar10:
    """The 60,000 photographs of 32 x 32 pixels in three colours. The last 10,000 are the official test set.

    Attributes:
        data_dir: The folder that has the folder of the images, or gets it.
        archive: The archive to download if the images are missing.
        batch_size: The number of images in each file.
        name: The name of the data set.
    """

    default_scale: ClassVar[NamedScale] = "global"
    image_shape: ClassVar[ImageShape | None] = SHAPE
    has_columns: ClassVar[bool] = False

    data_dir: Path
    archive: Archive = OFFICIAL_ARCHIVE
    batch_size: int = BATCH_SIZE
    name: str = "cifar10"

    @classmethod
    def from_config(cls, config: StudyConfig) -> Self:
        """Return the images in the data folder."""
        del config
        return cls(data_dir())

    def fingerprint(self) -> str:
        """Return the SHA-256 of the images and labels."""
        folder = self.find_images()
        return sha256_of_files(folder / name for name in BATCHES)

    def load(self) -> Dataset:
        """Load all images.

        Raises:
            DataError: if the images cannot be downloaded, or if a file is missing or damaged.
        """
        folder = self.find_images()
        records = np.empty((len(BATCHES) * self.batch_size, _RECORD_BYTES), np.uint8)
        for name, batch in zip(BATCHES, np.split(records, len(BATCHES)), strict=True):
            batch[:] = np.fromfile(folder / name, np.uint8).reshape(batch.shape)
        classes = np.array((folder / CLASS_NAMES).read_text(encoding="ascii").split())
        y = records[:, 0]
        if y.max() >= len(classes):
            damaged = folder / BATCHES[int(y.argmax()) // self.batch_size]
            raise DataError(f"{damaged}: damaged: label {y.max()} of {len(classes)} classes; {_REPAIR}")
        return Dataset(self.name, records[:, 1:], classes[y], test_from=len(records) - self.batch_size)

    def find_images(self) -> Path:
        """Return the folder of the images, and download the images first if it is missing.

        Raises:
            DataError: if the images cannot be downloaded, or if a file is missing or damaged.
            OSError: if the data folder cannot be read or written.
        """
        folder = self.data_dir / FOLDER
        if not folder.is_dir():
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(self.data_dir / ".cifar-10.lock"):
                if not folder.is_dir():
                    self._create(folder)
        self._check_files(folder)
        return folder

    def _create(self, folder: Path) -> None:
        """Unpack the archive that the user has put into the data folder, or else the downloaded archive."""
        given = self.data_dir / self.archive.name
        with atomic_folder(folder, _READABLE_BY_ALL) as partial:
            if given.is_file():
                _check_md5(given, self.archive)
                _unpack(given, partial)
            else:
                downloaded = _download(self.archive, partial)
                _unpack(downloaded, partial)
                downloaded.unlink()
            self._check_files(partial)

    def _check_files(self, folder: Path) -> None:
        sizes = dict.fromkeys(BATCHES, self.batch_size * _RECORD_BYTES)
        for name in (*BATCHES, CLASS_NAMES):
            path = folder / name
            if not path.is_file():
                raise DataError(f"{path}: missing; {_REPAIR}")
            if (size := path.stat().st_size) != sizes.get(name, size):
                raise DataError(f"{path}: damaged: {size} bytes instead of {sizes[name]}; {_REPAIR}")


def _check_md5(path: Path, archive: Archive) -> None:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != archive.md5:
        raise DataError(f"{path}: damaged: its MD5 is {md5} instead of {archive.md5}; download {archive.url} again")


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the expected files of the archive directly into the folder."""
    with tarfile.open(path, "r:gz") as tar:
        for name in (*BATCHES, CLASS_NAMES):
            member = tar.getmember(f"{FOLDER}/{name}").replace(name=name, deep=False)
            tar.extract(member, folder, filter="data")


def _download(archive: Archive, folder: Path) -> Path:
    """Download the archive into the folder and check its MD5.

    Raises:
        DataError: if the server cannot be reached, refuses the request or sends other content.
    """
    # Workers load prepared data without pooch and requests.
    import pooch
    from requests import RequestException

    # The only message of pooch would repeat the message below.
    pooch.get_logger().setLevel(logging.WARNING)
    _LOGGER.info("downloading %s, %s bytes", archive.url, f"{archive.size_bytes:,}")
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr is not None and sys.stderr.isatty(),
        chunk_size=_CHUNK_BYTES,
        timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
        # A server may otherwise compress the archive again, and requests would decompress it.
        headers={"Accept-Encoding": "identity"},
    )
    try:
        path = pooch.retrieve(archive.url, f"md5:{archive.md5}", archive.name, folder, downloader=downloader)
    except RequestException as error:
        if error.response is not None:
            # pooch leaves the connection of a refused request open.
            error.response.close()
        raise _download_error(archive, folder, _reason(error)) from None
    except ValueError:
        # pooch raises it for another checksum.
        raise _download_error(archive, folder, f"its MD5 is not {archive.md5}") from None
    return Path(path)


def _download_error(archive: Archive, folder: Path, reason: str) -> MissingDataError:
    data_folder = folder.parent
    return MissingDataError(
        f"no CIFAR-10 in {data_folder}, and the download of {archive.url} failed ({reason}); start again, or download "
        f"it on another machine and put {archive.name} or its folder {FOLDER} into {data_folder}"
    )


def _reason(error: "RequestException") -> str:
    """Return the cause of a failed request in one line."""
    if error.response is not None:
        return f"HTTP status {error.response.status_code}"
    cause: BaseException | None = error
    while cause is not None:
        # The error of the operating system is at the end of the chain and is shorter than the errors that wrap it.
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split()) or type(error).__name__
