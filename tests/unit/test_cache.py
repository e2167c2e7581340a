"""Prepared data: their content, their key and their loading."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from cifar_files import batch_files, write_folder
from damage import damaged
from data_files import error_of, make_config, npz_config, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from hpo.config.study import StudyConfig
from hpo.data.augmentation import ImageShape, mirrored, shifted
from hpo.data.division.splits import EncodedLabels, draw_splits, raw_splits, split_indices
from hpo.data.prepared.cache import PreparedData, load_prepared, prepare, prepare_again
from hpo.data.prepared.folders import data_dir
from hpo.data.prepared.preprocessing import Preprocessor
from hpo.data.sources import SOURCES, Dataset, NpzSource
from hpo.errors import DataError, MissingDataError, StudyFileError

DIGITS = {"dataset": "digits", "split": {"train": 1197, "validation": 300, "test": 300}, "pca": 0.95}
SHAPE = ImageShape(3, 32, 32)
BATCH_SIZE = 20


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))


def prepared_folders():
    return sorted(path.name for path in (data_dir() / "prepared").iterdir() if not path.name.startswith("."))


def assert_same_preprocessor(first, second):
    assert first.arrays().keys() == second.arrays().keys()
    for key, values in first.arrays().items():
        assert values.tobytes() == second.arrays()[key].tobytes()


def test_digits_are_prepared():
    data = prepare(make_config(**DIGITS))
    assert data.name == "digits"
    assert len(data.fingerprint) == 64
    assert data.classes.tolist() == list(range(10))
    assert data.sizes == (1197, 300, 300)
    assert (data.features, data.pca) == (64, 0.95)
    assert 20 < data.components < 40
    for split, size in zip(
        (data.folds[0].train, data.folds[0].validation, data.load_test()[0]), data.sizes, strict=True
    ):
        assert split.features.shape == (size, data.components)
        assert (split.X[:, -1] == 1).all()
        assert (split.X.dtype, split.y.dtype) == (np.float32, np.intp)
        # The splits are stratified.
        assert np.abs(np.bincount(split.y) - size / 10).max() <= 6


def test_all_features_are_kept_without_pca():
    data = prepare(make_config(**DIGITS | {"pca": 0.0}))
    assert data.components is None
    assert data.folds[0].train.features.shape == (1197, 64)


def test_missing_data_table_is_refused():
    config = StudyConfig.model_validate({"study": {"name": "s"}})
    assert error_of(prepare, config, error=StudyFileError) == "study.toml: data: missing"


@pytest.mark.parametrize("call", [prepare, raw_splits])
def test_too_large_split_is_refused(tmp_path, call):
    write_npz(tmp_path)
    config = npz_config(tmp_path, split={"train": 100, "validation": 20, "test": 20})
    message = error_of(call, config, error=StudyFileError)
    assert message.startswith("study.toml: data.split: train = 100, validation = 20, test = 20 rows; at most 120")


@pytest.mark.parametrize("pca", [0.0, 0.9])
def test_preprocessed_raw_rows_equal_prepared_bits(tmp_path, pca):
    write_npz(tmp_path, n=3000)
    config = npz_config(tmp_path, pca=pca)
    data = prepare(config)
    splits = (data.folds[0].train, data.folds[0].validation, data.load_test()[0])
    for (X, labels), split in zip(raw_splits(config).values(), splits, strict=True):
        assert data.folds[0].preprocessor.transform(X).tobytes() == split.features.tobytes()
        assert (data.classes[split.y] == labels).all()


@given(st.integers(0, 1000), st.sampled_from(["feature", "global", "none"]), st.sampled_from([0.0, 0.9]))
@settings(deadline=None, max_examples=10)
def test_preprocessor_depends_on_training_rows_only(seed, scale, pca):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("HPO_DATA_DIR", name)
        X, y = write_npz(folder, seed=seed)
        config = npz_config(folder, seed=seed, scale=scale, pca=pca)
        before = prepare(config)
        indices = split_indices(len(y), before.sizes, seed, groups=y)
        X[np.concatenate([indices.validation, indices.test])] *= 1000
        np.savez(folder / "own.npz", X=X, y=y)
        after = prepare(config)
        assert after.fingerprint != before.fingerprint
        assert after.folds[0].train.X.tobytes() == before.folds[0].train.X.tobytes()
        assert after.folds[0].validation.X.tobytes() != before.folds[0].validation.X.tobytes()
        assert_same_preprocessor(before.folds[0].preprocessor, after.folds[0].preprocessor)


def test_constant_training_rows_are_refused(tmp_path):
    np.savez(tmp_path / "own.npz", X=np.full((60, 3), 0.1), y=np.arange(60) % 2)
    message = error_of(prepare, npz_config(tmp_path))
    assert (
        message
        == "own.npz: every feature is constant in the 42 training rows; nothing can be learned; add features that vary"
    )


@pytest.mark.parametrize("scale", ["feature", "global", "none"])
@pytest.mark.parametrize("size", [1e15, 1e-14])
def test_extreme_features_stay_finite(tmp_path, scale, size):
    X = np.random.default_rng(0).uniform(-size, size, (200, 4))
    np.savez(tmp_path / "own.npz", X=X, y=np.arange(200) % 2)
    data = prepare(npz_config(tmp_path, scale=scale))
    assert np.isfinite(data.folds[0].train.X).all()
    assert data.folds[0].train.features.any()


def test_data_that_change_during_loading_are_refused(tmp_path, monkeypatch):
    write_npz(tmp_path)

    def load_and_change(source):
        dataset = load(source)
        write_npz(tmp_path, seed=1)
        return dataset

    load = NpzSource.load
    monkeypatch.setattr(NpzSource, "load", load_and_change)
    message = error_of(prepare, npz_config(tmp_path))
    assert message == "own.npz: the data changed while they were read; start again"
    assert prepared_folders() == []


def test_preparation_is_announced_once(tmp_path):
    write_npz(tmp_path)
    messages = []
    for _ in range(2):
        prepare(npz_config(tmp_path), messages.append)
    assert messages == ["preparing own.npz: scaling and PCA, once on this machine"]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Write small batches of noise, and return a function that darkens some of the images."""
    monkeypatch.setitem(SOURCES, "cifar10", "cifar_files:SmallCifar10")
    folder = write_folder(tmp_path / "data", BATCH_SIZE)

    def darken(rows):
        batches = {name: content for name, content in batch_files(BATCH_SIZE).items() if name.endswith(".bin")}
        records = np.frombuffer(b"".join(batches.values()), np.uint8).reshape(-1, 3073).copy()
        records[rows, 1:] //= 2
        for i, name in enumerate(batches):
            (folder / name).write_bytes(records[BATCH_SIZE * i : BATCH_SIZE * (i + 1)].tobytes())

    return darken


def images_config(**data):
    split = {"train": 60, "validation": 20, "test": 20}
    return make_config(**{"dataset": "cifar10", "split": split, "pca": 0.9} | data)


@pytest.mark.usefixtures("images")
def test_mirror_images_follow_training_images_only():
    config = images_config(mirror=True)
    data = prepare(config)
    (X, _), (X_validation, _), (X_test, _) = raw_splits(config).values()
    transform = data.folds[0].preprocessor.transform
    assert data.folds[0].train.X[:, :-1].tobytes() == transform(np.vstack([X, mirrored(X, SHAPE)])).tobytes()
    assert data.folds[0].validation.features.tobytes() == transform(X_validation).tobytes()
    assert data.load_test()[0].features.tobytes() == transform(X_test).tobytes()
    assert (data.folds[0].train.X[:, -1] == 1).all()
    assert len(data.folds[0].train.features) == len(data.folds[0].train.y) == data.sizes.train == 60


@pytest.mark.usefixtures("images")
def test_mirror_images_change_components_only():
    config, plain = images_config(mirror=True), images_config()
    assert prepare(config).folder != prepare(plain).folder
    for (X, y), (X_plain, y_plain) in zip(raw_splits(config).values(), raw_splits(plain).values(), strict=True):
        assert (X_plain == X).all()
        assert (y == y_plain).all()
    X, _ = raw_splits(config)["train"]
    expected = Preprocessor.fit(np.vstack([X, mirrored(X, SHAPE)]), "global", 0.9)
    assert_same_preprocessor(expected, prepare(config).folds[0].preprocessor)


def test_mirror_images_depend_on_training_rows_only(images):
    config = images_config(mirror=True)
    before = prepare(config)
    labels = np.frombuffer(b"".join(list(batch_files(BATCH_SIZE).values())[:6]), np.uint8).reshape(-1, 3073)[:, 0]
    train, *others = split_indices(120, before.sizes, 0, 100, labels)
    images(np.concatenate(others))
    after = prepare(config)
    assert after.folds[0].train.X.tobytes() == before.folds[0].train.X.tobytes()
    assert after.folds[0].validation.X.tobytes() != before.folds[0].validation.X.tobytes()
    images(train[:1])
    assert prepare(config).folds[0].train.X.tobytes() != before.folds[0].train.X.tobytes()


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("mirror", [False, True])
def test_shifted_images_are_not_fitted(mirror):
    config = images_config(mirror=mirror, shift=3)
    data, plain = prepare(config), prepare(images_config(mirror=mirror))
    assert_same_preprocessor(plain.folds[0].preprocessor, data.folds[0].preprocessor)
    X, _ = raw_splits(config)["train"]
    X = np.vstack([X, mirrored(X, SHAPE)]) if mirror else X
    copies = [shifted(X, SHAPE, *by) for by in ((3, 0), (-3, 0), (0, 3), (0, -3))]
    assert data.folds[0].train.X[: len(X)].tobytes() == plain.folds[0].train.X.tobytes()
    transformed = np.vstack([data.folds[0].preprocessor.transform(rows) for rows in copies])
    assert data.folds[0].train.X[len(X) :, :-1].tobytes() == transformed.tobytes()
    assert (data.folds[0].train.X[:, -1] == 1).all()
    assert data.folds[0].validation.X.tobytes() == plain.folds[0].validation.X.tobytes()


def test_unused_augmentation_is_not_in_key():
    assert not {"mirror", "shift"} & images_config().data.model_dump(mode="json").keys()
    used = images_config(mirror=True, shift=1).data.model_dump(mode="json")
    assert used.items() >= {"mirror": True, "shift": 1}.items()


def test_second_preparation_computes_nothing(tmp_path, monkeypatch):
    write_npz(tmp_path)
    folder = prepare(npz_config(tmp_path)).folder
    monkeypatch.delattr(Preprocessor, "fit")
    other_name = npz_config(tmp_path).study.model_copy(update={"name": "other"})
    assert prepare(npz_config(tmp_path).model_copy(update={"study": other_name})).folder == folder
    (tmp_path / "moved").mkdir()
    (tmp_path / "own.npz").rename(tmp_path / "moved" / "own.npz")
    assert prepare(npz_config(tmp_path / "moved")).folder == folder


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"pca": 0.8}, {"scale": "global"}, {"split": {"train": 60, "validation": 20, "test": 20}}],
)
def test_other_settings_have_another_folder(tmp_path, change):
    write_npz(tmp_path)
    assert prepare(npz_config(tmp_path)).folder != prepare(npz_config(tmp_path, **change)).folder


def test_metric_of_another_task_has_another_folder(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", X=rng.normal(size=(120, 3)), y=rng.integers(0, 5, 120))
    config = npz_config(tmp_path)
    for metric, task in (("accuracy", "classification"), ("rmse", "regression"), (None, "classification")):
        study = config.study.model_copy(update={"metric": metric})
        assert prepare(config.model_copy(update={"study": study})).task.name == task


def test_named_default_scale_shares_folder(tmp_path):
    config = make_config("digits", tmp_path)
    assert prepare(config).folder == prepare(make_config("digits", tmp_path, scale="global")).folder
    assert prepare(config).folder != prepare(make_config("digits", tmp_path, scale="none")).folder


def test_columns_are_scaled_separately_by_default(tmp_path):
    write_npz(tmp_path)
    chosen, named = prepare(npz_config(tmp_path)), prepare(npz_config(tmp_path, scale="feature"))
    assert (chosen.folds[0].train.X == named.folds[0].train.X).all()
    assert (chosen.fingerprint, chosen.notes) == (named.fingerprint, named.notes)


def test_pixels_are_scaled_together_by_default(tmp_path):
    digits = load_digits()
    np.savez(tmp_path / "own.npz", X=digits.images, y=digits.target)
    chosen, *others = (
        prepare(npz_config(tmp_path, pca=0.0, **scale)) for scale in ({}, {"scale": "global"}, {"scale": "feature"})
    )
    same = [(chosen.folds[0].train.X == other.folds[0].train.X).all() for other in others]
    assert same == [True, False]
    # A study of an earlier version has the arrays of "feature", so that its fingerprint has to differ.
    assert chosen.fingerprint == f"{others[0].fingerprint}:pixels are scaled together"
    assert len({other.fingerprint for other in others}) == 1
    (note,) = set(chosen.notes) - set(others[0].notes)
    assert "64 columns" in note


def test_loaded_arrays_are_mapped_and_read_only(tmp_path):
    write_npz(tmp_path)
    data = prepare(npz_config(tmp_path))
    for array in (*data.folds[0].train, *data.folds[0].validation):
        assert type(array) is np.ndarray
        assert isinstance(array.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_loading_leaves_test_split_alone(tmp_path):
    write_npz(tmp_path)
    folder = prepare(npz_config(tmp_path)).folder
    (folder / "test_X.npy").unlink()
    data = load_prepared(folder)
    assert isinstance(data, PreparedData)
    assert error_of(data.load_test).endswith("test_X.npy: No such file or directory")


def test_missing_prepared_folder_is_refused(tmp_path):
    (tmp_path / "prepared").mkdir()
    assert error_of(load_prepared, tmp_path / "prepared" / "none").endswith("none: No such file or directory")


def test_prepared_folders_belong_to_user(tmp_path):
    write_npz(tmp_path)
    before = os.umask(0)
    try:
        folder = prepare(npz_config(tmp_path)).folder
    finally:
        os.umask(before)
    for path in (folder, folder.parent):
        assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702])
@pytest.mark.parametrize("parent", [False, True])
def test_folder_that_others_can_write_is_refused(tmp_path, mode, parent):
    write_npz(tmp_path)
    data = prepare(npz_config(tmp_path))
    path = data.folder.parent if parent else data.folder
    path.chmod(mode)
    refusal = f"{path}: not loaded, because other users can write into it; "
    assert error_of(load_prepared, data.folder).startswith(refusal)
    assert error_of(data.load_test).startswith(refusal)
    assert error_of(prepare, npz_config(tmp_path)).startswith(refusal)


def test_folder_of_other_user_is_refused(tmp_path, monkeypatch):
    write_npz(tmp_path)
    folder = prepare(npz_config(tmp_path)).folder
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "not loaded, because another user owns it" in error_of(load_prepared, folder)


def test_folder_of_root_is_loaded(tmp_path, monkeypatch):
    write_npz(tmp_path)
    folder = prepare(npz_config(tmp_path)).folder
    if folder.stat().st_uid != 0:
        pytest.skip("only root can create a folder that root owns")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    load_prepared(folder)


def test_data_folder_follows_environment(tmp_path, monkeypatch):
    assert data_dir() == tmp_path / "data"
    monkeypatch.setenv("HPO_DATA_DIR", "~/data")
    assert data_dir() == Path.home() / "data"
    monkeypatch.setenv("HPO_DATA_DIR", "")
    assert data_dir() == platformdirs.user_cache_path("hpo")
    monkeypatch.delenv("HPO_DATA_DIR")
    assert data_dir() == platformdirs.user_cache_path("hpo")


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_impossible_data_folder_is_refused(tmp_path, monkeypatch, dataset):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "file" / "data"))
    config = make_config(dataset, split={"train": 1000, "validation": 100, "test": 100})
    assert error_of(prepare, config).startswith(f"{tmp_path / 'file'}")


def test_full_disk_is_reported_and_left_clean(tmp_path, monkeypatch):
    write_npz(tmp_path)

    def full(file, array, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np.lib.format, "write_array", full)
    assert error_of(prepare, npz_config(tmp_path)) == f"{data_dir()}: No space left on device"
    assert prepared_folders() == []


def test_removed_file_is_reported(tmp_path):
    write_npz(tmp_path)
    config = npz_config(tmp_path)
    (tmp_path / "own.npz").unlink()
    assert "no file" in error_of(prepare, config)
    assert "no file" in error_of(raw_splits, config)


class Trap:
    """Object that fails the test if it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize("name", ["classes", "mean", "train_X", "validation_y"])
def test_pickle_in_prepared_folder_is_not_loaded(tmp_path, name):
    write_npz(tmp_path)
    folder = prepare(npz_config(tmp_path)).folder
    np.save(folder / f"{name}.npy", np.array([Trap()], object), allow_pickle=True)
    message = error_of(prepare, npz_config(tmp_path))
    assert message.startswith(f"{folder}: the prepared data are damaged; remove this folder")


def test_replaced_parent_folder_is_noticed_by_owner_of_file(tmp_path, monkeypatch):
    write_npz(tmp_path)
    data = prepare(npz_config(tmp_path))
    if os.geteuid() == 0:
        os.chown(data.folder / "train_X.npy", 12345, -1)
    else:
        pytest.skip("only root can change the owner of a file")
    # The folders are checked before the file, and can be replaced in between.
    assert "train_X.npy: not loaded, because another user owns it" in error_of(load_prepared, data.folder)


@pytest.mark.parametrize("name", ["about.json", "classes.npy", "train_X.npy", "train_y.npy", "test_X.npy"])
def test_removed_file_is_prepared_again(tmp_path, name):
    write_npz(tmp_path)
    config = npz_config(tmp_path)
    data = prepare(config)
    before = {path.name: path.read_bytes() for path in data.folder.iterdir()}
    (data.folder / name).unlink()
    again = prepare_again(config, data.folder, data.fingerprint)
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == before
    # Processes that have mapped the old files continue.
    assert data.folds[0].train.X.tobytes() == again.folds[0].train.X.tobytes()


def test_removed_data_and_prepared_data_are_one_error(tmp_path):
    write_npz(tmp_path)
    config = npz_config(tmp_path)
    data = prepare(config)
    shutil.rmtree(data.folder)
    (tmp_path / "own.npz").unlink()
    message = error_of(prepare_again, config, data.folder, data.fingerprint, error=MissingDataError)
    assert message.startswith(f"{data.folder}: the prepared data were removed, and they cannot be prepared again: ")
    assert message.endswith("; put the data back")


def test_removed_prepared_data_and_changed_data_are_one_error(tmp_path):
    write_npz(tmp_path)
    config = npz_config(tmp_path)
    data = prepare(config)
    shutil.rmtree(data.folder)
    write_npz(tmp_path, seed=1)
    assert "own.npz has changed" in error_of(prepare_again, config, data.folder, data.fingerprint)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_damaged_prepared_folder_is_an_error_or_harmless(data):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPO_DATA_DIR", name)
        write_npz(Path(name), n=30)
        folder = prepare(npz_config(Path(name))).folder
        path = data.draw(st.sampled_from(sorted(folder.iterdir())))
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        try:
            load_prepared(folder).load_test()
        except DataError as error:
            assert "remove this folder" in str(error) or "not a regular file" in str(error)


def test_each_fold_is_prepared_from_its_own_training_rows(tmp_path):
    X, y = write_npz(tmp_path)
    config = npz_config(tmp_path, folds=3, repeats=2)
    data = prepare(config)
    indices = draw_splits(config, Dataset("own.npz", X, y), EncodedLabels(data.task, y, data.classes)).folds
    assert len(data.folds) == 6
    for fold, test, rows in zip(data.folds, data.load_test(), indices, strict=True):
        expected = Preprocessor.fit(X[rows.train], "feature", 0.9)
        assert_same_preprocessor(fold.preprocessor, expected)
        for split, chosen in ((fold.train, rows.train), (fold.validation, rows.validation), (test, rows.test)):
            assert split.features.tobytes() == expected.transform(X[chosen]).tobytes()
            assert (split.y == y[chosen]).all()


def test_lost_file_of_later_fold_is_prepared_again(tmp_path):
    write_npz(tmp_path)
    config = npz_config(tmp_path, folds=3)
    lost = prepare(config).folder / "fold2.validation_X.npy"
    lost.unlink()
    assert len(prepare(config).folds) == 3
    assert lost.exists()


def test_raw_splits_are_those_of_first_fold(tmp_path):
    write_npz(tmp_path)
    config = npz_config(tmp_path, folds=3)
    fold = prepare(config).folds[0]
    X, _ = raw_splits(config)["validation"]
    assert fold.preprocessor.transform(X).tobytes() == fold.validation.features.tobytes()


def test_refit_data_join_all_rows_but_test_rows(tmp_path):
    write_npz(tmp_path)
    config = npz_config(tmp_path)
    plain, joined = prepare(config), prepare(config, refit=True)
    (fold,), (test,) = joined.folds, joined.load_test()
    assert joined.folder != plain.folder
    assert joined.sizes == (plain.sizes.train + plain.sizes.validation, 0, plain.sizes.test)
    splits = raw_splits(config)
    X = fold.preprocessor.transform(np.vstack([splits["train"][0], splits["validation"][0]]))
    assert sorted(map(tuple, X.tolist())) == sorted(map(tuple, fold.train.features.tolist()))
    assert test.y.tolist() == plain.load_test()[0].y.tolist()
    assert prepare(config, refit=True).folder == joined.folder
