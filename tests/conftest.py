"""Fixtures of all tests: home folder, data folder and databases."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from benchmarks.postgres import Postgres, running_postgres

# A test may be slow on a busy machine.
settings.register_profile("any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For make test-fast.
settings.register_profile("fast", settings.get_profile("any_speed"), max_examples=25)
settings.load_profile("any_speed")

# Commands leave a signal ignored that their parent ignores, and a shell ignores SIGINT in its background jobs.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

_GIVEN_DATA_DIR = os.environ.get("HPO_DATA_DIR", "")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder that all processes of a test run share, so that data are prepared once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"
    folder.mkdir(exist_ok=True)
    batches = Path(_GIVEN_DATA_DIR) / "cifar-10-batches-bin"
    if _GIVEN_DATA_DIR and batches.is_dir():
        with contextlib.suppress(FileExistsError):
            (folder / batches.name).symlink_to(batches.absolute())
    return folder


@pytest.fixture(autouse=True)
def _own_environment(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the user's HPO_* settings and home folder from the test."""
    for name in [name for name in os.environ if name.startswith("HPO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HPO_DATA_DIR", str(data_dir))
    monkeypatch.setenv("HOME", str(tmp_path / "no-home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Undo what a command that runs in this process changes in the logging of hpo."""
    loggers = [logging.getLogger(name) for name in ("hpo", "hpo.data")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _no_access_to_home(tmp_path: Path, _own_environment: None) -> Iterator[None]:
    yield
    assert not (tmp_path / "no-home").exists(), "the test wrote to the home folder"


@pytest.fixture
def set_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Yield a function that sets the time zone of this process until the test ends."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    with monkeypatch.context() as patch:
        monkeypatch = patch
        yield set_zone
    time.tzset()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    batches = Path(_GIVEN_DATA_DIR or "none") / "cifar-10-batches-bin"
    if not batches.is_dir():
        for item in items:
            if item.get_closest_marker("cifar10"):
                item.add_marker(pytest.mark.skip(reason="CIFAR-10 is missing: no cifar-10-batches-bin in HPO_DATA_DIR"))
    for item in items:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if item.get_closest_marker("postgresql_is_slow") and "postgresql" in given:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database. A test with this fixture runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/hpo.db"
    return request.getfixturevalue("postgres").new_database()
