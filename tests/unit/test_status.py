"""Status of a study, from its trials and leases."""

from datetime import datetime
from typing import ClassVar

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.fleet.status import Leader, RunningTrial, StudyStatus, study_status
from hpo.search.space import Branch, ConditionalSpace
from hpo.storage.study import best_trial
from hpo.storage.tables.leases import ActiveTrial
from hpo.storage.trial_cache import TrialView


class FakeObjective:
    """Objective with one step for each epoch."""

    metric = "validation accuracy"
    ticks = True
    space: ClassVar = {"epochs": None}

    def n_steps(self, params) -> int:
        return params["epochs"]


def trial(number, state=TrialState.RUNNING, value=None, epochs=100, reported=()):
    now = datetime(2026, 1, 1)
    return FrozenTrial(
        number=number,
        state=state,
        value=value,
        datetime_start=now,
        datetime_complete=now if state.is_finished() else None,
        params={"epochs": epochs},
        distributions={"epochs": IntDistribution(1, 500)},
        user_attrs={},
        system_attrs={},
        intermediate_values=dict(reported),
        trial_id=number,
    )


def complete(number, value):
    return trial(number, TrialState.COMPLETE, value)


def owned(number, epoch=0, promoted=False):
    return ActiveTrial(number, epoch, attempt=1, owned=True, promoted=promoted)


def view(*trials, paused=()):
    return TrialView(list(trials), dict.fromkeys(paused, 1))


def status_of(budget, trials, active=()):
    best = best_trial(trials.trials)
    return study_status(
        FakeObjective(), budget, trials, list(active), best_trained=None if best is None else best.number
    )


def test_each_state_is_counted():
    trials = [
        complete(0, 0.5),
        trial(1, TrialState.PRUNED, 0.1),
        trial(2, TrialState.FAIL),
        trial(3),
        complete(4, 0.6),
        trial(5, TrialState.WAITING),
        trial(6, TrialState.PRUNED),
        trial(7, TrialState.PRUNED),
    ]
    status = status_of(20, view(*trials), [])
    assert (status.complete, status.pruned, status.failed, status.finished, status.budget) == (2, 3, 1, 6, 20)


def test_budget_is_at_least_number_of_trials():
    assert status_of(1, view(complete(0, 0.5), complete(1, 0.5)), []).budget == 2


def test_study_without_trials_is_empty():
    assert status_of(3, view(), []) == StudyStatus(
        budget=3, complete=0, pruned=0, failed=0, paused=0, promoted=0, best=None, running=[]
    )


@pytest.mark.parametrize(
    ("values", "best"), [([0.5, 0.7, 0.6], 1), ([0.5, 0.7, 0.7], 1), ([0.7, 0.7, 0.7], 0), ([0.0], 0)]
)
def test_best_is_first_trial_of_highest_value(values, best):
    trials = [complete(number, value) for number, value in enumerate(values)]
    assert status_of(9, view(*trials), []).best.number == best
    assert status_of(9, view(*trials[::-1]), []).best.number == best


def test_best_is_complete():
    trials = [trial(0, TrialState.PRUNED, 0.9), trial(1, TrialState.FAIL), trial(2, reported=[(1, 0.9)])]
    assert status_of(9, view(*trials), []).best is None
    assert status_of(9, view(*trials, complete(3, 0.1)), []).best.number == 3


def test_infinite_value_is_not_shown_as_best():
    # The view shows no infinite value.
    trials = view(complete(0, None), complete(1, 0.5))
    assert study_status(FakeObjective(), 2, trials, [], best_trained=0).best is None


def test_running_trial_has_length_and_last_value():
    trials = [
        complete(0, 0.5),
        trial(1, epochs=200, reported=[(1, 0.2), (9, 0.4)]),
        trial(2, epochs=300),
    ]
    status = status_of(9, view(*trials), [owned(1, epoch=12), owned(2, epoch=3)])
    assert status.running == [RunningTrial(1, 12, 200, 0.4), RunningTrial(2, 3, 300, None)]


def test_newer_report_gives_step():
    status = status_of(9, view(trial(0, reported=[(27, 0.4)])), [owned(0, epoch=12)])
    assert status.running == [RunningTrial(0, 27, 100, 0.4)]


def test_unowned_trial_is_not_running():
    abandoned = ActiveTrial(0, 5, attempt=1, owned=False)
    assert status_of(9, view(trial(0)), [abandoned]).running == []


def test_trial_newer_than_view_is_left_out():
    assert status_of(9, view(trial(0)), [owned(0), owned(1)]).running == [RunningTrial(0, 0, 100, None)]


def test_paused_and_promoted_trials_are_counted():
    trials = [complete(0, 0.5), trial(1), trial(2), trial(3), trial(4), trial(5)]
    waiting = [ActiveTrial(number, 9, attempt=1, owned=False, promoted=number == 2) for number in (1, 2)]
    left = ActiveTrial(5, 9, attempt=3, owned=False, promoted=True)
    status = status_of(20, view(*trials, paused={1, 2}), [*waiting, owned(3), owned(4, 9, promoted=True), left])
    assert (status.complete, status.paused, status.promoted, status.finished, status.tried) == (1, 2, 2, 1, 5)
    assert [running.number for running in status.running] == [3, 4]


def test_trial_promoted_after_view_is_paused():
    status = status_of(9, view(trial(0), paused={0}), [owned(0, 9, promoted=True)])
    assert (status.paused, status.promoted, status.tried, status.running) == (1, 0, 1, [])


@pytest.mark.parametrize("paused", [(), (1,)])
def test_highest_report_leads_before_a_trial_is_complete(paused):
    trials = [trial(0, reported=[(1, 0.9)]), trial(1, reported=[(1, 0.2), (9, 0.98), (18, 0.97)])]
    leader = Leader(1, 9, 0.98, "paused" if paused else "running")
    assert status_of(9, view(*trials, paused=paused)).leader == leader
    assert status_of(9, view(*trials, complete(2, 0.1), paused=paused)).leader is None


def test_pruned_trial_can_lead():
    pruned = trial(0, TrialState.PRUNED, 0.5, reported=[(3, 0.5)])
    assert status_of(9, view(pruned)).leader == Leader(0, 3, 0.5, "pruned")


def test_trial_with_parameters_of_its_model_is_running():
    class TwoModels(FakeObjective):
        space: ClassVar = ConditionalSpace(
            {name: Branch({f"{name}.epochs": IntDistribution(1, 9)}, 9, None) for name in ("net", "trees")}
        )

        def n_steps(self, params) -> int:
            return params["net.epochs"]

    with_params, without = trial(0), trial(1)
    with_params.params, without.params = {"model": "net", "net.epochs": 3}, {"model": "net"}
    status = study_status(TwoModels(), 5, view(with_params, without), [owned(0), owned(1)])
    assert [running.number for running in status.running] == [0]
