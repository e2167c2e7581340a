"""Database URLs: parsing, and forms without passwords for messages and commands."""

import difflib
import shlex
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from hpo.errors import StorageError

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}

_FORMS = "sqlite:///FILE.db or postgresql://USER:PASSWORD@HOST/DATABASE"
_ENCODE = "write @ as %40, / as %2F, ? as %3F, # as %23 and % as %25 in a user name, a password or an option"

# Options of libpq that hold a secret.
_SECRET_OPTIONS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def parse_url(text: str) -> URL:
    """Parse a database URL and choose its driver. No message repeats the text, which may hold a password.

    Raises:
        StorageError: if the text is not the URL of a SQLite file or of a PostgreSQL database.
    """
    text = text.strip()
    if not text.isprintable():
        raise StorageError("--storage: the URL has a character that cannot be printed; percent-encode it")
    _check_encoding(text)
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise StorageError(f"--storage: not a database URL; {_advice(text)}") from None
    if backend not in DRIVERS:
        raise StorageError(f"--storage: the databases are SQLite and PostgreSQL; use {_FORMS}")
    url = url.set(drivername=DRIVERS[backend])
    return _checked_sqlite(url, text) if backend == "sqlite" else _checked_postgresql(url)


def shown_url(url: URL) -> str:
    """Return a URL for messages, without password and options."""
    shown = url.set(query={}, drivername=url.get_backend_name())
    return shown.render_as_string(hide_password=True)


def storage_argument(url: URL) -> str:
    """Return the option --storage for a shell, without secrets and with all other options."""
    parts = url._asdict() | {"drivername": url.get_backend_name(), "password": None}
    public = URL.create(**parts).difference_update_query(_SECRET_OPTIONS)
    return f"--storage {shlex.quote(public.render_as_string())}"


def secrets_of(url: URL) -> list[str]:
    """Return the secrets of a URL."""
    options = [url.query[name] for name in _SECRET_OPTIONS if name in url.query]
    return [secret for secret in (url.password, *options) if isinstance(secret, str) and secret]


def _check_encoding(text: str) -> None:
    """Refuse a URL whose password could be taken for its host, its database or its options."""
    user_info, at, rest = text.partition("@")
    if at and ("@" in rest or "?" in user_info):
        raise StorageError(f"--storage: not a database URL, or its password is not encoded; {_ENCODE}")


def _advice(text: str) -> str:
    """Return the right form for a path, and all forms for any other text."""
    path = text.partition(":")[2] if text.startswith("sqlite:") else text
    if ":" in path or "@" in path or not path.endswith((".db", ".sqlite", ".sqlite3")):
        return f"use {_FORMS}; {_ENCODE}"
    return _sqlite_advice(path)


def _sqlite_advice(path: str) -> str:
    return f"use {shlex.quote(f'sqlite:///{path}')}"


def _checked_sqlite(url: URL, text: str) -> URL:
    if "?" in text:
        raise StorageError("--storage: a sqlite URL has no options and no ? in its path; use sqlite:///FILE.db")
    if url.host:
        path = text.partition("://")[2]
        advice = f"use {_FORMS}" if "@" in path else _sqlite_advice(path)
        raise StorageError(f"--storage: a sqlite URL has three slashes, and a fourth for an absolute path; {advice}")
    if url.database in (None, "", ":memory:"):
        raise StorageError("--storage: the workers cannot share a database in memory; use sqlite:///FILE.db")
    return url


def _checked_postgresql(url: URL) -> URL:
    driver: Any = url.get_dialect().import_dbapi()
    known = [option.keyword.decode() for option in driver.pq.Conninfo.get_defaults()]
    for name in url.query:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else "use the connection options of libpq"
            raise StorageError(f"--storage: {_shown_name(name)} is not an option of a postgresql URL; {hint}")
    password: Any = url.query.get("password")
    if isinstance(password, str):
        return url.difference_update_query(["password"]).set(password=password)
    return url


def _shown_name(name: str) -> str:
    # A password that is not encoded can look like an option.
    return name if name.isidentifier() and name.isascii() else "a name"
