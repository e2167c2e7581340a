"""What the server has imported from which processes are forked, so that none of them has to do it again.

Imported there alone.
"""

from hpo.fleet.forkserver import importing

with importing():
    import scipy.stats  # noqa: F401  # of the first trials

    from hpo.runner import worker_loop as worker  # noqa: F401
    from hpo.storage import database as storage
    from hpo.ui import cli  # noqa: F401
    from hpo.ui import dashboard_server as dashboard  # noqa: F401

    storage.preload()
