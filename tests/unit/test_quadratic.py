"""The contract of an objective, for an objective without data."""

from quadratic import Quadratic

from hpo.testing.objectives import ObjectiveContract


class TestQuadratic(ObjectiveContract):
    def make_objective(self):
        return Quadratic()
