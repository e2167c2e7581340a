"""Sampler of a script in several processes: the same parameters for the same trial."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from script_samplers import LIGHT_SAMPLERS, make_script_sampler, run_trial

from hpo.search.sampling.reseeding import reseeded

pytestmark = pytest.mark.slow

# Prints the parameters of the next trial of each study.
PROPOSE = """
import json, sys, optuna
from script_samplers import make_script_sampler, run_trial
from hpo.search.sampling.reseeding import reseeded

url, *names = sys.argv[1:]
params = []
for name in names:
    sampler = reseeded(make_script_sampler(name, None), 5, workers=4)
    params.append(run_trial(optuna.load_study(study_name=name, storage=url, sampler=sampler)))
print(json.dumps(params))
"""


def propose(path, names, hash_seed):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", PROPOSE, f"sqlite:///{path}", *names]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "names",
    [
        ["tpe-group", "qmc-scrambled"],
        pytest.param(LIGHT_SAMPLERS, marks=pytest.mark.slow),
        pytest.param(["gp"], marks=pytest.mark.slow),
    ],
)
def test_processes_propose_the_same_parameters(names, tmp_path):
    """One process has run the study, two others join it. In each, sets have another order."""
    if "gp" in names:
        pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[gp]'")
    paths = [tmp_path / f"{copy}.db" for copy in range(3)]
    storage = optuna.storages.RDBStorage(f"sqlite:///{paths[0]}")
    studies = []
    for name in names:
        sampler = reseeded(make_script_sampler(name, None), 5, workers=4)
        study = optuna.create_study(study_name=name, storage=storage, sampler=sampler)
        study.set_user_attr("conditional", name in {"tpe-group", "nsgaii"})
        for _ in range(8):
            run_trial(study)
        studies.append(study)
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    expected = [run_trial(study) for study in studies]
    storage.engine.dispose()
    assert propose(paths[1], names, "1") == expected
    assert propose(paths[2], names, "2") == expected


def test_parameters_are_stored_in_the_order_of_their_suggestion(tmp_path):
    """The replay of a random sampler needs this order."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    trial = optuna.create_study(storage=storage).ask()
    names = ["c", "a", "d", "b"]
    for name in names:
        trial.suggest_float(name, 0, 1)
    fresh = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    assert list(fresh.get_trial(trial._trial_id).distributions) == names
    for opened in (storage, fresh):
        opened.engine.dispose()


@pytest.mark.slow
def test_restarts_do_not_change_parameters_of_gaussian_process():
    """A fit that started from the last fit of the process would differ in the last digits."""
    pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[gp]'")

    def run(restarts):
        study = optuna.create_study()
        for number in range(10):
            if number == 0 or restarts:
                study.sampler = reseeded(make_script_sampler("gp", 3), 5, workers=4)
            trial = study.ask()
            study.tell(trial, sum(trial.suggest_float(name, -3, 3) ** 2 for name in "xy"))
        return [trial.params for trial in study.trials]

    assert run(restarts=True) == run(restarts=False)
