"""Launches whose database loses its last commits."""

import pytest
import sqlalchemy as sa
from commands import FEW, SHORT, Gates, contents, count_finished, read_until, started, wait_until, write_study
from factories import make_database
from snapshots import restore_snapshot, take_snapshot


@pytest.mark.slow
@pytest.mark.parametrize("known", [1, 5])
def test_launch_ends_with_exact_budget_after_loss(storage_url, undisturbed, known):
    arguments = ["launch", write_study(SHORT), "--workers", 2, "--trials", FEW, "--no-dashboard"]
    with (
        Gates([known + 1, FEW - 1]) as gates,
        started(*arguments, "--storage", storage_url, **gates.environment) as process,
    ):
        read_until(process, "running")
        wait_until(process, lambda: count_finished(storage_url) >= known)
        engine = sa.create_engine(make_database(storage_url)._url)
        with engine.connect() as connection:
            snapshot = take_snapshot(connection)
        gates.open(known + 1)
        wait_until(process, lambda: count_finished(storage_url) >= FEW - 1)
        read_until(process, f"{FEW - 1}/{FEW}")
        with engine.begin() as connection:
            restore_snapshot(connection, snapshot)
        engine.dispose()
        read_until(process, "the database has lost its last commits")
        gates.open(FEW - 1)
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert contents(storage_url) == undisturbed[:FEW]
