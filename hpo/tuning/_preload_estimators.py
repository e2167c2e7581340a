"""Imports of the fork server of a study with estimators, which take longer than those of a net.

Only the fork server imports this module.
"""

from hpo.fleet.forkserver import importing

with importing():
    import sklearn.ensemble  # noqa: F401  # for the forked processes
    import skops.io  # noqa: F401  # for the forked processes

    from hpo.models.estimators import kind  # noqa: F401  # for the forked processes
