"""What a person can mend is told in one line, with exit code 1."""

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
from commands import TINY, TORCH, hpo, ledger, patched, write_study

from benchmarks.postgres import free_port


def one_line(command: str, *arguments: object, **environment: str) -> str:
    done = hpo(command, *arguments, **environment)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("hpo: ")
    return done.stderr


def test_a_missing_study():
    line = one_line("launch", "digitz")
    assert "no study named 'digitz'; there are cifar10, cifar10_best, cifar10_deep, " in line
    assert "digits, toy, or give the path of a .toml file" in line


def test_a_missing_study_file():
    assert "nowhere/tiny.toml: no such study file" in one_line("launch", "nowhere/tiny.toml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("not toml", "not TOML"),
        (TINY.replace("momentum", "momentun"), "train.momentun: unknown key; did you mean momentum?"),
        (TINY.replace("low = 16", "low = 99"), "space.hidden_size: low = 99 is above high = 64"),
        (TINY.replace("low = 1e-3", "low = 0"), "space.learning_rate: log = true needs low > 0"),
        (TINY.replace("train = 400", "train = 4000"), "data.split: train = 4000"),
        (TINY.replace('"random"', '"magic"'), "study.sampler"),
    ],
)
def test_a_broken_study_file(text, told):
    message = one_line("launch", write_study(text))
    assert "tiny.toml" in message
    assert told in message


def test_more_trials_than_combinations():
    text = TINY.replace("{ low = 5, high = 20 }", "{ low = 5, high = 6 }").replace(
        "{ low = 16, high = 64 }", "{ choices = [16, 32] }"
    )
    text = re.sub(r"\{ low = 1e-., high = 1e-., log = true \}", "{ choices = [0.01, 0.1] }", text)
    study = write_study(text)
    message = one_line("launch", study, "--trials", 17)
    assert message.startswith("hpo: space: only 16 combinations, but 17 trials are asked for; ask for at most 16")
    assert not Path("hpo.db").exists()


@pytest.mark.parametrize(
    ("text", "extra"),
    [(TINY.replace('"random"', '"gp"'), "gp"), (TORCH, "torch")],
    ids=["sampler", "backend"],
)
def test_what_needs_pytorch_where_there_is_none(text, extra):
    message = one_line("launch", write_study(text), **patched(WITHOUT_TORCH))
    assert message.endswith(f"'{extra}' needs PyTorch; install it with: pip install 'hpo[{extra}]'\n")
    assert not Path("hpo.db").exists()


WITHOUT_TORCH = """
import importlib.util

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "torch" else find_spec(name, *package)
"""


def test_no_cifar10_and_no_network(tmp_path):
    nowhere = f"http://127.0.0.1:{free_port()}"
    message = one_line(
        "launch", "cifar10", HPO_DATA_DIR=str(tmp_path / "empty"), HTTPS_PROXY=nowhere, https_proxy=nowhere
    )
    assert "cifar-10-binary.tar.gz" in message
    assert str(tmp_path / "empty") in message


def test_a_csv_with_a_text_feature():
    Path("flowers.csv").write_text("length,width,kind\n" + "1.5,2.5,a\n2.5,3.5,b\n" * 10 + "long,1.0,a\n")
    text = TINY.replace('dataset = "digits"', 'dataset = "flowers.csv"')
    message = one_line("launch", write_study(text))
    assert "flowers.csv" in message
    assert "line 22" in message
    assert "'long'" in message


def test_a_wrong_password_is_not_shown(postgres):
    message = one_line("launch", write_study(), "--storage", postgres.locked_url("hunter2"))
    assert "password authentication failed" in message
    assert "hunter2" not in message


def test_an_unreachable_database():
    url = f"postgresql://hpo:hunter2@127.0.0.1:{free_port()}/hpo"
    assert "hunter2" not in one_line("launch", write_study(), "--storage", url)


def test_a_read_only_output_folder():
    folder = Path("locked")
    folder.mkdir(mode=0o555)
    assert "locked: cannot be written" in one_line("launch", write_study(), "--output", folder)
    assert list(folder.iterdir()) == []
    assert not Path("hpo.db").exists()


def test_a_study_joined_with_a_changed_file():
    study = write_study()
    assert hpo("launch", study, "--trials", 2, "--no-dashboard").returncode == 0
    write_study(TINY.replace("momentum = 0.9", "momentum = 0.5"))
    assert "train.momentum (was 0.9, is 0.5)" in one_line("launch", study)
    assert "train.momentum (was 0.9, is 0.5)" in one_line("export", study)
    assert len(ledger()) == 2


def test_changed_data_under_the_same_file():
    rows = ["1.5,2.5,a", "2.5,3.5,b", "3.5,1.5,a", "0.5,4.5,b"] * 10
    Path("flowers.csv").write_text("\n".join(["length,width,kind", *rows]))
    text = TINY.replace('dataset = "digits"', 'dataset = "flowers.csv"')
    text = text.replace("train = 400, validation = 100, test = 100", "train = 20, validation = 10, test = 10")
    study = write_study(text)
    done = hpo("launch", study, "--trials", 1, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    Path("flowers.csv").write_text("\n".join(["length,width,kind", *rows, "9.5,9.5,a"]))
    assert "the data (were" in one_line("launch", study)


def test_exporting_what_is_not_there():
    assert "no such file; start a study with: python -m hpo.launch" in one_line("export", write_study())


def test_a_dashboard_of_nothing():
    assert "no such file" in one_line("dashboard")


def test_a_host_that_is_not_ours():
    assert "--host 192.0.2.1" in one_line("launch", write_study(), "--host", "192.0.2.1")


@pytest.mark.parametrize("command", ["launch", "export"])
def test_a_database_of_another_version(command):
    study = write_study(TINY)
    assert hpo("launch", study, "--trials", 1, "--no-dashboard").returncode == 0
    with contextlib.closing(sqlite3.connect("hpo.db")) as database:
        database.execute("ALTER TABLE hpo_leases DROP COLUMN promotions")
    options = ["--no-dashboard"] if command == "launch" else []
    assert "was used by another version of hpo; use another --storage" in one_line(command, study, *options)
