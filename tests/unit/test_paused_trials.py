"""View of a study for samplers, in which paused trials are pruned."""

import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from reported_trials import trials_of

from hpo.search.pruning.asha_pruner import AshaPruner
from hpo.search.pruning.paused_trials import LearningFromPausedTrials
from hpo.search.sampling.script_sampler import describe, script_sampler

COMPLETE, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING


class Recorder(RandomSampler):
    """Sampler that records the states of the trials that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def sample_independent(self, study, trial, param_name, param_distribution):
        self.seen.append([shown.state for shown in study.get_trials()])
        self.learning = study.get_trials(states=[PRUNED])
        return super().sample_independent(study, trial, param_name, param_distribution)


def study_of(*curves, sampler=None, pruner=None):
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner or AshaPruner())
    study.add_trials(trials_of(*curves))
    return study


def test_paused_trials_are_shown_as_pruned():
    recorder = Recorder()
    # The first has come past rung 1 and the fourth has not reported; of the others, none is among the best third.
    study = study_of({1: 0.9, 2: 0.9}, {1: 0.2}, {1: 0.1}, {}, sampler=LearningFromPausedTrials(recorder))
    study.ask().suggest_float("x", 0, 1)
    assert recorder.seen == [[RUNNING, PRUNED, PRUNED, RUNNING, RUNNING]]
    assert [trial.number for trial in recorder.learning] == [1, 2]
    assert {trial.state for trial in study.get_trials()} == {RUNNING}


def test_promoted_trial_is_shown_as_running():
    recorder = Recorder()
    study = study_of({1: 0.9}, {1: 0.2}, {1: 0.1}, sampler=LearningFromPausedTrials(recorder))
    study.ask().suggest_float("x", 0, 1)
    assert recorder.seen == [[RUNNING, PRUNED, PRUNED, RUNNING]]


def test_trials_of_other_pruners_are_shown_as_they_are():
    recorder = Recorder()
    sampler, pruner = LearningFromPausedTrials(recorder), optuna.pruners.MedianPruner()
    study_of({1: 0.9}, {1: 0.2}, sampler=sampler, pruner=pruner).ask().suggest_float("x", 0, 1)
    assert recorder.seen == [[RUNNING] * 3]


@pytest.mark.parametrize(
    ("sampler", "pruner", "learns"),
    [
        (TPESampler(), AshaPruner(), True),
        (TPESampler(), optuna.pruners.MedianPruner(), False),
        (RandomSampler(), AshaPruner(), False),
    ],
)
def test_sampler_of_study_with_promotions_learns_from_paused_trials(sampler: BaseSampler, pruner, learns):
    study = study_of(sampler=sampler, pruner=pruner)
    wrapped = script_sampler(study, is_given=True, seed=0, workers=4)
    assert isinstance(wrapped.wrapped, LearningFromPausedTrials) is learns
    assert describe(wrapped) == f"sampler {type(sampler).__name__} of Optuna, reseeded per trial"


def mean_distance(wrap):
    """Return the mean distance of the last trials from the optimum. Most trials are paused."""
    study = optuna.create_study(direction="maximize", pruner=AshaPruner(), sampler=wrap(TPESampler(seed=0)))
    for _ in range(60):
        trial = study.ask()
        distance = abs(trial.suggest_float("x", 0, 1) - 0.7)
        for step in (1, 3, 9, 27):
            trial.report(-distance, step)
            if trial.should_prune():
                break
        else:
            study.tell(trial, -distance)
    distances = [abs(trial.params["x"] - 0.7) for trial in study.trials[30:]]
    return sum(distances) / len(distances)


def test_tpe_follows_paused_trials():
    """TPE is random until ten trials have finished. Random points have a mean distance of 0.29."""
    assert mean_distance(LearningFromPausedTrials) < 0.15
    assert mean_distance(lambda sampler: sampler) > 0.2
