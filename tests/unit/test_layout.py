"""Rules about the source that neither ruff nor import-linter can check."""

from pathlib import Path

import pytest

import hpo

SOURCES = sorted(Path(hpo.__file__).parent.rglob("*.py"))


def test_public_names_are_importable():
    assert hpo.__all__
    for name in hpo.__all__:
        assert callable(getattr(hpo, name))


def test_unknown_public_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="load_nothing"):
        hpo.load_nothing  # noqa: B018  # the access is the test


def test_arrays_are_loaded_without_pickle():
    assert SOURCES
    # numpy.load refuses pickles unless it is asked for them.
    assert [path for path in SOURCES if "allow_pickle=True" in path.read_text(encoding="utf-8")] == []
