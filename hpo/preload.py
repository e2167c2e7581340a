"""What the server has imported from which processes are forked, so that none of them has to do it again.

Imported there alone.
"""

from hpo.processes import importing

with importing():
    import scipy.stats  # noqa: F401  # of the first trials

    from hpo import cli, dashboard, storage, worker  # noqa: F401

    storage.preload()
