"""Confirmation of the best trials, and enqueued parameters, in the real command."""

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import statistics
from pathlib import Path

import optuna
import pytest
from commands import (
    TINY,
    Gates,
    count_finished,
    descendants,
    hooked,
    hpo,
    read_until,
    started,
    strict_json,
    wait_for_end,
    wait_until,
    workers,
    write_study,
)

GIVEN = {"learning_rate": 0.05, "regularization": 1e-5, "hidden_size": 20, "epochs": 12}
QUERY = """
SELECT number, state, value FROM trials JOIN studies USING (study_id) LEFT JOIN trial_values USING (trial_id)
WHERE study_name = ? ORDER BY number
"""
SEARCH, CONFIRMATION = "tiny", "tiny:confirmation"


def rows(study, path="hpo.db"):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(QUERY, [study]).fetchall()


def numbers_and_states(study):
    return [row[:2] for row in rows(study)]


def launch(*arguments, **environment):
    return hpo("launch", write_study(), "--workers", 2, "--no-dashboard", *arguments, **environment)


def complete(count):
    return [(number, "COMPLETE") for number in range(count)]


@pytest.mark.slow
def test_confirmation_mean_chooses_best_trial():
    unconfirmed = launch("--confirm", 0)
    assert strict_json(unconfirmed.stdout)["confirmation"] is None
    assert rows(CONFIRMATION) == []
    done = launch("--confirm", 2)
    assert done.returncode == 0, done.stderr
    assert "confirmation of tiny: 6/6 trials finished" in done.stderr
    assert (numbers_and_states(SEARCH), numbers_and_states(CONFIRMATION)) == (complete(8), complete(6))
    best = strict_json(done.stdout)
    confirmation = best["confirmation"]
    by_value = sorted(rows(SEARCH), key=lambda row: (-row[2], row[0]))
    assert {trial["trial"] for trial in confirmation["trials"]} == {row[0] for row in by_value[:2]}
    values = [row[2] for row in rows(CONFIRMATION)]
    assert sorted(itertools.chain(*(trial["values"] for trial in confirmation["trials"]))) == sorted(values)
    means = [trial["mean"] for trial in confirmation["trials"]]
    assert means == sorted((statistics.fmean(values[:3]), statistics.fmean(values[3:])), reverse=True)
    assert best["trial"] == confirmation["trials"][0]["trial"]
    assert confirmation["mean"] == means[0]
    assert best["metrics"]["validation_accuracy"] == confirmation["trials"][0]["validation_accuracy"]
    assert best["trials"] == {"complete": 8, "pruned": 0, "failed": 0, "unfinished": 0}

    again = launch("--confirm", 2)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "trials finished" not in again.stderr
    assert hpo("export", "tiny.toml").stdout == done.stdout
    assert launch("--confirm", 0).stdout == done.stdout

    more = launch("--confirm", 3, "--trials", 10)
    assert more.returncode == 0, more.stderr
    assert numbers_and_states(SEARCH) == complete(10)
    assert rows(CONFIRMATION)[:6] == [(number, "COMPLETE", value) for number, value in enumerate(values)]
    assert {len(trial["values"]) for trial in strict_json(more.stdout)["confirmation"]["trials"]} == {3}


@pytest.mark.slow
def test_interrupted_confirmation_resumes_to_same_json():
    undisturbed = launch("--confirm", 3, "--storage", "sqlite:///undisturbed.db")
    arguments = ["launch", write_study(), "--workers", 2, "--no-dashboard", "--confirm", 3]
    # Only the confirmation has a trial 8.
    with Gates([8]) as gates, started(*arguments, **gates.environment) as process:
        # All 8 trials of the search and 8 of the confirmation.
        wait_until(process, lambda: gates.reached == {8} and count_finished("sqlite:///hpo.db") == 16)
        for worker in workers(process.pid):
            os.kill(worker, signal.SIGKILL)
        read_until(process, "died in trial ", " seed 3/3")
        processes = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        read_until(process, "stopping")
        wait_for_end(process, processes)
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    assert "confirmation of tiny: 8 of 9 trials are finished" in stderr
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert rows(CONFIRMATION) == rows(CONFIRMATION, "undisturbed.db")
    assert strict_json(done.stdout) | {"created": ""} == strict_json(undisturbed.stdout) | {"created": ""}


@pytest.mark.slow
def test_two_launches_confirm_different_numbers():
    study = write_study()
    with (
        started("launch", study, "--workers", 1, "--confirm", 1, "--output", "a", "--no-dashboard") as first,
        started("launch", study, "--workers", 1, "--confirm", 3, "--output", "b", "--no-dashboard") as second,
    ):
        outputs = [process.communicate() for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], outputs
    assert (numbers_and_states(SEARCH), numbers_and_states(CONFIRMATION)) == (complete(8), complete(9))
    assert len(strict_json(outputs[1][0])["confirmation"]["trials"]) == 3


@pytest.mark.slow
def test_crashing_confirmation_trial_is_reported():
    assert launch("--confirm", 0).returncode == 0
    # The search is finished, so that only the confirmation has a trial 1 to train.
    done = launch("--confirm", 1, **hooked("crash_trial(1, step=2, exit_code=7)"))
    assert done.returncode == 1
    best = strict_json(done.stdout)["trial"]
    assert f"hpo: confirmation trial {best} seed 2/3 failed: crashed 3 times: exited with 7" in done.stderr
    assert f"died in trial {best} seed 2/3" in done.stderr
    assert numbers_and_states(CONFIRMATION) == [(0, "COMPLETE"), (1, "FAIL"), (2, "COMPLETE")]
    confirmation = strict_json(done.stdout)["confirmation"]
    assert (confirmation["seeds"], len(confirmation["values"])) == (3, 2)


@pytest.mark.slow
def test_confirmation_of_deleted_study_is_not_in_the_way():
    assert launch("--trials", 2, "--confirm", 1).returncode == 0
    optuna.delete_study(study_name=SEARCH, storage="sqlite:///hpo.db")
    changed = write_study(TINY.replace("momentum = 0.9", "momentum = 0.5"))
    assert rows(CONFIRMATION) == []
    done = hpo("launch", changed, "--trials", 2, "--no-dashboard", "--confirm", 1)
    assert done.returncode == 0, done.stderr
    assert len(strict_json(done.stdout)["confirmation"]["values"]) == 3
    assert numbers_and_states(CONFIRMATION) == complete(3)


# Enqueued parameters


def params_of(number, path="hpo.db"):
    study = optuna.load_study(study_name=SEARCH, storage=f"sqlite:///{path}")
    return study.trials[number].params


@pytest.mark.slow
def test_enqueued_parameters_are_tried_once():
    found = launch("--trials", 3, "--storage", "sqlite:///first.db")
    Path("best.json").write_text(found.stdout)
    Path("given.json").write_text(json.dumps(GIVEN | {"momentum": 0.5}))
    files = ["--enqueue", "best.json", "--enqueue", "given.json", "--enqueue", "best.json"]
    done = launch("--trials", 4, *files)
    assert done.returncode == 0, done.stderr
    assert "given.json: momentum = 0.5 is ignored: this study trains with 0.9" in done.stderr
    best = strict_json(found.stdout)["params"]
    assert params_of(0) == {key: best[key] for key in GIVEN}
    assert params_of(1) == GIVEN
    # The study has already tried the parameters of the first file, so it proposes its usual trial 2.
    assert params_of(2) == params_of(2, "first.db")
    again = launch("--trials", 4, *files)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert numbers_and_states(SEARCH) == complete(4)


@pytest.mark.slow
def test_enqueued_parameters_beyond_budget_are_reported():
    Path("given.json").write_text(json.dumps(GIVEN))
    assert launch("--trials", 2).returncode == 0
    done = launch("--trials", 2, HPO_ENQUEUE="given.json")
    assert done.returncode == 0
    assert "no trial is left for 1 of the parameters to try first; raise --trials" in done.stderr
    assert numbers_and_states(SEARCH) == complete(2)
    assert launch("--trials", 3, HPO_ENQUEUE="given.json").returncode == 0
    assert params_of(2) == GIVEN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "given.json: no such file"),
        ("{,}", "given.json: not JSON"),
        (json.dumps({"params": {"learning_rate": 0.05}}), "given.json: regularization: missing"),
        (json.dumps(GIVEN | {"epochs": 21}), "given.json: epochs: a whole number from 5 to 20 is allowed, not 21"),
    ],
)
def test_invalid_enqueued_file_prints_one_line(content, message):
    if content is not None:
        Path("given.json").write_text(content)
    done = launch("--enqueue", "given.json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"hpo: {message}")
    assert not Path("hpo.db").exists()
    assert not Path("results").exists()
