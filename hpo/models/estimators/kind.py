"""Kind of the estimators with scikit-learn's interface."""

from collections.abc import Collection, Mapping
from typing import Any

from threadpoolctl import threadpool_limits

from hpo.config.study import StudyConfig
from hpo.data.metrics import TaskName
from hpo.models.base import is_installed
from hpo.models.estimators.budget import budget_of
from hpo.models.estimators.lookup import PACKAGES
from hpo.models.estimators.model import EstimatorModel
from hpo.models.estimators.settings import (
    check_settings,
    cost_parameter,
    estimator_type,
    float_names,
    has_costly_reports,
    make_estimator,
    max_steps,
    settings_of,
)
from hpo.models.kinds.kind import TrainingData
from hpo.models.trainer import Learner, Trainer, describe_arguments, rng_of

# Seeds of an estimator are below this number.
_MAX_SEED = 2**31


class EstimatorKind:
    """`hpo.models.kinds.kind.ModelKind` of an estimator."""

    def check(self, config: StudyConfig, task: TaskName | None) -> None:
        """Check the estimator and its parameters.

        Raises:
            StudyFileError: if the estimator or a parameter is not allowed, or if a package is missing.
        """
        check_settings(config, task)

    def float_names(self, config: StudyConfig) -> frozenset[str]:
        """Return the parameters that are floats by default."""
        return float_names(config)

    def cost_parameter(self, config: StudyConfig) -> str | None:
        """Return the parameter of the number of passes or members, if it is searched."""
        return cost_parameter(config)

    def max_steps(self, config: StudyConfig) -> int:
        """Return the steps of the longest trial."""
        return max_steps(config)

    def has_costly_reports(self, config: StudyConfig) -> bool:
        """Return whether the estimator prepares the data again whenever it grows."""
        return has_costly_reports(config)

    def n_steps(self, config: StudyConfig, params: Mapping[str, Any]) -> int:
        """Return the steps of a trial."""
        return budget_of(make_estimator(config, settings_of(config, params), 0)).steps

    def settings(self, config: StudyConfig, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the estimator and its parameters, as far as they are not defaults."""
        assert config.model is not None, "the study file has an estimator"
        return {"model": "sklearn", "estimator": config.model.estimator, **settings_of(config, params)}

    def regularization(self, config: StudyConfig, params: Mapping[str, Any]) -> float:
        """Return 0, because the training loss of an estimator has no penalty."""
        return 0.0

    def packages(self, config: StudyConfig, params: Mapping[str, Any]) -> list[str]:
        """Return the estimator's package, if it is installed and not scikit-learn."""
        assert config.model is not None, "the study file has an estimator"
        package = str(config.model.estimator).partition(".")[0]
        return [PACKAGES.get(package, package)] if package != "sklearn" and is_installed(package) else []

    def warm_up(self, config: StudyConfig) -> None:
        """Import the estimator and skops, and limit the thread pools that came with them to one thread."""
        import skops.io  # noqa: F401  # the import is the work

        estimator_type(config)
        threadpool_limits(1)

    def make_trainer(
        self,
        config: StudyConfig,
        params: Mapping[str, Any],
        data: TrainingData,
        seed: tuple[int, int],
        reports: Collection[int],
    ) -> Trainer:
        """Return the training of a trial. It refuses a checkpoint of a training with other reports."""
        assert config.model is not None, "the study file has an estimator"
        settings, learners = settings_of(config, params), []
        for fold, split in enumerate(data.train):
            rng = rng_of(seed, fold)
            estimator = make_estimator(config, settings, int(rng.integers(_MAX_SEED)))
            model = EstimatorModel(estimator, split, data.task, data.classes, reports, config.allowed_imports)
            learners.append(Learner(model, rng))
        described = {"estimator": config.model.estimator, "settings": settings, "reports": sorted(reports)}
        made_from = describe_arguments(data.train, data.task.n_outputs(data.classes), seed, described)
        return Trainer(learners, self.n_steps(config, params), data.metric, made_from)


SKLEARN = EstimatorKind()
