"""The contract of a worker pool, for local workers and for plain subprocesses."""

import sys

import pytest
from subprocess_pool import SubprocessPool

from hpo.fleet.forkserver import server_running
from hpo.fleet.local_pool import forked_pool
from hpo.testing.pools import WorkerPoolContract
from hpo.ui.cli import PRELOAD


class TestLocalWorkerPool(WorkerPoolContract):
    @pytest.fixture(autouse=True)
    def _server(self):
        with server_running(PRELOAD):
            yield

    def make_pool(self, setup):
        return forked_pool(setup.config, setup.size, setup.study.store)

    def kill_worker(self, pool):
        pool._workers[0].process.kill()


@pytest.mark.slow
class TestSubprocessPool(WorkerPoolContract):
    def make_pool(self, setup):
        study = str(setup.config.config.path)
        command = [sys.executable, "-m", "hpo.worker", study, "--storage", setup.url]
        return SubprocessPool(command, setup.size)

    def kill_worker(self, pool):
        pool.processes[0].kill()
