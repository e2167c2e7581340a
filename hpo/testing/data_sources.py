"""Contract of a data source, as tests that an implementation inherits."""

import re
from pathlib import Path

import numpy as np
import pytest

from hpo.config.study import StudyConfig
from hpo.data.division.splits import raw_splits
from hpo.data.prepared.cache import prepare
from hpo.data.sources import DataSource, find_source

_SPLITS = ("train", "validation", "test")


class DataSourceContract:
    """Tests of the protocol ``DataSource``. A subclass provides ``make_config``.

    The study finds the source in ``hpo.data.sources.SOURCES``, so the subclass adds a new source to it first.
    """

    def make_config(self, folder: Path) -> StudyConfig:
        """Return a study of the source, after writing its files into an empty folder."""
        raise NotImplementedError

    def make_changed_config(self, folder: Path) -> StudyConfig | None:
        """Return a study of other content of the source, or None if the content cannot change."""
        return None

    @pytest.fixture
    def config(self, tmp_path: Path) -> StudyConfig:
        """Return the study of a test."""
        return self.make_config(tmp_path)

    @pytest.fixture(autouse=True)
    def _own_data_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))

    @pytest.fixture
    def source(self, config: StudyConfig) -> DataSource:
        """Return the source of the study of a test."""
        return find_source(config)

    def test_name_is_one_printable_line(self, source: DataSource) -> None:
        """Check the name, which is part of messages and results."""
        assert source.name
        assert source.name.isprintable()

    def test_fingerprint_is_repeatable_sha256(self, config: StudyConfig, source: DataSource) -> None:
        """Check that two objects return the same SHA-256."""
        assert re.fullmatch("[0-9a-f]{64}", source.fingerprint())
        assert find_source(config).fingerprint() == source.fingerprint()

    def test_fingerprint_changes_with_content(self, source: DataSource, tmp_path: Path) -> None:
        """Check that a study cannot continue with other data."""
        before = source.fingerprint()
        changed = self.make_changed_config(tmp_path)
        if changed is None:
            pytest.skip("the content of this source cannot change")
        assert find_source(changed).fingerprint() != before

    def test_load_returns_finite_rows_with_labels(self, source: DataSource) -> None:
        """Check types and shapes of features and labels."""
        dataset = source.load()
        assert dataset.name == source.name
        assert dataset.X.ndim == 2
        assert dataset.X.size > 0
        assert dataset.X.dtype.kind in "biuf"
        assert np.isfinite(dataset.X).all()
        assert dataset.labels.shape == (len(dataset.X),)
        assert len(np.unique(dataset.labels)) > 1
        assert dataset.test_from is None or 0 < dataset.test_from < len(dataset.X)

    def test_load_is_repeatable(self, config: StudyConfig, source: DataSource) -> None:
        """Check that two objects load the same rows in the same order."""
        first, second = source.load(), find_source(config).load()
        assert first.X.dtype == second.X.dtype
        assert first.X.tobytes() == second.X.tobytes()
        assert (first.labels == second.labels).all()

    def test_image_shape_covers_each_row(self, source: DataSource) -> None:
        """Check that a row holds the pixels of one image, if augmentation is possible."""
        if source.image_shape is not None:
            assert source.load().X.shape[1] == np.prod(source.image_shape)

    def test_preparation_matches_raw_rows(self, config: StudyConfig) -> None:
        """Check that preprocessing the raw splits gives the prepared splits."""
        data = prepare(config)
        (fold,), (test,) = data.folds, data.load_test()
        prepared = dict(zip(_SPLITS, (fold.train, fold.validation, test), strict=True))
        for name, (X, labels) in raw_splits(config).items():
            assert len(X) == getattr(data.sizes, name)
            assert fold.preprocessor.transform(X).tobytes() == prepared[name].features.tobytes()
            assert (data.classes[prepared[name].y] == labels).all()
            assert (prepared[name].X[:, -1] == 1).all()

    def test_second_preparation_uses_prepared_folder(self, config: StudyConfig) -> None:
        """Check that the key of the prepared folder is repeatable."""
        assert prepare(config).folder == prepare(config).folder
