"""Splits drawn, prepared once a machine, and loaded without the test split."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hpo.data.cache
from hpo.config.study import Split, StudyConfig
from hpo.data import cifar10
from hpo.data.cache import (
    PreparedData,
    Sizes,
    data_dir,
    load_prepared,
    load_test,
    prepare,
    raw_split,
    split_indices,
    split_sizes,
)
from hpo.data.cifar10 import FOLDER
from hpo.data.preprocessing import fit_preprocessor
from hpo.errors import DataError, StudyFileError

STUDY = Path("study.toml")
DIGITS = {"dataset": "digits", "split": {"train": 1197, "validation": 300, "test": 300}, "pca": 0.95}
REAL_IMAGES = Path(os.environ.get("HPO_DATA_DIR", "/nonexistent")) / FOLDER
PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def folder_of_data(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))


def study(name="a", seed=0, **data):
    space = {key: {"low": 1, "high": 2} for key in ("learning_rate", "regularization", "hidden_size", "epochs")}
    return StudyConfig.model_validate({"study": {"name": name, "seed": seed}, "data": data, "space": space})


def own_data(folder, n=120, d=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, d)) * np.arange(1, d + 1), rng.integers(0, classes, n)
    np.savez(folder / "own.npz", X=X, y=y)
    return X, y


def own_study(folder, **keys):
    return study(**{"dataset": str(folder / "own.npz"), "pca": 0.9} | keys)


def refused(call, *args, error=DataError):
    """The message of the refusal, which is one line."""
    with pytest.raises(error) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prepared_folders():
    return sorted(path.name for path in (data_dir() / "prepared").iterdir() if not path.name.startswith("."))


# Splits.


@st.composite
def drawn(draw):
    """Labels, sizes, seed and the first official test row of a split that fits; classes may be too small."""
    n = draw(st.integers(3, 60))
    y = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.intp)
    test_from = draw(st.none() | st.integers(2, n - 1))
    test = draw(st.integers(1, n - (test_from or 2)))
    validation = draw(st.integers(1, (test_from or n - test) - 1))
    train = draw(st.integers(1, (test_from or n - test) - validation))
    return y, Sizes(train, validation, test), draw(st.integers(0, 2**32 - 1)), test_from


@given(drawn())
@settings(deadline=None)
def test_splits_are_disjoint_of_the_asked_sizes_and_the_same_again(case):
    y, sizes, seed, test_from = case
    indices = split_indices(y, sizes, seed, test_from)
    assert Sizes(*map(len, indices)) == sizes
    rows = np.concatenate(indices)
    assert len(set(rows.tolist())) == sum(sizes)
    assert rows.min() >= 0
    assert rows.max() < len(y)
    for ours, again in zip(indices, split_indices(y, sizes, seed, test_from), strict=True):
        assert (ours == again).all()


@given(drawn().filter(lambda case: case[3] is not None))
@settings(deadline=None)
def test_an_official_test_set_is_where_the_test_split_comes_from_and_no_other(case):
    y, sizes, seed, test_from = case
    train, validation, test = split_indices(y, sizes, seed, test_from)
    assert test.min() >= test_from
    assert max(train.max(), validation.max()) < test_from


@given(
    st.lists(st.integers(12, 40), min_size=2, max_size=4),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
@settings(deadline=None)
def test_each_class_has_its_share_of_each_split(counts, seed, all_rows):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(y)
    sizes = Sizes(n - 2 * (n // 4), n // 4, n // 4) if all_rows else Sizes(n // 2, n // 6, n // 6)
    indices = split_indices(y, sizes, seed)
    shares = np.array(counts) / n
    # Each split is drawn from what the one before left, so the rounding adds up.
    for rounding, part in enumerate((indices.test, indices.validation, indices.train), start=1):
        drawn_counts = np.bincount(y[part], minlength=len(counts))
        assert np.abs(drawn_counts - shares * len(part)).max() <= rounding


def test_another_seed_is_another_split():
    y = np.arange(100) % 2
    sizes = Sizes(60, 20, 20)
    for one, other in zip(split_indices(y, sizes, 0), split_indices(y, sizes, 1), strict=True):
        assert (one != other).any()


def test_the_test_split_stays_when_validation_rows_become_training_rows():
    y = np.arange(100) % 3
    before = split_indices(y, Sizes(60, 20, 20), 0).test
    assert (split_indices(y, Sizes(70, 10, 20), 0).test == before).all()


@given(
    st.integers(20, 10_000),
    st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.5, 0.2, 0.1)]),
)
def test_fractions_are_of_all_rows(n, fractions):
    sizes = split_sizes(Split(**dict(zip(PARTS, fractions, strict=True))), n, None, STUDY)
    assert np.abs(np.array(sizes) - np.array(fractions) * n).max() <= 1
    assert sum(sizes) <= n
    if sum(fractions) == pytest.approx(1):
        assert sum(sizes) == n


@pytest.mark.parametrize(
    ("split", "test_from", "message"),
    [
        (Split(train=80, validation=11, test=10), None, "; at most 100 together are allowed"),
        (Split(train=80, validation=1, test=1), 80, "; at most 80 together are allowed for train and validation, "),
        (Split(train=1, validation=1, test=21), 80, "and 20 for test, which comes from the official test set"),
        (Split(train=0.99, validation=0.004, test=0.004), None, " of 100; at least 1 each is allowed"),
    ],
)
def test_a_split_larger_than_the_data_is_refused_with_the_sizes(split, test_from, message):
    told = refused(split_sizes, split, 100, test_from, STUDY, error=StudyFileError)
    assert told.startswith("study.toml: data.split: train = ")
    assert message in told


def test_a_study_file_is_told_of_its_split(tmp_path):
    own_data(tmp_path)
    spec = own_study(tmp_path, split={"train": 100, "validation": 20, "test": 20})
    for call in (prepare, raw_split):
        told = refused(call, spec, STUDY, error=StudyFileError)
        assert told.startswith("study.toml: data.split: train = 100, validation = 20, test = 20 rows; at most 120")


# Preparation.


def test_digits_are_prepared():
    folder = prepare(study(**DIGITS), STUDY)
    prepared = load_prepared(folder)
    assert prepared.name == "digits"
    assert len(prepared.fingerprint) == 64
    assert prepared.classes.tolist() == list(range(10))
    assert prepared.sizes == (1197, 300, 300)
    assert (prepared.features, prepared.pca) == (64, 0.95)
    k = prepared.components
    assert 20 < k < 40
    for split, size in zip((prepared.train, prepared.validation, load_test(folder)), prepared.sizes, strict=True):
        assert split.features.shape == (size, k)
        assert (split.X[:, -1] == 1).all()
        assert (split.X.dtype, split.y.dtype) == (np.float32, np.intp)
        assert np.abs(np.bincount(split.y) - size / 10).max() <= 6  # stratified


def test_without_pca_all_features_are_kept():
    prepared = load_prepared(prepare(study(**DIGITS | {"pca": 0.0}), STUDY))
    assert prepared.components is None
    assert prepared.train.features.shape == (1197, 64)


@pytest.mark.parametrize("pca", [0.0, 0.9])
def test_raw_rows_through_the_map_give_the_prepared_bits(tmp_path, pca):
    own_data(tmp_path, n=3000)
    spec = own_study(tmp_path, pca=pca)
    folder = prepare(spec, STUDY)
    prepared = load_prepared(folder)
    splits = (prepared.train, prepared.validation, load_test(folder))
    for (X, labels), split in zip(raw_split(spec, STUDY).values(), splits, strict=True):
        assert prepared.preprocessor.transform(X).tobytes() == split.features.tobytes()
        assert (prepared.classes[split.y] == labels).all()


def test_raw_rows_keep_their_labels(tmp_path):
    X, y = own_data(tmp_path)
    known = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
    splits = raw_split(own_study(tmp_path), STUDY)
    assert sorted(splits) == sorted(PARTS)
    for rows, labels in splits.values():
        assert [known[row.tobytes()] for row in rows] == labels.tolist()


@given(st.integers(0, 1000), st.sampled_from(["feature", "global", "none"]), st.sampled_from([0.0, 0.9]))
@settings(deadline=None, max_examples=20)
def test_everything_is_fitted_to_the_training_rows_alone(seed, scale, pca):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("HPO_DATA_DIR", name)
        X, y = own_data(folder, seed=seed)
        spec = own_study(folder, seed=seed, scale=scale, pca=pca)
        before = load_prepared(prepare(spec, STUDY))
        indices = split_indices(y, before.sizes, seed)
        X[np.concatenate([indices.validation, indices.test])] *= 1000
        np.savez(folder / "own.npz", X=X, y=y)
        after = load_prepared(prepare(spec, STUDY))
        assert after.fingerprint != before.fingerprint
        assert after.train.X.tobytes() == before.train.X.tobytes()
        assert after.validation.X.tobytes() != before.validation.X.tobytes()
        for key, values in before.preprocessor.arrays().items():
            assert values.tobytes() == after.preprocessor.arrays()[key].tobytes()


def test_constant_training_rows_are_refused(tmp_path):
    np.savez(tmp_path / "own.npz", X=np.full((60, 3), 0.1), y=np.arange(60) % 2)
    told = refused(prepare, own_study(tmp_path), STUDY)
    assert told == "own.npz: every feature is constant in the 42 training rows; nothing can be learned"


@pytest.mark.parametrize("scale", ["feature", "global", "none"])
@pytest.mark.parametrize("size", [1e15, 1e-14])
def test_very_large_and_very_small_features_stay_finite(tmp_path, scale, size):
    X = np.random.default_rng(0).uniform(-size, size, (200, 4))
    np.savez(tmp_path / "own.npz", X=X, y=np.arange(200) % 2)
    prepared = load_prepared(prepare(own_study(tmp_path, scale=scale), STUDY))
    assert np.isfinite(prepared.train.X).all()
    assert prepared.train.features.any()


def test_data_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch):
    own_data(tmp_path)

    def load_and_change(source):
        dataset = load(source)
        own_data(tmp_path, seed=1)
        return dataset

    load = hpo.data.sources.NpzSource.load
    monkeypatch.setattr(hpo.data.sources.NpzSource, "load", load_and_change)
    assert refused(prepare, own_study(tmp_path), STUDY) == "own.npz: changed while it was read; start again"
    assert prepared_folders() == []


# Variants of images.


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Write noise as CIFAR-10, all of it or but for some rows the same as before."""
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    (folder / cifar10.CLASS_NAMES).write_text("".join(f"class {i}\n" for i in range(10)))

    def write(changed=()):
        records = np.random.default_rng(0).integers(0, 256, (120, 3073), np.uint8)
        records[:, 0] = np.arange(120) % 10
        records[changed, 1:] //= 2
        for i, name in enumerate(cifar10.BATCHES):
            (folder / name).write_bytes(records[20 * i : 20 * (i + 1)].tobytes())

    write()
    return write


def images_study(**keys):
    return study(**{"dataset": "cifar10", "split": {"train": 60, "validation": 20, "test": 20}, "pca": 0.9} | keys)


@pytest.mark.usefixtures("photographs")
def test_training_images_are_followed_by_their_mirrors_and_no_others_are():
    spec = images_study(mirror=True)
    folder = prepare(spec, STUDY)
    prepared, raw = load_prepared(folder), raw_split(spec, STUDY)
    (X, _), (X_validation, _), (X_test, _) = raw.values()
    transform = prepared.preprocessor.transform
    assert prepared.train.X[:, :-1].tobytes() == transform(np.vstack([X, cifar10.mirrored(X)])).tobytes()
    assert prepared.validation.features.tobytes() == transform(X_validation).tobytes()
    assert load_test(folder).features.tobytes() == transform(X_test).tobytes()
    assert (prepared.train.X[:, -1] == 1).all()
    assert len(prepared.train.features) == len(prepared.train.y) == prepared.sizes.train == 60


@pytest.mark.usefixtures("photographs")
def test_a_study_with_mirrors_sees_the_same_examples_and_its_own_components():
    spec, plain = images_study(mirror=True), images_study()
    assert prepare(spec, STUDY) != prepare(plain, STUDY)
    for (X, y), (X_plain, y_plain) in zip(
        raw_split(spec, STUDY).values(), raw_split(plain, STUDY).values(), strict=True
    ):
        assert (X_plain == X).all()
        assert (y == y_plain).all()
    X, _ = raw_split(spec, STUDY)["train"]
    expected = fit_preprocessor(np.vstack([X, cifar10.mirrored(X)]), "global", 0.9)
    fitted = load_prepared(prepare(spec, STUDY)).preprocessor
    for key, values in expected.arrays().items():
        assert values.tobytes() == fitted.arrays()[key].tobytes()


def test_mirrors_too_are_of_the_training_rows_alone(photographs):
    spec = images_study(mirror=True)
    before = load_prepared(prepare(spec, STUDY))
    y = np.arange(120) % 10
    train, *others = split_indices(y, before.sizes, 0, 100)
    photographs(changed=np.concatenate(others))
    after = load_prepared(prepare(spec, STUDY))
    assert after.train.X.tobytes() == before.train.X.tobytes()
    assert after.validation.X.tobytes() != before.validation.X.tobytes()
    photographs(changed=train[:1])
    assert load_prepared(prepare(spec, STUDY)).train.X.tobytes() != before.train.X.tobytes()


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize("mirror", [False, True])
def test_training_images_are_followed_by_shifted_ones_which_nothing_is_fitted_to(mirror):
    spec = images_study(mirror=mirror, shift=3)
    prepared, plain = (load_prepared(prepare(one, STUDY)) for one in (spec, images_study(mirror=mirror)))
    for key, values in plain.preprocessor.arrays().items():
        assert values.tobytes() == prepared.preprocessor.arrays()[key].tobytes()
    X, _ = raw_split(spec, STUDY)["train"]
    X = np.vstack([X, cifar10.mirrored(X)]) if mirror else X
    moved = [cifar10.shifted(X, *by) for by in ((3, 0), (-3, 0), (0, 3), (0, -3))]
    assert prepared.train.X[: len(X)].tobytes() == plain.train.X.tobytes()
    transformed = np.vstack([prepared.preprocessor.transform(rows) for rows in moved])
    assert prepared.train.X[len(X) :, :-1].tobytes() == transformed.tobytes()
    assert (prepared.train.X[:, -1] == 1).all()
    assert prepared.validation.X.tobytes() == plain.validation.X.tobytes()


def test_a_study_without_variants_has_the_copy_that_it_had_before_there_were_any():
    assert not {"mirror", "shift"} & images_study().data.model_dump(mode="json").keys()
    assert (
        images_study(mirror=True, shift=1).data.model_dump(mode="json").items() >= {"mirror": True, "shift": 1}.items()
    )


# One copy a machine.


def test_the_second_time_nothing_is_computed(tmp_path, monkeypatch):
    own_data(tmp_path)
    folder = prepare(own_study(tmp_path), STUDY)
    monkeypatch.delattr(hpo.data.cache, "fit_preprocessor")
    assert prepare(own_study(tmp_path, name="another"), STUDY) == folder
    (tmp_path / "moved").mkdir()
    (tmp_path / "own.npz").rename(tmp_path / "moved" / "own.npz")
    assert prepare(own_study(tmp_path / "moved"), STUDY) == folder


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"pca": 0.8},
        {"scale": "global"},
        {"split": {"train": 60, "validation": 20, "test": 20}},
    ],
)
def test_other_settings_have_a_copy_of_their_own(tmp_path, change):
    own_data(tmp_path)
    assert prepare(own_study(tmp_path), STUDY) != prepare(own_study(tmp_path, **change), STUDY)


def test_the_default_scale_and_its_name_share_a_copy(tmp_path):
    own_data(tmp_path)
    assert prepare(own_study(tmp_path), STUDY) == prepare(own_study(tmp_path, scale="feature"), STUDY)


def prepare_slowly(spec, started, log):
    """In a process of its own: prepare together with the others, and log every fit."""
    fit = hpo.data.cache.fit_preprocessor

    def logged(*args):
        with log.open("a") as file:
            file.write("fit\n")
        time.sleep(0.3)  # long enough for the others to come to the lock
        return fit(*args)

    hpo.data.cache.fit_preprocessor = logged
    started.wait()
    load_prepared(prepare(spec, STUDY))


def test_processes_that_start_together_compute_once(tmp_path):
    own_data(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Barrier(3)
    processes = [
        spawn.Process(target=prepare_slowly, args=(own_study(tmp_path), started, tmp_path / "log")) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "fit\n"


def be_killed_while_preparing(spec):
    dump = joblib.dump

    def killed(content, file):
        dump(content, file)
        if file.name.endswith("validation.joblib"):
            os.kill(os.getpid(), signal.SIGKILL)

    joblib.dump = killed
    prepare(spec, STUDY)


def test_what_a_killed_process_left_is_neither_used_nor_kept(tmp_path):
    own_data(tmp_path)
    process = multiprocessing.get_context("spawn").Process(
        target=be_killed_while_preparing, args=(own_study(tmp_path, seed=1),)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = prepared_folders()
    assert len(left) == 1
    assert left[0].endswith(".part")
    folder = prepare(own_study(tmp_path), STUDY)
    assert prepared_folders() == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == [
        "about.joblib",
        "test.joblib",
        "train.joblib",
        "validation.joblib",
    ]


# Loading.


def test_what_is_loaded_is_mapped_and_read_only(tmp_path):
    own_data(tmp_path)
    prepared = load_prepared(prepare(own_study(tmp_path), STUDY))
    for array in (*prepared.train, *prepared.validation):
        assert type(array) is np.ndarray
        assert isinstance(array.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_training_does_not_need_the_test_split(tmp_path):
    own_data(tmp_path)
    folder = prepare(own_study(tmp_path), STUDY)
    (folder / "test.joblib").unlink()
    assert isinstance(load_prepared(folder), PreparedData)
    assert refused(load_test, folder).endswith("test.joblib: No such file or directory")


def test_a_worker_loads_without_scikit_learn(tmp_path):
    own_data(tmp_path)
    folder = prepare(own_study(tmp_path), STUDY)
    code = (
        "import sys, pathlib, hpo.data.cache; hpo.data.cache.load_prepared(pathlib.Path(sys.argv[1])).train.X.sum();"
        "print({'sklearn', 'scipy', 'httpx', 'rich', 'optuna'} & set(sys.modules))"
    )
    checkout = str(Path(hpo.data.cache.__file__).parents[1])
    command = [sys.executable, "-c", code, str(folder)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": checkout})
    assert loaded.stdout == "set()\n"


def test_a_missing_folder_is_told(tmp_path):
    (tmp_path / "prepared").mkdir()
    assert refused(load_prepared, tmp_path / "prepared" / "none").endswith("none: No such file or directory")


def test_the_prepared_folders_are_the_users_own(tmp_path):
    own_data(tmp_path)
    before = os.umask(0)
    try:
        folder = prepare(own_study(tmp_path), STUDY)
    finally:
        os.umask(before)
    for path in (folder, folder.parent):
        assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702])
@pytest.mark.parametrize("which", ["the folder", "the one above"])
def test_nothing_is_unpickled_that_others_may_have_written(tmp_path, mode, which):
    own_data(tmp_path)
    folder = prepare(own_study(tmp_path), STUDY)
    path = folder if which == "the folder" else folder.parent
    path.chmod(mode)
    for call in (load_prepared, load_test):
        assert refused(call, folder).startswith(f"{path}: others may write into it, so not loaded; ")
    assert refused(prepare, own_study(tmp_path), STUDY).startswith(f"{path}: others may write into it")


def test_nothing_is_unpickled_that_another_user_owns(tmp_path, monkeypatch):
    own_data(tmp_path)
    folder = prepare(own_study(tmp_path), STUDY)
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "owned by another user, so not loaded" in refused(load_prepared, folder)


def test_what_root_prepared_may_be_loaded(tmp_path, monkeypatch):
    own_data(tmp_path)
    folder = prepare(own_study(tmp_path), STUDY)
    if folder.stat().st_uid != 0:
        pytest.skip("only root can make a folder of root's")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    load_prepared(folder)


# The folder of the data.


def test_data_live_where_the_environment_says(tmp_path, monkeypatch):
    assert data_dir() == tmp_path / "data"
    monkeypatch.setenv("HPO_DATA_DIR", "~/data")
    assert data_dir() == Path.home() / "data"
    monkeypatch.setenv("HPO_DATA_DIR", "")
    assert data_dir() == platformdirs.user_cache_path("hpo")
    monkeypatch.delenv("HPO_DATA_DIR")
    assert data_dir() == platformdirs.user_cache_path("hpo")


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_a_data_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch, dataset):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "file" / "data"))
    spec = study(dataset=dataset, split={"train": 1000, "validation": 100, "test": 100})
    assert refused(prepare, spec, STUDY).startswith(f"{tmp_path / 'file'}")


def test_a_full_disk_is_told_and_nothing_left_on_it(tmp_path, monkeypatch):
    own_data(tmp_path)

    def full(content, file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(joblib, "dump", full)
    assert refused(prepare, own_study(tmp_path), STUDY) == f"{data_dir()}: No space left on device"
    assert prepared_folders() == []


def test_a_file_that_was_removed_is_told(tmp_path):
    own_data(tmp_path)
    spec = own_study(tmp_path)
    (tmp_path / "own.npz").unlink()
    assert "no file" in refused(prepare, spec, STUDY)
    assert "no file" in refused(raw_split, spec, STUDY)


@pytest.mark.cifar10
@pytest.mark.skipif(not REAL_IMAGES.is_dir(), reason=f"no {FOLDER} in $HPO_DATA_DIR")
def test_the_real_images_keep_about_197_components(tmp_path):
    split = {"train": 10_000, "validation": 1000, "test": 1000}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FOLDER).symlink_to(REAL_IMAGES)
    prepared = load_prepared(prepare(study(dataset="cifar10", split=split, pca=0.95), STUDY))
    assert prepared.name == "cifar10"
    assert prepared.classes.tolist()[:2] == ["airplane", "automobile"]
    assert prepared.features == 3072
    assert 190 < prepared.components < 205
    assert prepared.train.X.std() > 1
    assert (np.bincount(prepared.validation.y) == 100).all()
