"""Allocation of trials by many free workers at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from factories import open_study

from hpo.storage.tables.leases import new_owner

N_WORKERS = 64


@pytest.mark.slow
def test_free_workers_get_each_number_once(database):
    """As many workers as trials ask at once. No creation is refused, and a later worker gets nothing."""
    barrier = threading.Barrier(N_WORKERS)

    def allocate(_):
        with open_study(database) as study:
            barrier.wait()
            return study.store.allocate(new_owner())

    with open_study(database) as study, ThreadPoolExecutor(N_WORKERS) as pool:
        study.store.raise_budget(N_WORKERS)
        leases = list(pool.map(allocate, range(N_WORKERS)))
        assert sorted(lease.number for lease in leases) == list(range(N_WORKERS))
        assert study.store.allocate(new_owner()) is None
        assert [trial.number for trial in study.trials] == list(range(N_WORKERS))
