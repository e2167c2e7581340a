"""Sampler and pruner of an Optuna script, and their names for the user."""

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study

from hpo.search.pruning.asha_pruner import AshaPruner
from hpo.search.pruning.paused_trials import LearningFromPausedTrials
from hpo.search.sampling.reseeding import DelegatingSampler, ReplayedRandomSampler, reseeded
from hpo.search.sampling.tpe import make_optuna_tpe

_ORIGINS = {"optuna": " of Optuna", "hpo": " of hpo"}


def script_sampler(study: Study, *, is_given: bool, seed: int, workers: int) -> DelegatingSampler:
    """Return the sampler of a worker that runs a script.

    A study with several objectives keeps Optuna's default, because the settings of hpo are for one objective.

    Args:
        study: The study of the script, whose sampler has drawn nothing yet.
        is_given: Whether the script has chosen the sampler. Otherwise it is Optuna's default.
        seed: The seed if the script has not seeded the sampler.
        workers: The number of workers of the study.
    """
    has_own = is_given or len(study.directions) > 1
    sampler = study.sampler if has_own else make_optuna_tpe(seed=None)
    # A random sampler learns nothing.
    if isinstance(study.pruner, AshaPruner) and not isinstance(sampler, RandomSampler):
        sampler = LearningFromPausedTrials(sampler)
    return reseeded(sampler, seed, workers)


def describe(part: BaseSampler | BasePruner) -> str:
    """Return the name of a sampler or of a pruner for the user."""
    if isinstance(part, BasePruner):
        return f"pruner {_name(part)}"
    if isinstance(part, ReplayedRandomSampler):
        return f"sampler {_name(part)}, as in plain Python"
    if isinstance(part, DelegatingSampler):
        return f"sampler {_name(part)}, reseeded per trial"
    return f"sampler {_name(part)}"


def _name(part: object) -> str:
    while isinstance(part, DelegatingSampler):
        part = part.wrapped
    package, _, _ = type(part).__module__.partition(".")
    return type(part).__name__ + _ORIGINS.get(package, "")
