"""Databases that refuse connections or writes or are removed, and resources of a launch that do not suffice."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
from commands import ENDLESS, Gates, count_finished, hpo, read_until, started, strict_json, write_study
from factories import execute, make_database

from benchmarks.postgres import Postgres

pytestmark = pytest.mark.slow

NOBODY = 65534
FEW_TRIALS = ("--trials", 2, "--no-dashboard", "--quiet")


def create_role(postgres: Postgres, name: str, options: str = "") -> None:
    postgres.execute(f"DROP ROLE IF EXISTS {name}")
    postgres.execute(f"CREATE ROLE {name} LOGIN {options}")


def test_workers_with_connection_train(postgres):
    url = postgres.new_database()
    create_role(postgres, "limited", "CONNECTION LIMIT 4")
    postgres.execute(f"ALTER DATABASE {url.rpartition('/')[2]} OWNER TO limited")
    arguments = ["--workers", 6, "--no-dashboard", "--storage", url.replace("hpo@", "limited@")]
    with Gates([0]) as gates, started("launch", write_study(), *arguments, **gates.environment) as process:
        line = read_until(process, "the database has no connection for")
        assert "the other workers go on; use fewer --workers, or raise the limit of connections" in line
        gates.open(0)
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "no connection for" not in stderr
    assert strict_json(stdout)["trials"]["complete"] == 8
    postgres.execute(f"ALTER DATABASE {url.rpartition('/')[2]} OWNER TO hpo")
    assert count_finished(url) == 8


@pytest.fixture(params=["may only select", "read-only transactions"])
def reader_url(postgres, request):
    """Return the URL of a study for a user who may not write."""
    url = postgres.new_database()
    create_role(postgres, "reader")
    done = hpo("launch", write_study(), *FEW_TRIALS, "--storage", url)
    assert done.returncode == 0, done.stderr
    database = make_database(url)
    rights = "SELECT" if request.param == "may only select" else "ALL"
    execute(database, f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO reader")
    if rights == "ALL":
        postgres.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    yield url.replace("hpo@", "reader@")
    execute(database, "DROP OWNED BY reader")


def test_reader_exports_and_cannot_launch(reader_url):
    done = hpo("export", "tiny.toml", "--storage", reader_url)
    assert done.returncode == 0, done.stderr
    assert strict_json(done.stdout)["trials"]["complete"] == 2
    with started("dashboard", "--storage", reader_url) as process:
        address = re.search(r"http://\S+", read_until(process, "http://"))[0]
        with urllib.request.urlopen(f"{address}/api/studies") as reply:
            assert json.load(reply)["study_summaries"][0]["study_name"] == "tiny"
    done = hpo("launch", "tiny.toml", "--trials", 3, "--no-dashboard", "--storage", reader_url)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hpo: cannot use postgresql://reader@")
    assert "the study needs a user who may write" in last
    assert "Traceback" not in done.stderr


@pytest.fixture
def open_folder(monkeypatch):
    """Enter a folder that each user can read. Prepared data are private."""
    folder = Path(tempfile.mkdtemp(prefix="hpo-read-only-"))
    folder.chmod(0o755)
    monkeypatch.chdir(folder)
    for name in ("first", "second"):
        Path(name).mkdir()
        Path(name).chmod(0o777)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


# The user may have no access to the modules, so the first export imports them.
EXPORT_AS_NOBODY = f"""
import contextlib, io, os
from hpo.export import cli, export
os.environ["HPO_DATA_DIR"] = "first"
with contextlib.redirect_stdout(io.StringIO()):
    export.main(["tiny.toml", "--output", "first.json"], standalone_mode=False)
os.environ["HPO_DATA_DIR"] = "second"
os.seteuid({NOBODY})
cli.main(export)
"""


def test_export_reads_file_in_folder_of_other_user(open_folder):
    done = hpo("launch", write_study(), *FEW_TRIALS)
    assert done.returncode == 0, done.stderr
    before = Path("hpo.db").read_bytes()
    if is_root := os.geteuid() == 0:
        command = [sys.executable, "-c", EXPORT_AS_NOBODY, "tiny.toml"]
    else:
        command = [sys.executable, "-m", "hpo.export", "tiny.toml"]
        Path("hpo.db").chmod(0o444)
        open_folder.chmod(0o555)
    exported = subprocess.run(command, capture_output=True, text=True, check=False)
    assert exported.returncode == 0, exported.stderr
    assert strict_json(exported.stdout) == strict_json(done.stdout)
    assert Path("hpo.db").read_bytes() == before
    assert is_root or not os.access("hpo.db", os.W_OK)


def test_removed_file_ends_launch():
    arguments = ["launch", write_study(ENDLESS), "--workers", 2, "--no-dashboard"]
    with started(*arguments) as process:
        read_until(process, "running")
        Path("hpo.db").unlink()
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (1, "")
    assert "was deleted, moved or replaced while it was in use" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert not Path("hpo.db").exists()


def test_launch_runs_in_folder_locked_by_flock():
    descriptor = os.open(".", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        done = hpo("launch", write_study(), *FEW_TRIALS)
    finally:
        os.close(descriptor)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("limit", ["1M", "20M"])
def test_refused_memory_limit_leaves_nothing(limit):
    study = write_study()
    before = set(Path().rglob("*"))
    done = hpo("launch", study, "--no-dashboard", "--memory-limit", limit)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"hpo: --memory-limit {limit}: a worker takes ")
    assert done.stderr.count("\n") == 1
    assert set(Path().rglob("*")) == before


def test_launch_with_few_open_files_names_limit():
    launch = [sys.executable, "-m", "hpo.launch", write_study(ENDLESS), "--workers", "20", "--no-dashboard"]
    # The limit holds for the launch only, because this process can have more open files.
    command = ["bash", "-c", 'ulimit -n 24; exec "$@"', "bash", *launch]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hpo: Too many open files")
    assert "ulimit -n" in last
