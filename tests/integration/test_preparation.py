"""Preparation of data by several processes, and of the real images."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_files import make_config, npz_config, write_npz

from hpo.data.prepared.cache import prepare
from hpo.data.prepared.folders import data_dir
from hpo.data.prepared.preprocessing import Preprocessor

SLOW_MODULES = {"sklearn", "scipy", "pooch", "requests", "rich", "optuna"}


def prepared_folders():
    return sorted(path.name for path in (data_dir() / "prepared").iterdir() if not path.name.startswith("."))


@pytest.fixture
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))


def prepare_slowly(config, barrier, log):
    """Prepare data together with other processes, and log each fit."""
    fit = Preprocessor.fit

    def logged_fit(*args):
        with log.open("a") as file:
            file.write("fit\n")
        # The other processes reach the lock in this time.
        time.sleep(0.3)
        return fit(*args)

    Preprocessor.fit = logged_fit
    barrier.wait()
    prepare(config)


@pytest.mark.usefixtures("own_data_folder")
def test_concurrent_processes_prepare_once(tmp_path):
    write_npz(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    args = (npz_config(tmp_path), spawn.Barrier(3), tmp_path / "log")
    processes = [spawn.Process(target=prepare_slowly, args=args) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "fit\n"


def be_killed_during_preparation(config):
    write = np.lib.format.write_array

    def write_and_die(file, array, **options):
        write(file, array, **options)
        if file.name.endswith("validation_y.npy"):
            os.kill(os.getpid(), signal.SIGKILL)

    np.lib.format.write_array = write_and_die
    prepare(config)


@pytest.mark.usefixtures("own_data_folder")
def test_folder_of_killed_process_is_removed(tmp_path):
    write_npz(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=be_killed_during_preparation, args=(npz_config(tmp_path, seed=1),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    abandoned = prepared_folders()
    assert len(abandoned) == 1
    assert abandoned[0].endswith(".part")
    folder = prepare(npz_config(tmp_path)).folder
    assert prepared_folders() == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == [
        "about.json",
        "classes.npy",
        "components.npy",
        "mean.npy",
        "scale.npy",
        *(f"{split}_{array}.npy" for split in ("test", "train", "validation") for array in "Xy"),
    ]


def loaded_modules(script, *args):
    """Return the slow modules that a new interpreter has loaded after a script."""
    script = f"import sys, pathlib; {script}; print(sorted({SLOW_MODULES} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.usefixtures("own_data_folder")
def test_worker_loads_data_without_slow_modules(tmp_path):
    write_npz(tmp_path)
    folder = prepare(npz_config(tmp_path)).folder
    load = "load_prepared(pathlib.Path(sys.argv[1])).folds[0].train.X.sum()"
    script = f"from hpo.data.prepared.cache import load_prepared; {load}"
    assert loaded_modules(script, str(folder)) == "[]\n"


def test_source_is_found_without_slow_modules():
    script = (
        "from hpo.config.loader import find_study, load_config; from hpo.data.sources import find_source;"
        "[find_source(load_config(find_study(name))) for name in ('digits', 'cifar10', 'toy')]"
    )
    assert loaded_modules(script) == "[]\n"


@pytest.mark.slow
@pytest.mark.cifar10
def test_real_images_keep_about_197_components():
    split = {"train": 10_000, "validation": 1000, "test": 1000}
    data = prepare(make_config("cifar10", split=split, pca=0.95))
    assert data.name == "cifar10"
    assert data.classes.tolist()[:2] == ["airplane", "automobile"]
    assert data.features == 3072
    assert 190 < data.components < 205
    assert data.folds[0].train.X.std() > 1
    assert (np.bincount(data.folds[0].validation.y) == 100).all()
