"""Files in the format of CIFAR-10 that hold noise."""

import io
import tarfile
from dataclasses import dataclass

import numpy as np

from hpo.data.cifar10 import BATCHES, CLASS_NAMES, FOLDER, Cifar10

ARCHIVE = "cifar-10-binary.tar.gz"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch_files(batch_size, seed=0):
    """Return the content of each file by its name."""
    rng = np.random.default_rng(seed)
    files = {}
    for name in BATCHES:
        records = rng.integers(0, 256, (batch_size, 3073), np.uint8)
        records[:, 0] %= 10
        files[name] = records.tobytes()
    return files | {CLASS_NAMES: ("\n".join(CLASSES) + "\n\n").encode()}


def write_folder(data_dir, batch_size, seed=0):
    """Write the folder of the images."""
    (data_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, content in batch_files(batch_size, seed).items():
        (data_dir / FOLDER / name).write_bytes(content)
    return data_dir / FOLDER


def tar_of(files):
    """Return a compressed archive of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@dataclass(frozen=True)
class SmallCifar10(Cifar10):
    """CIFAR-10 with 20 images in each file."""

    batch_size: int = 20
