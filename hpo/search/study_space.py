"""Search space of a study that trains a model, or compares models."""

from hpo.config.study import StudyConfig
from hpo.models.kinds.registry import StudyModel, models_of
from hpo.search.space import Branch, ConditionalSpace, Space, build_space


def study_space(config: StudyConfig) -> Space:
    """Return the space of a study file."""
    models = models_of(config)
    if not models[0].name:
        return _space_of(models[0])
    return ConditionalSpace({model.name: _branch_of(model) for model in models})


def _space_of(model: StudyModel) -> Space:
    space = build_space(model.config, model.kind.float_names(model.config))
    return {f"{model.prefix}{name}": distribution for name, distribution in space.items()}


def _branch_of(model: StudyModel) -> Branch:
    cost_parameter = model.kind.cost_parameter(model.config)
    prefixed = None if cost_parameter is None else f"{model.prefix}{cost_parameter}"
    return Branch(_space_of(model), model.kind.max_steps(model.config), prefixed)
