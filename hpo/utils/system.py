"""Hardware and versions of this machine."""

import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Variables that limit the threads or processes of a library: OpenMP, BLAS, and joblib with n_jobs=-1.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
# Linux only.
_CPUINFO = Path("/proc/cpuinfo")


def cpu() -> str:
    """Return the name of the processor."""
    lines = _read(_CPUINFO).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores(root: Path = Path("/")) -> int:
    """Return the number of processor cores that this process may use: its CPU affinity, limited by its cgroups.

    Args:
        root: The folder of ``proc`` and ``sys``.
    """
    # macOS has no affinity.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([allowed, *_cgroup_quotas(root)])))


def thread_limits(workers: int, n_cores: int) -> dict[str, str]:
    """Return environment variables that divide the cores among workers.

    Without them, the libraries of each worker start a thread per core: 100 trials of LightGBM by four workers took 9 s
    on two cores with them, and more than 100 s without. One worker has all cores, as in plain Python.
    """
    if workers == 1:
        return {}
    return dict.fromkeys(_THREAD_VARIABLES, str(max(1, n_cores // workers)))


def _cgroup_quotas(root: Path) -> Iterable[float]:
    """Yield the quotas of the process's cgroup and of the groups above it, in cores."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, read_quota = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read_quota = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        # In a container the path can be that of the host, which does not exist below the mount.
        group = mount / path.lstrip("/")
        for folder in [group, *group.parents]:
            if folder.is_relative_to(mount) and (quota := read_quota(folder)) is not None:
                yield quota


def _quota_v2(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.max").split())


def _quota_v1(folder: Path) -> float | None:
    return _ratio([_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")])


def _ratio(quota_and_period: Sequence[str]) -> float | None:
    match quota_and_period:
        # No limit is "max" or -1.
        case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of Python and the packages; None for a missing package."""
    return {"python": platform.python_version()} | {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
