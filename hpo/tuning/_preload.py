"""Imports of the fork server, shared by all processes that are forked from it.

Only the fork server imports this module.
"""

from hpo.fleet.forkserver import importing

with importing():
    # The sampler of the first trials needs it.
    import scipy.stats  # noqa: F401  # for the forked processes

    from hpo.models.nets import net  # noqa: F401  # for the forked processes
    from hpo.runner import training_objective, worker_loop  # noqa: F401  # for the forked processes
    from hpo.storage.database import connection
    from hpo.ui import cli, dashboard_server  # noqa: F401  # for the forked processes

    connection.preload()
