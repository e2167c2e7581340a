"""Job of the workers of a script: its JSON."""

import json
from dataclasses import replace

import pytest

from hpo.runner.limits import Limits
from hpo.scripts.jobs import ScriptJob

JOB = ScriptJob(
    target="my train.py",
    arguments=("--epochs", "5", "ä"),
    storage="postgresql://user:password@host/db",
    is_storage_given=True,
    study="s",
    study_key="key",
    study_file=None,
    enqueued=({"x": 0.5, "kind": "a", "deep": None},),
    call=2,
    workers=3,
    pruner=None,
    limits=Limits(30.0, 1.5, 10**9),
    max_failures=3,
    verbose=False,
)


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        replace(JOB, arguments=(), enqueued=(), study_file="s.toml", pruner="asha"),
        replace(JOB, limits=Limits(60.0)),
    ],
)
def test_job_is_the_same_after_json(job):
    assert ScriptJob.from_json(json.loads(json.dumps(job.to_json()))) == job
