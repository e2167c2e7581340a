"""Trials that take too long or too much, under the real command."""

import contextlib
import sqlite3

from commands import TINY, hpo, ledger, strict_json, write_study


def reasons() -> dict[int, str]:
    """Why trials did not complete."""
    query = "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) WHERE key = 'reason'"
    with contextlib.closing(sqlite3.connect("hpo.db")) as connection:
        return dict(connection.execute(query))


def test_a_trial_that_takes_too_long_is_pruned_with_its_last_value():
    study = write_study(TINY.replace("{ low = 5, high = 20 }", "{ choices = [10, 10000000] }"))
    done = hpo("launch", study, "--workers", 2, "--no-dashboard", "--trial-timeout", "1s")
    assert done.returncode == 0, done.stderr
    states = dict(ledger())
    assert set(states.values()) == {"COMPLETE", "PRUNED"}
    assert reasons() == {number: '"timeout"' for number, state in states.items() if state == "PRUNED"}
    assert strict_json(done.stdout)["trials"]["failed"] == 0


def test_a_trial_that_takes_too_much_memory_fails_and_its_worker_goes_on():
    study = write_study(TINY.replace("{ low = 16, high = 64 }", "{ choices = [16, 10000000] }"))
    done = hpo("launch", study, "--workers", 1, "--no-dashboard", "--memory-limit", "500M")
    assert done.returncode == 1
    states = dict(ledger())
    failed = [number for number, state in states.items() if state == "FAIL"]
    assert 0 < len(failed) < 8
    assert reasons() == dict.fromkeys(failed, '"memory"')
    assert f"trial {failed[0]} failed: memory, over its --memory-limit" in done.stderr
    assert "died" not in done.stderr
    assert strict_json(done.stdout)["trials"] == {"complete": 8 - len(failed), "pruned": 0, "failed": len(failed)}


def test_a_limit_that_leaves_no_room_is_refused():
    done = hpo("launch", write_study(), "--workers", 1, "--no-dashboard", "--quiet", "--memory-limit", "1M")
    assert done.returncode == 1
    assert "--memory-limit 1M: a worker takes" in done.stderr.splitlines()[-1]
    assert ledger() == []
