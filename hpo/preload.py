"""What the server has imported from which processes are forked, so that none of them has to do it again.

Imported there alone.
"""

import gc

import scipy.stats  # noqa: F401  # of the first trials

from hpo import cli, dashboard, storage, worker  # noqa: F401

storage.preload()
# Or each process would look through all of it for garbage, and copy the memory that it shares.
gc.freeze()
