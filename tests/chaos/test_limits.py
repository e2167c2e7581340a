"""Trials that exceed the limits of a real launch."""

import contextlib
import sqlite3

from commands import TINY, Gates, hpo, ledger, strict_json, write_study


def reasons() -> dict[int, str]:
    """Return the stored reasons of trials that did not complete."""
    query = "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) WHERE key = 'reason'"
    with contextlib.closing(sqlite3.connect("hpo.db")) as connection:
        return dict(connection.execute(query))


def test_trial_over_timeout_is_pruned_with_last_value():
    # A trial at a gate never ends by itself, and the others take milliseconds.
    waiting = {2, 5}
    with Gates(waiting) as gates:
        arguments = ["launch", write_study(), "--workers", 2, "--no-dashboard", "--trial-timeout", "5s"]
        done = hpo(*arguments, **gates.environment)
    assert done.returncode == 0, done.stderr
    assert ledger() == [(number, "PRUNED" if number in waiting else "COMPLETE") for number in range(8)]
    assert reasons() == dict.fromkeys(waiting, '"timeout"')
    assert strict_json(done.stdout)["trials"]["failed"] == 0


def test_trial_over_memory_limit_fails_and_worker_continues():
    study = write_study(TINY.replace("{ low = 16, high = 64 }", "{ choices = [16, 10000000] }"))
    done = hpo("launch", study, "--workers", 1, "--no-dashboard", "--memory-limit", "500M")
    assert done.returncode == 1
    states = dict(ledger())
    failed = [number for number, state in states.items() if state == "FAIL"]
    assert 0 < len(failed) < 8
    assert reasons() == dict.fromkeys(failed, '"memory"')
    assert f"{', '.join(map(str, failed))} failed: memory, over its --memory-limit" in done.stderr
    assert "died" not in done.stderr
    counts = {"complete": 8 - len(failed), "pruned": 0, "failed": len(failed), "unfinished": 0}
    assert strict_json(done.stdout)["trials"] == counts
