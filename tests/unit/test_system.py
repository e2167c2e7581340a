"""Cores that a process may use."""

import os

import pytest

from hpo.utils.system import cores, cpu, thread_limits


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root folder without cgroups, on a machine of 16 cores of which 12 are allowed."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    return tmp_path


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_cores_are_those_of_affinity(root):
    assert cores(root) == 12


def test_cores_without_affinity_are_all(root, monkeypatch):
    # As on macOS.
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores(root) == 16


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 12), ("9900000 100000", 12)],
)
def test_quota_of_cgroup_2_limits_cores(quota, expected, root):
    write(root, "proc/self/cgroup", "0::/system.slice/hpo.service\n")
    write(root, "sys/fs/cgroup/system.slice/hpo.service/cpu.max", quota + "\n")
    assert cores(root) == expected


@pytest.mark.parametrize("group", ["system.slice", ""])
def test_quota_of_parent_group_limits_cores(group, root):
    write(root, "proc/self/cgroup", "0::/system.slice/hpo.service\n")
    write(root, f"sys/fs/cgroup/{group}/cpu.max", "300000 100000\n")
    write(root, "sys/fs/cgroup/system.slice/hpo.service/cpu.max", "max 100000\n")
    assert cores(root) == 3


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 12)])
def test_quota_of_cgroup_1_limits_cores(quota, expected, root):
    # In a container the path is that of the host.
    write(root, "proc/self/cgroup", "5:memory:/docker/1234\n4:cpu,cpuacct:/docker/1234\n0::/\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota + "\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert cores(root) == expected


@pytest.mark.parametrize("content", ["", "nonsense", "1 2 3", "100000 0", "x y"])
def test_unreadable_quota_is_no_limit(content, root):
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/cpu.max", content)
    assert cores(root) == 12


def test_processor_has_a_name():
    assert cpu()


@pytest.mark.parametrize(("workers", "n_cores", "expected"), [(4, 2, "1"), (2, 8, "4"), (3, 8, "2")])
def test_workers_divide_cores(workers, n_cores, expected):
    limits = thread_limits(workers, n_cores)
    assert limits["OMP_NUM_THREADS"] == limits["LOKY_MAX_CPU_COUNT"] == expected


def test_one_worker_has_all_cores():
    assert thread_limits(1, 8) == {}
