"""The query of the GPUs of this machine, with a script in place of nvidia-smi."""

import sys

import pytest

from hpo.fleet.gpus import Gpus, assign_gpus

# The test fails in place of the machine's own GPUs if the query has other arguments.
CHECK = """
import sys
assert sys.argv[1:] == ["--query-gpu=index", "--format=csv,noheader"], sys.argv
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs an nvidia-smi with a body; None for no such program."""

    def install(body: str | None) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        if body is not None:
            program = tmp_path / "nvidia-smi"
            program.write_text(f"#!{sys.executable}\n{CHECK}\n{body}\n")
            program.chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("body", "devices"),
    [
        (r"print('0\n1\n 2')", ("0", "1", "2")),
        ("print('No devices were found')", None),
        ("print(0); sys.exit(9)", None),
        ("sys.stdout.buffer.write(bytes([200]))", None),
        (None, None),
    ],
)
def test_gpus_of_machine(install, body, devices):
    install(body)
    assert assign_gpus("auto", {}) == Gpus(devices)


def test_query_without_answer_ends(install):
    install("import time; time.sleep(3600)")
    assert assign_gpus("auto", {}, timeout_s=0.01) == Gpus(None)
