"""One worker, in this process, on real databases."""

import threading
from importlib.util import find_spec

import numpy as np
import pytest
from optuna.trial import TrialState
from workers import StopAfter, expire_all, ledger, make_config

from hpo.config.study import StudyConfig
from hpo.data.cache import prepare
from hpo.models.predictor import unpack_layers
from hpo.models.trainer import Trainer
from hpo.runner import trial_runner as attempt
from hpo.runner import worker_loop as worker
from hpo.runner.limits import Limits
from hpo.search.samplers import propose
from hpo.storage import trial_store as trials
from hpo.storage.leases import MAX_FAILURES, Checkpoint, Progress


def test_a_worker_ends_the_budget_exactly(bench):
    spec = make_config()
    study = bench.join(spec)
    bench.worker(study, spec).run()
    assert [t.number for t in study.trials] == [0, 1, 2, 3]
    assert {t.state for t in study.trials} == {TrialState.COMPLETE}
    assert study.leases.unfinished() == []
    bench.worker(study, spec).run()
    assert len(study.trials) == 4


def test_workers_side_by_side_propose_and_reach_the_same_as_one_alone(bench):
    alone, together = make_config("alone"), make_config("together")
    study = bench.join(alone)
    bench.worker(study, alone).run()
    shared = [bench.join(together) for _ in range(3)]
    threads = [
        threading.Thread(target=bench.worker(study, together, owner=f"worker {i}").run)
        for i, study in enumerate(shared)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger(shared[0]) == ledger(study)


@pytest.mark.parametrize(
    ("questions", "backend"),
    [
        *((questions, "numpy") for questions in (3, 8, 20, 31)),
        pytest.param(
            20,
            "torch",
            marks=pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch: pip install 'hpo[torch]'"),
        ),
    ],
)
def test_a_stopped_trial_goes_on_under_its_own_number_to_the_same_bits(bench, questions, backend):
    undisturbed, disturbed = (make_config(name, train={"backend": backend}) for name in ("undisturbed", "disturbed"))
    study, stopped = bench.join(undisturbed), bench.join(disturbed)
    bench.worker(study, undisturbed).run()
    bench.worker(stopped, disturbed, stop=StopAfter(questions)).run()
    left = stopped.leases.unfinished()
    assert [progress.owned for progress in left] == [False]
    bench.worker(stopped, disturbed, owner="worker_b").run()
    assert ledger(stopped) == ledger(study)
    best = max(study.trials, key=lambda t: (t.value, -t.number)).number
    for one, other in zip(
        unpack_layers(study.leases.weights(best)), unpack_layers(stopped.leases.weights(best)), strict=True
    ):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_trains_is_warm_before_there_is_a_limit_or_a_trial(bench, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(worker, "warm_up", lambda spec: done.append(("warm up", spec)))
    monkeypatch.setattr(worker, "limit_memory", lambda limit: done.append(("limit", limit)))
    monkeypatch.setattr(worker.Worker, "run", lambda self: done.append("run"))
    spec = make_config()
    bench.join(spec)
    limits = Limits(30, memory=10**9)
    config = worker.WorkerConfig(bench.url, spec, prepare(spec, tmp_path / "s.toml"), 4, limits, verbose=False)
    worker._work(config, "worker_a", threading.Event(), attempt.SharedProgress())
    assert done == [("warm up", spec), ("limit", 10**9), "run"]


def test_a_trial_that_goes_on_repeats_no_epoch(bench, monkeypatch):
    trained = []
    epochs = Trainer.epochs

    def counted(training, after_step):
        for epoch in epochs(training, after_step):
            trained.append(epoch.number)
            yield epoch

    monkeypatch.setattr(Trainer, "epochs", counted)
    spec = make_config(trials=1)
    study = bench.join(spec)
    bench.worker(study, spec, stop=StopAfter(8)).run()
    assert trained[-1] < study.trials[0].params["epochs"]
    bench.worker(study, spec, owner="worker_b").run()
    assert trained == list(range(1, study.trials[0].params["epochs"] + 1))


def test_a_trial_that_kills_its_worker_each_time_is_failed_with_the_reason(bench):
    spec = make_config()
    study = bench.join(spec)
    trials.create(study, spec, propose(spec, []), 0, "worker_a")
    for _ in range(MAX_FAILURES - 1):
        study.leases.record_death("worker_a", "killed by SIGSEGV", epoch=4)
        assert study.leases.claim("worker_a") is not None
    study.leases.record_death("worker_a", "killed by SIGSEGV", epoch=4)
    bench.worker(study, spec, owner="worker_b").run()
    assert [t.state for t in study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert study.trials[0].user_attrs[trials.REASON] == "crashed 3 times: killed by SIGSEGV"


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 1), (3, 0), (3, 2), (5, 0)])
def test_a_trial_whose_worker_died_at_its_start_is_tried_again_after_a_pause_that_blames_nobody(bench, epoch, step):
    class Stop(threading.Event):
        def wait(self, timeout=None):
            pauses.append((timeout, worker_a._place.in_trial_code))
            return super().wait(0)

    pauses = []
    spec = make_config(trials=1)
    study = bench.join(spec)
    lease = trials.create(study, spec, propose(spec, []), 0, "worker_b")
    trials.give_back(study, lease, [], Checkpoint(3, 0.0, b"of old"))
    assert study.leases.claim("worker_b") is not None
    study.leases.record_death("worker_b", "killed by SIGKILL", epoch, step)
    worker_a = bench.worker(study, spec, stop=Stop())
    worker_a.run()
    assert pauses == ([(attempt.PAUSE_SECONDS, False)] if (epoch, step) == (3, 0) else [])
    assert study.trials[0].state == TrialState.COMPLETE


def test_who_is_stopped_in_the_pause_gives_the_trial_back_as_it_was(bench):
    stop = threading.Event()
    stop.wait = lambda timeout: stop.set() or True
    spec = make_config(trials=1)
    study = bench.join(spec)
    trials.create(study, spec, propose(spec, []), 0, "worker_b")
    study.leases.record_death("worker_b", "killed by SIGKILL", epoch=0)
    bench.worker(study, spec, stop=stop).run()
    assert study.leases.unfinished() == [Progress(0, 0, 2, owned=False)]


def test_a_worker_that_lost_its_lease_changes_nothing_and_goes_on(bench, monkeypatch):
    spec = make_config()
    study = bench.join(spec)
    end = trials.end
    successor = []

    def end_late(study, lease, *arguments, **keywords):
        if not successor:
            expire_all(study)
            successor.append(study.leases.claim("worker_b"))
            end(study, successor[0], TrialState.COMPLETE, value=0.125, weights=b"worker_b's")
        end(study, lease, *arguments, **keywords)

    monkeypatch.setattr(trials, "end", end_late)
    bench.worker(study, spec).run()
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 4
    assert study.trials[0].value == 0.125
    assert study.leases.interruption_stats().resumed == 1


def test_a_checkpoint_of_another_version_starts_the_trial_over(bench):
    undisturbed, disturbed = make_config("undisturbed"), make_config("disturbed")
    study, odd = bench.join(undisturbed), bench.join(disturbed)
    bench.worker(study, undisturbed).run()
    lease = trials.create(odd, disturbed, propose(disturbed, []), 0, "worker_a")
    trials.give_back(odd, lease, [], Checkpoint(5, 1.0, b"in another format"))
    bench.worker(odd, disturbed, owner="worker_b").run()
    assert ledger(odd) == ledger(study)


def test_every_trial_starts_from_weights_of_its_own(bench):
    spec = make_config(trials=2)
    fixed = {"learning_rate": 0.01, "regularization": 1e-4, "hidden_size": 8, "epochs": 5}
    spec = StudyConfig.model_validate(spec.model_dump() | {"train": fixed, "space": {}})
    study = bench.join(spec)
    bench.worker(study, spec).run()
    first, second = study.trials
    assert first.params == second.params == {}
    assert first.intermediate_values != second.intermediate_values


def test_divergence_ends_a_trial_as_pruned_with_the_reason(bench):
    spec = make_config(space={"learning_rate": {"low": 1e5, "high": 1e6, "log": True}}, trials=1)
    study = bench.join(spec)
    bench.worker(study, spec).run()
    assert study.trials[0].state == TrialState.PRUNED
    assert study.trials[0].user_attrs[trials.REASON].startswith("diverged: epoch 1")
