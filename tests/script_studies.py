"""Studies of scripts, and workers in this process that run a function of a user."""

import threading
from collections.abc import Sequence

import optuna
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from workers import TIMINGS

from hpo.config.study import StudyConfig
from hpo.runner.function_objective import Callback, Function, FunctionCall, FunctionObjective
from hpo.runner.limits import Limits
from hpo.runner.trial_runner import SharedProgress
from hpo.runner.worker_loop import WorkerConfig, WorkerLoop
from hpo.scripts.script import Script
from hpo.scripts.session import script_config
from hpo.search.pruning.pruners import NoPruner
from hpo.search.sampling.reseeding import ReseededSampler
from hpo.storage.database.connection import Database
from hpo.storage.study import Study, open_or_create_study

CONFIG = script_config(Script("train.py", ("--fast",)), "train")


def open_script_study(
    database: Database,
    *directions: StudyDirection,
    config: StudyConfig = CONFIG,
    fingerprint: str = "f" * 64,
) -> Study:
    """Open or create a study of a script. The test closes it."""
    return open_or_create_study(database, config, fingerprint, None, directions or (StudyDirection.MINIMIZE,))


def run_function(
    study: Study,
    function: Function,
    trials: int,
    config: StudyConfig = CONFIG,
    catch: tuple[type[BaseException], ...] = (),
    callbacks: Sequence[Callback] = (),
) -> optuna.Study:
    """Run a function until the study has this number of trials; return the study as an object of Optuna."""
    storage, seed = study.leased_storage(), config.study.seed
    script_study = optuna.load_study(study_name=study.name, storage=storage)
    call = FunctionCall(function, catch, callbacks, seed=seed)
    objective = FunctionObjective(script_study, storage, call, ReseededSampler(RandomSampler(seed=seed), seed))
    worker_config = WorkerConfig(
        study.database,
        config,
        objective,
        trials,
        Limits(30.0),
        verbose=False,
        timings=TIMINGS,
        pruner=NoPruner(),
        on_end=objective.after_trial,
    )
    WorkerLoop(study, worker_config, "worker_a", threading.Event(), SharedProgress()).run()
    return script_study
