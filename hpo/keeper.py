"""Keep a lease while its trial trains, and put the newest checkpoint beside it."""

import threading
from typing import Self

from hpo import storage
from hpo.leases import Lease, LeaseLostError, Leases

RENEW_SECONDS = 2.0  # between two checkpoints, and as long again for an epoch to end
FIRST_CHECKPOINT_SECONDS = 0.1


class Keeper:
    """A thread that renews one lease, so that neither a long epoch nor a slow database costs it.

    While the database is away the training goes on, and the newest checkpoint is written when it is back.
    """

    def __init__(self, leases: Leases, lease: Lease) -> None:
        self._leases = leases
        self._lease = lease
        self._newest: tuple[int, bytes] | None = None
        self._wants_checkpoint = threading.Event()
        self._offered = threading.Event()
        self._lost = threading.Event()
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"keeper of trial {lease.number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._offered.set()
        self._thread.join()

    @property
    def wants_checkpoint(self) -> bool:
        """Whether it is time to ``offer`` one."""
        return self._wants_checkpoint.is_set()

    def offer(self, epoch: int, checkpoint: bytes) -> None:
        """Have a checkpoint written, and the lease renewed with it.

        Raises:
            LeaseLostError: somebody else took the trial over.
            SQLAlchemyError: the database refused an earlier one.
        """
        self._newest = (epoch, checkpoint)
        self._wants_checkpoint.clear()
        self._offered.set()
        if self._lost.is_set():
            raise self._error or LeaseLostError(self._lease.number)

    def _run(self) -> None:
        self._closed.wait(FIRST_CHECKPOINT_SECONDS)
        while not self._closed.is_set() and not self._lost.is_set():
            self._wants_checkpoint.set()
            # An epoch can last longer than a lease: then it is renewed without a checkpoint.
            self._offered.wait(RENEW_SECONDS)
            self._offered.clear()
            if not self._closed.is_set():
                self._renew()
            self._closed.wait(RENEW_SECONDS)

    def _renew(self) -> None:
        newest = self._newest
        try:
            self._leases.renew(self._lease, *(newest or ()))
        except LeaseLostError:
            self._lost.set()
        except storage.DATABASE_ERRORS as error:
            if not storage.is_outage(error):
                self._error = error
                self._lost.set()
        else:
            if self._newest is newest:
                self._newest = None
