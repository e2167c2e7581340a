"""Data source for tests, as a user would add it: clusters of points around two centres."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hpo.config.study import StudyConfig
from hpo.data.augmentation import ImageShape
from hpo.data.prepared.preprocessing import Scale
from hpo.data.sources import Dataset

SUFFIX = ".blobs"


@dataclass(frozen=True)
class Blobs:
    """Points around two centres. The number of points is in the name of the data set, as in ``60.blobs``."""

    default_scale: ClassVar[Scale] = "none"
    image_shape: ClassVar[ImageShape | None] = ImageShape(1, 1, 2)
    has_columns: ClassVar[bool] = False

    n_rows: int
    name: str = "blobs"

    @classmethod
    def from_config(cls, config: StudyConfig) -> Self:
        assert config.data is not None
        return cls(int(config.data.dataset.removesuffix(SUFFIX)))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.load().X.tobytes()).hexdigest()

    def load(self) -> Dataset:
        y = np.arange(self.n_rows) % 2
        X = np.random.default_rng(0).normal(size=(self.n_rows, 2)) + 5 * y[:, np.newaxis]
        return Dataset(self.name, X, np.array(["left", "right"])[y], test_from=self.n_rows - 10)
