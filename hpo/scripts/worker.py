"""``python -m hpo.scripts.worker``: a worker that runs a user's script up to one of its calls of ``optimize``."""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo.config.loader import load_config
from hpo.config.study import StudyConfig
from hpo.errors import HpoError, ScriptError
from hpo.fleet.job import Received, receive
from hpo.runner.function_objective import FunctionObjective, Hooks
from hpo.runner.limits import limit_memory
from hpo.runner.worker_loop import WorkerConfig, WorkerLoop
from hpo.scripts.interception import Interception
from hpo.scripts.jobs import ScriptJob
from hpo.scripts.records import OptimizeRecord, read_record, write_record
from hpo.scripts.script import Script
from hpo.scripts.session import OptimizeCall, ScriptEnded, ScriptSession
from hpo.search.pruning.asha_pruner import hpo_pruner
from hpo.search.pruning.pruners import NoPruner, Pruner
from hpo.search.sampling.reseeding import ReseededSampler
from hpo.search.sampling.script_sampler import script_sampler
from hpo.storage.database.connection import Database
from hpo.storage.study import Study, load_study
from hpo.storage.trial_cache import study_gone_error
from hpo.tuning.confirmation import confirmation_config


class WorkerSession(ScriptSession):
    """Session of a worker: it works for one call of ``optimize``, and ends the script there."""

    def __init__(self, job: ScriptJob, received: Received) -> None:
        database = Database.parse(job.storage)
        study_file = None if job.study_file is None else load_config(Path(job.study_file))
        script = Script(job.target, job.arguments, study_file)
        super().__init__(script, database, job.is_storage_given, received.note)
        self._job = job
        self._received = received

    def run(self) -> None:
        """Run the script, or the trials of the function.

        Raises:
            ScriptError: if the script ends before its call of ``optimize``.
        """
        try:
            if self._script.is_function:
                self.optimize(self.load_study(study_name=self._job.study), self._script.load_function())
            else:
                with Interception(self):
                    self._script.run()
        except ScriptEnded as ended:
            if ended.cause is not None:
                raise ended.cause from None
            return
        finally:
            self.close()
        raise ScriptError(f"{self._script.path}: call {self._job.call + 1} of optimize is missing in a worker")

    def _handle(self, call: OptimizeCall) -> None:
        """Run trials if this is the call of the worker."""
        if call.index < self._job.call:
            return
        self._show_all()
        try:
            with call.opened.study.database.translate_errors():
                self._work(call)
        except HpoError as error:
            raise ScriptEnded(error) from error
        raise ScriptEnded

    def delete_study(self, **_: Any) -> None:
        """Do nothing, because the launch has deleted the study."""

    def enqueue_trial(self, study: optuna.Study, *_: Any, **__: Any) -> None:
        """Do nothing, because the launch has added the trial."""

    def add_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Do nothing, because the launch has added the trial."""

    def _open(self, database: Database, name: str, directions: Sequence[StudyDirection]) -> None:
        config = self._config(name)
        self._add(name, load_study(database, config), config)

    def _load(self, database: Database, name: str) -> None:
        self._open(database, name, ())

    def _work(self, call: OptimizeCall) -> None:
        job, received, study, opened = self._job, self._received, call.study, call.opened
        if job.confirms:
            self._repeat(call)
            return
        if opened.study.key != job.study_key:
            raise study_gone_error()
        self._choose_pruner(study, job.pruner)

        def stop_study() -> None:
            record = read_record(study, call.number) or OptimizeRecord(base=0)
            write_record(study, call.number, OptimizeRecord(record.base, is_stopped=True))
            opened.study.store.close_budget()

        is_given, seed = opened.is_sampler_given(study), opened.config.study.seed
        sampler = script_sampler(study, is_given=is_given, seed=seed, workers=job.workers)
        objective = FunctionObjective(
            study,
            opened.storage,
            call.arguments.call(seed),
            sampler,
            space=self._space(),
            limits_memory=job.limits.memory is not None,
            hooks=Hooks(received.note, stop_study, received.turns.turn),
        )
        self._run_trials(opened.study, opened.config, objective, hpo_pruner(study.pruner, study.directions))

    def _repeat(self, call: OptimizeCall) -> None:
        """Run trials of the confirmation study, without the callbacks and the pruner of the script."""
        opened, memory = call.opened, self._job.limits.memory
        config = confirmation_config(opened.config)
        second = opened.study.find_sibling(config.study.name)
        if second is None or second.key != self._job.study_key:
            raise study_gone_error()
        # Only parameters that the trial in the search did not have are sampled.
        sampler = ReseededSampler(RandomSampler(seed=config.study.seed), config.study.seed)
        repeated = optuna.load_study(study_name=second.name, storage=opened.storage, pruner=NopPruner())
        function = replace(call.arguments.call(config.study.seed), callbacks=())
        space, limits_memory = self._space(), memory is not None
        hooks = Hooks(self._received.note)
        objective = FunctionObjective(
            repeated,
            opened.storage,
            function,
            sampler,
            space=space,
            limits_memory=limits_memory,
            hooks=hooks,
        )
        # The function may call study.stop of the search, which has no effect on the repeats.
        call.study._thread_local.in_optimize_loop = True  # Optuna checks it
        self._run_trials(second, config, objective, NoPruner())

    def _run_trials(self, study: Study, config: StudyConfig, objective: FunctionObjective, pruner: Pruner) -> None:
        job, received = self._job, self._received
        worker_config = WorkerConfig(
            database=study.database,
            config=config,
            objective=objective,
            budget=0,
            limits=job.limits,
            verbose=job.verbose,
            pruner=pruner,
            enqueued=job.enqueued,
            max_failures=job.max_failures,
            on_end=objective.after_trial,
        )
        if job.limits.memory is not None:
            limit_memory(job.limits.memory)
        # The script may have set handlers.
        received.handle_signals()
        WorkerLoop(study, worker_config, received.owner, received.stop, received.progress).run()


def main() -> None:
    """Run the worker whose job is in the descriptor of the first argument."""
    received = receive(int(sys.argv[1]))
    job = ScriptJob.from_json(received.job)
    with received.errors_sent(verbose=job.verbose):
        try:
            WorkerSession(job, received).run()
        except Exception as error:
            if not isinstance(error, HpoError):
                # The log has what the launch shortens.
                traceback.print_exc()
            raise


if __name__ == "__main__":
    main()
