"""Memory that processes share."""

import ctypes
import os
from multiprocessing import reduction

import pytest

from hpo.fleet.shared_memory import Shared
from hpo.runner.trial_runner import SharedProgress


class Duplicate:
    """A descriptor on its way to another process."""

    def __init__(self, descriptor):
        self._descriptor = os.dup(descriptor)

    def detach(self):
        return self._descriptor


@pytest.mark.parametrize("has_memfd", [True, False])
def test_receiver_shares_memory(has_memfd, monkeypatch):
    if not has_memfd:
        # As on macOS.
        monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(reduction, "DupFd", Duplicate)
    shared = Shared(SharedProgress)
    receive, arguments = shared.__reduce__()
    received = receive(*arguments)
    shared.close_file()
    received.reset(7)
    received.step = 3
    assert (shared.value.epoch, shared.value.step, shared.value.in_trial_code) == (7, 3, False)


def test_new_memory_is_zero():
    shared = Shared(ctypes.c_int64)
    shared.close_file()
    assert shared.value.value == 0
