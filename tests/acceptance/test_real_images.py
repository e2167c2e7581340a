"""Studies of the real CIFAR-10 images."""

import contextlib
from pathlib import Path

import pytest
from commands import ROOT, descendants, hpo, read_until, started, strict_json, write_study

pytestmark = [pytest.mark.cifar10, pytest.mark.slow]


@pytest.fixture
def shipped() -> str:
    return (ROOT / "studies/cifar10.toml").read_text()


def proportional_set_size(pid: int) -> float:
    """Return the memory of a process in MB. A page that n processes share counts as 1/n."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("Pss:")[2].split()[0]) / 1024


def test_eight_workers_share_one_copy(shipped):
    study = write_study(shipped)
    with started("launch", study, "--workers", 8, "--no-dashboard") as process:
        read_until(process, "8 running")
        sizes = []
        for pid in descendants(process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if "train_X.npy" in Path(f"/proc/{pid}/maps").read_text():
                    sizes.append(proportional_set_size(pid))
    assert len(sizes) >= 8
    assert max(sizes) < 150, sizes


def test_short_study_learns(shipped):
    text = shipped.replace("{ low = 100, high = 500 }", "{ low = 2, high = 4 }").replace(
        "low = 1e-7, high = 1e-2, log = true }\nreg", "low = 1e-3, high = 1e-2, log = true }\nreg"
    )
    done = hpo("launch", write_study(text), "--workers", 2, "--trials", 2, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    best = strict_json(done.stdout)
    assert best["data"]["pca"]["components"] in range(150, 250)
    assert best["metrics"]["validation_accuracy"] > 0.35
    assert best["metrics"]["test_accuracy"] > 0.35
