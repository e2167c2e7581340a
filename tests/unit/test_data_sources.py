"""The contract of data sources for each source."""

import numpy as np
import pytest
from cifar_files import write_folder
from data_files import make_config, npz_config, write_npz

from hpo.data.division.splits import raw_splits
from hpo.data.prepared.cache import prepare
from hpo.data.sources import SOURCES
from hpo.testing.data_sources import DataSourceContract


class TestDigits(DataSourceContract):
    def make_config(self, folder):
        return make_config("digits", pca=0.9)


class TestNpzSource(DataSourceContract):
    def make_config(self, folder):
        write_npz(folder)
        return npz_config(folder)

    def make_changed_config(self, folder):
        write_npz(folder, seed=1)
        return npz_config(folder)


class TestCsvSource(DataSourceContract):
    def make_config(self, folder):
        return self._config_of(folder, "1.0")

    def make_changed_config(self, folder):
        return self._config_of(folder, "1.5")

    def _config_of(self, folder, number):
        rows = "".join(f"{i},class {i % 3},{number}\n" for i in range(50))
        (folder / "own.csv").write_text(f"x,kind,y\n{rows}")
        return make_config("own.csv", folder, label="kind")


class TestCifar10(DataSourceContract):
    @pytest.fixture(autouse=True)
    def _small_batches(self, monkeypatch):
        monkeypatch.setitem(SOURCES, "cifar10", "cifar_files:SmallCifar10")

    def make_config(self, folder):
        write_folder(folder / "data", batch_size=20)
        split = {"train": 60, "validation": 20, "test": 20}
        return make_config("cifar10", split=split, mirror=True, shift=1)

    def make_changed_config(self, folder):
        write_folder(folder / "data", batch_size=20, seed=1)
        return make_config("cifar10")


class TestBlobs(DataSourceContract):
    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch):
        monkeypatch.setitem(SOURCES, ".blobs", "blobs:Blobs")

    def make_config(self, folder):
        return make_config("60.blobs", split={"train": 30, "validation": 20, "test": 10})

    def make_changed_config(self, folder):
        return make_config("70.blobs")

    def test_registered_source_is_prepared_with_its_traits(self, config):
        data = prepare(config)
        assert data.classes.tolist() == ["left", "right"]
        assert (data.folds[0].preprocessor.scale == 1).all()
        # Blobs mark their last ten rows as the official test set.
        assert len(raw_splits(config)["test"][0]) == 10
        mirrored = prepare(config.model_copy(update={"data": config.data.model_copy(update={"mirror": True})}))
        assert len(mirrored.folds[0].train.X) == 60
        assert np.isfinite(mirrored.folds[0].train.X).all()
