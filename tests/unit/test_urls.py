"""Database URLs and the secrets in them."""

import pickle
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpo.errors import StorageError
from hpo.storage.database.connection import Database
from hpo.ui import secrets

# Marks each end of a password, so that a test finds any part of it.
MARK = "Zq7"
passwords = st.text(st.characters(exclude_categories=["C"]), max_size=8).map(lambda text: f"{MARK}{text}{MARK}")


def outcome(url: str) -> str:
    """Return everything that hpo prints about a URL."""
    try:
        database = Database.parse(url)
    except StorageError as error:
        return str(error)
    failed = database.error_summary(StorageError(f"cannot connect with {database._url.password}"))
    return f"{database} {database!r} {database.shown} {database.argument} {failed}"


@given(passwords)
@example("Zq7p@ss/w#rd%41Zq7")
@example("Zq7 @?password=Zq7")
@example("Zq7@x/y?Zq7")
def test_password_is_not_shown(password):
    for form in (password, quote(password, safe="")):
        assert MARK not in outcome(f"postgresql://hpo:{form}@127.0.0.1:5432/hpo")
        assert MARK not in outcome(f"postgresql://hpo:{form}@host:port/hpo")
    assert MARK not in outcome(f"postgresql:///hpo?host=/tmp&password={quote(password)}")
    assert MARK not in outcome(f"postgresql:///hpo?host=/tmp&sslpassword={quote(password)}")


@given(passwords)
@example("Zq7p@ss w\\rd'Zq7")
def test_password_of_argument_is_hidden(password):
    url = f"postgresql://hpo:{password}@127.0.0.1/hpo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hpo", url])
        for message in (url, repr(url), f"no study named '{' '.join(url.split())}'"):
            assert MARK not in secrets.hide_passwords(message)


@given(passwords)
def test_encoded_password_reaches_driver(password):
    url = Database.parse(f"postgresql://hpo:{quote(password, safe='')}@host/hpo")._url
    assert (url.password, url.host, url.database) == (password, "host", "hpo")


def test_password_option_does_not_show_in_pickle_of_messages():
    database = pickle.loads(pickle.dumps(Database.parse("postgresql:///hpo?password=Zq7")))  # noqa: S301  # the test wrote the pickle
    assert "Zq7" not in repr(database)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("hpo.db", "use sqlite:///hpo.db"),
        ("my folder/hpo.db", "use 'sqlite:///my folder/hpo.db'"),
        ("/data/hpo.db", "use sqlite:////data/hpo.db"),
        ("sqlite://hpo.db", "use sqlite:///hpo.db"),
        ("sqlite://data/hpo.db", "use sqlite:///data/hpo.db"),
        ("sqlite:/hpo.db", "use sqlite:////hpo.db"),
        ("sqlite:hpo.db", "use sqlite:///hpo.db"),
        ("", "use sqlite:///FILE.db or postgresql://"),
        ("postgresql:/hpo", "use sqlite:///FILE.db or postgresql://"),
        ("mysql://user@host/x", "the databases are SQLite and PostgreSQL"),
        ("postgresql://user:pa:ss@host:port/x", "write @ as %40"),
        ("postgresql://user:pa@ss@host/x", "write @ as %40"),
        ("postgresql://host/x?prepare_threshold=5", "prepare_threshold is not an option"),
        ("postgresql://host/x?ssl_mode=require", "did you mean sslmode?"),
        ("sqlite:///hpo.db?timeout=5", "has no options"),
        ("postgresql://hpo:a\0b@host/x", "cannot be printed"),
        ("postgresql://hpo:\udcff@host/x", "cannot be printed"),
    ],
)
def test_wrong_url_names_right_form(url, advice):
    with pytest.raises(StorageError) as caught:
        Database.parse(url)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["sqlite:///hpo.db\n", "  sqlite:///hpo.db ", "sqlite:///hpo.db\r\n"])
def test_white_space_around_url_is_ignored(text):
    assert Database.parse(text) == Database.parse("sqlite:///hpo.db")


@pytest.mark.parametrize(
    ("url", "argument"),
    [
        ("sqlite:///my folder/hpo.db", "'sqlite:///my folder/hpo.db'"),
        ("postgres://hpo:secret@h/d?sslmode=require", "'postgresql://hpo@h/d?sslmode=require'"),
        ("postgresql://hpo:secret@/d?host=/tmp&sslpassword=secret", "'postgresql://hpo@/d?host=%2Ftmp'"),
        ("sqlite:///$(reboot).db", "sqlite:///%24%28reboot%29.db"),
    ],
)
def test_argument_is_safe_to_paste(url, argument):
    database = Database.parse(url)
    assert database.argument == f"--storage {argument}"


def test_general_text_hides_url_and_options():
    text = "use postgresql://u:p@s/s@host/d?sslpassword=x&password=y z"
    assert secrets.hide_passwords(text) == "use postgresql://u:***@host/d?sslpassword=***&password=*** z"
