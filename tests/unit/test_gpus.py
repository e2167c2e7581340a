"""Values of --gpus, and the GPUs of each worker."""

import pytest

from hpo.fleet import gpus
from hpo.fleet.gpus import Gpus, assign_gpus, parse_gpus


@pytest.mark.parametrize("text", ["auto", "none", "0", "0,1,7", "GPU-6e1f-22", "MIG-GPU-6e1f/1/0,0"])
def test_valid_value(text):
    assert parse_gpus(text) == text


@pytest.mark.parametrize("text", ["", "all", "0,", "0, 1", "-1", "0;1", "auto,0", "1.5", "GPU-"])
def test_invalid_value_is_refused(text):
    with pytest.raises(ValueError, match=r"is not auto, none, or a list of GPUs such as 0,1") as raised:
        parse_gpus(text)
    assert repr(text) in str(raised.value)


def environments(value: str, environ: dict[str, str], n_workers: int = 3) -> list[dict[str, str]]:
    assigned = assign_gpus(value, environ)
    return [assigned.environment(slot) for slot in range(n_workers)]


@pytest.fixture
def no_query(monkeypatch):
    def fail(timeout_s: float) -> None:
        raise AssertionError("the machine was asked")

    monkeypatch.setattr(gpus, "_installed", fail)


@pytest.mark.usefixtures("no_query")
def test_workers_share_listed_gpus():
    expected = [{"CUDA_VISIBLE_DEVICES": name} for name in ("0", "3", "0")]
    assert environments("0,3", {"CUDA_VISIBLE_DEVICES": "7"}) == expected


@pytest.mark.usefixtures("no_query")
def test_none_hides_all_gpus():
    assert environments("none", {"CUDA_VISIBLE_DEVICES": "7"}) == [{"CUDA_VISIBLE_DEVICES": ""}] * 3


@pytest.mark.usefixtures("no_query")
@pytest.mark.parametrize(
    ("allowed", "devices"),
    [
        ("4,5", ("4", "5")),
        (" 4 , GPU-6e1f", ("4", "GPU-6e1f")),
        # CUDA stops at the first invalid device.
        ("4,-1,5", ("4",)),
        ("", None),
        ("-1", None),
    ],
)
def test_auto_distributes_allowed_gpus(allowed, devices):
    assert assign_gpus("auto", {"CUDA_VISIBLE_DEVICES": allowed}) == Gpus(devices)


def test_variable_is_left_without_gpus():
    assert Gpus(None).environment(0) == {}
