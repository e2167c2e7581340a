"""What figures were measured on."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")  # of Linux


def cpu() -> str:
    """The processor's name."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """How many there are."""
    return os.cpu_count() or 1


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Of Python and of these; None for what is not installed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
