"""The data folder of users with and without a home folder."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from hpo.data.prepared.folders import data_dir, expand_home, translate_disk_errors
from hpo.errors import DataError


def test_user_without_home_has_folder_among_temporary_files(monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    for name in ("HPO_DATA_DIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert data_dir() == Path(tempfile.gettempdir()) / f"hpo-{os.geteuid()}"


def test_unknown_user_in_data_dir_is_refused(monkeypatch):
    monkeypatch.setenv("HPO_DATA_DIR", "~no_such_user/data")
    with pytest.raises(DataError, match="HPO_DATA_DIR=~no_such_user/data: no such home folder"):
        data_dir()


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/data") == Path("/home/me/data")
    assert expand_home("~no_such_user/x.csv") == Path("~no_such_user/x.csv")


def test_unwritable_folder_names_variable():
    with pytest.raises(DataError, match="/nowhere: Permission denied; set HPO_DATA_DIR"), translate_disk_errors():
        raise PermissionError(13, "Permission denied", "/nowhere")
