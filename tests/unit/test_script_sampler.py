"""Sampler of a script: its own, or TPE with the settings of hpo."""

import optuna
import pytest
from optuna.pruners import MedianPruner
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

from hpo.search.pruning.asha_pruner import AshaPruner
from hpo.search.sampling.script_sampler import describe, script_sampler


class OwnSampler(RandomSampler):
    """Sampler of a user."""


def make_sampler(sampler, *, is_given=True, workers=4, directions=("minimize",)):
    study = optuna.create_study(directions=directions, sampler=sampler)
    return script_sampler(study, is_given=is_given, seed=5, workers=workers)


def test_script_keeps_its_sampler():
    given = TPESampler(seed=1)
    assert make_sampler(given).wrapped is given
    assert make_sampler(given).seed == make_sampler(TPESampler(seed=1)).seed != 5


def test_default_sampler_is_tpe_with_settings_of_hpo():
    default = TPESampler()
    sampler = make_sampler(default, is_given=False)
    assert sampler.wrapped is not default
    assert sampler.seed == 5
    settings = vars(sampler.wrapped)
    assert (settings["_multivariate"], settings["_constant_liar"], settings["_n_startup_trials"]) == (True, True, 10)


def test_study_with_several_objectives_keeps_default_of_optuna():
    default = NSGAIISampler()
    assert make_sampler(default, is_given=False, directions=["minimize", "maximize"]).wrapped is default


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (make_sampler(TPESampler()), "sampler TPESampler of Optuna, reseeded per trial"),
        (make_sampler(RandomSampler(seed=1)), "sampler RandomSampler of Optuna, reseeded per trial"),
        (make_sampler(RandomSampler(seed=1), workers=1), "sampler RandomSampler of Optuna, as in plain Python"),
        (make_sampler(OwnSampler()), "sampler OwnSampler, reseeded per trial"),
        (NSGAIISampler(), "sampler NSGAIISampler of Optuna"),
        (MedianPruner(), "pruner MedianPruner of Optuna"),
        (AshaPruner(), "pruner AshaPruner of hpo"),
    ],
)
def test_description_names_sampler_and_pruner(part, expected):
    assert describe(part) == expected
