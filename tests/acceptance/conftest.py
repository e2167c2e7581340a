"""The undisturbed study that interrupted studies are compared with."""

from typing import Any

import pytest
from commands import contents, hpo, write_study


@pytest.fixture
def undisturbed_tiny() -> list[tuple[Any, ...]]:
    """The trials of ``TINY`` without an interruption."""
    done = hpo("launch", write_study(), "--no-dashboard", "--quiet", "--storage", "sqlite:///undisturbed.db")
    assert done.returncode == 0, done.stderr
    return contents("sqlite:///undisturbed.db")
