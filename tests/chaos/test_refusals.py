"""Databases that refuse a statement of a launch that runs."""

import signal

import pytest
from commands import ENDLESS, FEW, SHORT, Gates, contents, hpo, read_until, started, write_study
from factories import execute, make_database

CHANGES = {
    "missing table": "DROP TABLE hpo_checkpoints",
    "missing column": "ALTER TABLE hpo_leases DROP COLUMN seconds",
    "missing parameters": "DROP TABLE trial_intermediate_values",
}
POSTGRESQL_CHANGES = CHANGES | {
    # Without the lock, a worker's transaction that waits for this table can block the deletion, a deadlock.
    "missing parameters": "LOCK TABLE hpo_leases IN EXCLUSIVE MODE; DROP TABLE trial_intermediate_values",
    "no right to insert": "REVOKE INSERT ON hpo_checkpoints FROM {role}",
    "no right to update": "REVOKE UPDATE ON hpo_leases FROM {role}",
    "trigger": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'checkpoint %% refused', NEW.number; END $$;
        CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON hpo_checkpoints FOR EACH ROW EXECUTE FUNCTION refuse()
    """,
    "value too long": "ALTER TABLE hpo_checkpoints ADD CHECK (length(state) < 10) NOT VALID",
}


def end_of_launch(url: str, owner_url: str, change: str) -> str:
    """Run a launch, change the database, and return the last line of the launch."""
    arguments = ["launch", write_study(ENDLESS), "--workers", 2, "--no-dashboard", "--storage", url]
    with started(*arguments) as process:
        read_until(process, "running")
        execute(make_database(owner_url), change)
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (1, "")
    assert "Traceback" not in stderr
    assert "a bug in hpo" not in stderr
    return stderr.splitlines()[-1]


def check_last_line(last: str, url: str, change: str, *causes: str) -> None:
    """Check that a line tells one of the causes, and what to do."""
    if change == "missing column":
        # A worker that starts after the change misses the column when it opens the study.
        causes = (*causes, f"{url} was used by another version of hpo")
    assert any(cause in last for cause in causes), last
    assert "nothing is lost: remove the cause, then the same command goes on" in last


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_refusal_of_sqlite_ends_launch(tmp_path, change):
    url = f"sqlite:///{tmp_path}/hpo.db"
    last = end_of_launch(url, url, CHANGES[change])
    check_last_line(last, url, change, f"cannot use {url}: no such", "has no column")


@pytest.mark.slow
@pytest.mark.parametrize("change", POSTGRESQL_CHANGES)
def test_refusal_of_postgresql_ends_launch(role, change):
    last = end_of_launch(role.url, role.owner_url, POSTGRESQL_CHANGES[change].replace("{role}", role.name))
    check_last_line(last, role.url, change, f"cannot use {role.url}: ")


@pytest.mark.slow
def test_launch_goes_on_after_cause_is_removed(tmp_path):
    url = f"sqlite:///{tmp_path}/hpo.db"
    end_of_launch(url, url, "DROP TABLE hpo_checkpoints")
    with started("launch", write_study(ENDLESS), "--workers", 1, "--no-dashboard", "--storage", url) as process:
        read_until(process, "running")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert "no such table" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize(("right", "table"), [("UPDATE", "hpo_leases"), ("DELETE", "hpo_checkpoints")])
def test_launch_goes_on_after_right_is_granted_again(role, undisturbed, right, table):
    study, database = write_study(SHORT), make_database(role.owner_url)
    arguments = ["launch", study, "--workers", 2, "--trials", FEW, "--no-dashboard", "--storage", role.url]
    with Gates([0, 1]) as gates, started(*arguments, **gates.environment) as process:
        read_until(process, "running")
        execute(database, f"REVOKE {right} ON {table} FROM {role.name}")
        gates.open(0, 1)
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert f"permission denied for table {table}" in stderr.splitlines()[-1]
    execute(database, f"GRANT {right} ON {table} TO {role.name}")
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents(role.owner_url) == undisturbed[:FEW]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["statement_timeout = '1s'", "lock_timeout = '100ms'", "idle_session_timeout = '200ms'"],
        ["default_transaction_isolation = 'serializable'"],
        ["default_transaction_isolation = 'repeatable read'", "default_transaction_deferrable = on"],
    ],
)
def test_settings_of_role_change_no_trial(role, undisturbed, settings):
    for setting in settings:
        execute(make_database(role.owner_url), f"ALTER ROLE {role.name} SET {setting}")
    arguments = ["launch", write_study(SHORT), "--workers", 4, "--trials", FEW, "--no-dashboard", "--storage", role.url]
    done = hpo(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert contents(role.owner_url) == undisturbed[:FEW]
