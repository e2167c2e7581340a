"""SQLite files that are read-only, locked or removed while in use."""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from factories import create_trial, execute, make_database, make_storage_config, open_study
from optuna.trial import TrialState

from hpo.errors import StorageError
from hpo.storage.database import sqlite_file
from hpo.storage.database.connection import Database, StorageTimings, preload
from hpo.storage.study import load_study
from hpo.storage.trial_store import TrialOutcome
from hpo.ui.dashboard_server import open_app

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder that another user can enter."""
    path = Path(tempfile.mkdtemp(prefix="hpo-read-only-"))
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


@pytest.fixture
def study_file(folder):
    """Return the file of a study with one complete trial."""
    path = folder / "hpo.db"
    with open_study(make_database(f"sqlite:///{path}")) as study:
        study.store.finish(create_trial(study.store), TrialOutcome(TrialState.COMPLETE, 0.5), weights=b"weights")
    return path


@contextlib.contextmanager
def other_user(folder: Path) -> Iterator[None]:
    """Run the block without permission to write a folder and its files."""
    # The modules of the block are imported before, because the user may have no access to them.
    preload()
    from optuna_dashboard import wsgi  # noqa: F401  # imported for later

    if os.geteuid() == 0:
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        for path in (*folder.iterdir(), folder):
            path.chmod(path.stat().st_mode & 0o555)
        yield


def count_trials(path: Path) -> int:
    """Count the trials of the study as a reader."""
    with (
        Database.parse(f"sqlite:///{path}").reading() as database,
        load_study(database, make_storage_config()) as study,
    ):
        return len(study.trials)


def test_reader_needs_no_permission_to_write(study_file):
    before = study_file.read_bytes()
    with other_user(study_file.parent):
        assert count_trials(study_file) == 1
        with Database.parse(f"sqlite:///{study_file}").reading() as database:
            open_app(database)
    assert [path.name for path in study_file.parent.iterdir()] == ["hpo.db"]
    assert study_file.read_bytes() == before


@pytest.mark.parametrize("suffixes", [["-wal", "-shm"], ["-wal"]])
def test_reader_finds_transactions_in_wal(study_file, suffixes):
    copy = study_file.parent / "copy" / "my %41#.db"
    copy.parent.mkdir()
    with contextlib.closing(sqlite3.connect(study_file)) as writer:
        writer.execute("INSERT INTO trials (number, study_id, state) VALUES (1, 1, 'FAIL')")
        writer.commit()
        for suffix in ["", *suffixes]:
            shutil.copyfile(f"{study_file}{suffix}", f"{copy}{suffix}")
    with other_user(copy.parent):
        assert count_trials(Path(str(copy).replace("%", "%25"))) == 2


def test_reader_follows_running_study(study_file):
    with contextlib.closing(sqlite3.connect(study_file)) as writer:
        writer.execute("UPDATE trials SET state = 'COMPLETE'")
        writer.commit()
        with (
            other_user(study_file.parent),
            Database.parse(f"sqlite:///{study_file}").reading() as database,
            load_study(database, make_storage_config()) as study,
        ):
            assert len(study.trials) == 1
            writer.execute("INSERT INTO trials (number, study_id, state) VALUES (1, 1, 'FAIL')")
            writer.commit()
            assert len(study.trials) == 2


def test_launch_needs_permission_to_write(study_file):
    database = Database.parse(f"sqlite:///{study_file}")
    with other_user(study_file.parent), pytest.raises(StorageError, match="read-only for this user; use another"):
        database.check_reachable()


def test_launch_needs_writable_folder(folder):
    database = Database.parse(f"sqlite:///{folder}/new.db")
    with other_user(folder), pytest.raises(StorageError, match=r"cannot write to .* is read-only"):
        database.check_reachable()


def test_unreadable_file_is_named(study_file):
    study_file.chmod(0)
    with other_user(study_file.parent), pytest.raises(StorageError, match="cannot be read"):
        count_trials(study_file)


@pytest.mark.parametrize("action", [Database.check_reachable, open_study], ids=["check", "open"])
def test_locked_file_is_reported(study_file, action):
    with contextlib.closing(sqlite3.connect(study_file)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        database = Database.parse(f"sqlite:///{study_file}", StorageTimings(busy_timeout_s=0.01))
        with pytest.raises(StorageError, match=r"^cannot use .*database is locked; another program keeps it locked"):
            action(database)


def test_folder_instead_of_file_is_refused(tmp_path):
    with pytest.raises(StorageError, match="is a folder; give the path of a file"):
        Database.parse(f"sqlite:///{tmp_path}").check_reachable()


def test_lock_file_is_named_after_database(tmp_path):
    first, second = (Database.parse(f"sqlite:///{tmp_path}/{name}.db") for name in ("a", "b"))
    with first.creation_lock(), second.creation_lock():
        assert (tmp_path / "a.db-creation").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a.db", "b.db"}


def test_lock_of_folder_does_not_block(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with open_study(Database.parse(f"sqlite:///{tmp_path}/hpo.db")) as study:
        assert study.trials == []
    os.close(descriptor)


def test_lock_file_of_killed_process_does_not_block(tmp_path):
    (tmp_path / "hpo.db-creation").touch()
    with Database.parse(f"sqlite:///{tmp_path}/hpo.db").creation_lock():
        pass
    assert not (tmp_path / "hpo.db-creation").exists()


def test_lock_waits_for_its_owner(tmp_path):
    database, entered = Database.parse(f"sqlite:///{tmp_path}/hpo.db"), threading.Event()

    def enter() -> None:
        with database.creation_lock():
            entered.set()

    with database.creation_lock():
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
    thread.join()
    assert entered.is_set()


def test_lock_that_stays_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "_LOCK_TIMEOUT_S", 0.0)
    database = Database.parse(f"sqlite:///{tmp_path}/hpo.db")
    with database.creation_lock(), pytest.raises(StorageError, match="db-creation is locked by another process"):
        database.creation_lock().__enter__()


def replace_file(path: Path) -> None:
    shutil.copyfile(path, f"{path}.copy")
    Path(f"{path}.copy").replace(path)


@pytest.mark.parametrize(
    "remove", [Path.unlink, replace_file, lambda path: path.rename(f"{path}.old")], ids=["deleted", "replaced", "moved"]
)
def test_removed_file_is_reported(study_file, remove):
    with load_study(make_database(f"sqlite:///{study_file}"), make_storage_config()) as study:
        assert len(study.trials) == 1
        remove(study_file)
        with pytest.raises(StorageError, match="was deleted, moved or replaced while it was in use"):
            _ = study.trials
        with pytest.raises(StorageError, match="was deleted, moved or replaced while it was in use"):
            create_trial(study.store, 1)


def test_removed_file_is_not_created_by_new_connection(study_file):
    with load_study(make_database(f"sqlite:///{study_file}"), make_storage_config()) as study:
        study._rdb.engine.dispose()
        study_file.unlink()
        with pytest.raises(StorageError, match="was deleted"):
            _ = study.trials
    assert not study_file.exists()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_removed_file_of_transactions_is_reported(study_file, suffix):
    database = make_database(f"sqlite:///{study_file}")
    with load_study(database, make_storage_config()) as study:
        create_trial(study.store, 1)
        Path(f"{study_file}{suffix}").unlink()
        with pytest.raises(StorageError, match="-shm was deleted while"):
            create_trial(study.store, 2)
    with load_study(database, make_storage_config()) as study:
        assert len(study.trials) == 2
        create_trial(study.store, 2)
    assert execute(database, "PRAGMA integrity_check") == [("ok",)]


def test_other_processes_may_open_and_close_file(study_file):
    with load_study(make_database(f"sqlite:///{study_file}"), make_storage_config()) as study:
        for number in range(1, 4):
            create_trial(study.store, number)
            optuna.create_study(study_name=f"other {number}", storage=f"sqlite:///{study_file}")
        assert len(study.trials) == 4
