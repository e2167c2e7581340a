"""Errors that a user can fix: one line and exit code 1."""

import contextlib
import re
import signal
import sqlite3
from pathlib import Path

import optuna
import pytest
from commands import TINY, TORCH, hooked, hpo, ledger, read_until, started, write_study

from benchmarks.postgres import free_port


def error_line(command: str, *arguments: object, **environment: str) -> str:
    """Run a command that fails, and return its only line."""
    done = hpo(command, *arguments, **environment)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("hpo: ")
    return done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["digitz"],
        ["tiny.toml", "--host", "192.0.2.1"],
        ["tiny.toml", "--storage", "sqlite://hpo.db"],
        pytest.param(["missing_data.toml"], marks=pytest.mark.slow),
        pytest.param(["tiny.toml", "--trials", "none"], marks=pytest.mark.slow),
        pytest.param(["tiny.toml", "--enqueue", "no.json"], marks=pytest.mark.slow),
        pytest.param(["tiny.toml", "--storage", "sqlite:///no/hpo.db"], marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[-1].replace("/", "."),
)
def test_refused_launch_leaves_nothing(arguments):
    write_study()
    write_study(TINY.replace('"digits"', '"no.csv"'), "missing_data.toml")
    before = set(Path().rglob("*"))
    done = hpo("launch", *arguments)
    assert done.returncode in (1, 2), done.stderr
    assert set(Path().rglob("*")) == before


def test_unknown_study_lists_names():
    line = error_line("launch", "digitz")
    assert "no study named 'digitz'; use one of cifar10, cifar10_best, cifar10_deep, " in line
    assert "digits, iris, toy, or give the path of a .toml file" in line


def test_missing_study_file_is_named():
    assert "nowhere/tiny.toml: no such study file" in error_line("launch", "nowhere/tiny.toml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not toml", "not TOML"),
        (TINY.replace("momentum", "momentun"), "train.momentun: unknown key; did you mean momentum?"),
        (TINY.replace("low = 16", "low = 99"), "space.hidden_size: low = 99 is above high = 64"),
        (TINY.replace("low = 1e-3", "low = 0"), "space.learning_rate: log = true needs low > 0"),
        (TINY.replace("train = 400", "train = 4000"), "data.split: train = 4000"),
        (TINY.replace('"random"', '"magic"'), "study.sampler"),
    ],
)
def test_invalid_study_file_names_problem(text, problem):
    message = error_line("launch", write_study(text))
    assert "tiny.toml" in message
    assert problem in message


def test_budget_above_combinations_is_refused():
    text = TINY.replace("{ low = 5, high = 20 }", "{ low = 5, high = 6 }").replace(
        "{ low = 16, high = 64 }", "{ choices = [16, 32] }"
    )
    text = re.sub(r"\{ low = 1e-., high = 1e-., log = true \}", "{ choices = [0.01, 0.1] }", text)
    study = write_study(text)
    message = error_line("launch", study, "--trials", 17)
    assert message.startswith("hpo: space: only 16 combinations, but 17 trials are required; use --trials 16 or less")
    assert not Path("hpo.db").exists()


@pytest.mark.parametrize(
    ("text", "extra"),
    [(TINY.replace('"random"', '"gp"'), "gp"), (TORCH, "torch")],
    ids=["sampler", "backend"],
)
def test_missing_pytorch_names_extra(text, extra):
    message = error_line("launch", write_study(text), **hooked("hide_package('torch')"))
    assert message.endswith(f"'{extra}' needs PyTorch; install it with: pip install 'hpo[{extra}]'\n")
    assert not Path("hpo.db").exists()


def test_cifar10_without_network_names_archive(tmp_path):
    nowhere = f"http://127.0.0.1:{free_port()}"
    environment = {"HPO_DATA_DIR": str(tmp_path / "empty"), "HTTPS_PROXY": nowhere, "https_proxy": nowhere}
    message = error_line("launch", "cifar10", "--quiet", **environment)
    assert "cifar-10-binary.tar.gz" in message
    assert str(tmp_path / "empty") in message


def test_csv_without_label_names_line():
    Path("flowers.csv").write_text("length,width,kind\n" + "1.5,2.5,a\n2.5,3.5,b\n" * 10 + "4.5,1.0,\n")
    text = TINY.replace('dataset = "digits"', 'dataset = "flowers.csv"')
    message = error_line("launch", write_study(text))
    assert "flowers.csv" in message
    assert "line 22: the label is missing" in message


def test_wrong_password_is_hidden(postgres):
    message = error_line("launch", write_study(), "--storage", postgres.locked_url("hunter2"))
    assert "password authentication failed" in message
    assert "hunter2" not in message


def test_unreachable_database_hides_password():
    url = f"postgresql://hpo:hunter2@127.0.0.1:{free_port()}/hpo"
    assert "hunter2" not in error_line("launch", write_study(), "--storage", url)


def test_read_only_output_folder_is_refused():
    folder = Path("locked")
    folder.mkdir(mode=0o555)
    assert "locked: cannot be written" in error_line("launch", write_study(), "--output", folder)
    assert list(folder.iterdir()) == []
    assert not Path("hpo.db").exists()


def test_changed_study_file_is_refused():
    study = write_study()
    assert hpo("launch", study, "--trials", 2, "--no-dashboard").returncode == 0
    write_study(TINY.replace("momentum = 0.9", "momentum = 0.5"))
    assert "train.momentum (was 0.9, is 0.5)" in error_line("launch", study)
    assert "train.momentum (was 0.9, is 0.5)" in error_line("export", study)
    assert len(ledger()) == 2


@pytest.mark.slow
def test_changed_data_are_refused():
    rows = ["1.5,2.5,a", "2.5,3.5,b", "3.5,1.5,a", "0.5,4.5,b"] * 10
    Path("flowers.csv").write_text("\n".join(["length,width,kind", *rows]))
    text = TINY.replace('dataset = "digits"', 'dataset = "flowers.csv"')
    text = text.replace("train = 400, validation = 100, test = 100", "train = 20, validation = 10, test = 10")
    study = write_study(text)
    done = hpo("launch", study, "--trials", 1, "--no-dashboard")
    assert done.returncode == 0, done.stderr
    Path("flowers.csv").write_text("\n".join(["length,width,kind", *rows, "9.5,9.5,a"]))
    assert "the data (were" in error_line("launch", study)


def test_export_without_database_is_refused():
    assert "no such file; start a study with: python -m hpo.launch" in error_line("export", write_study())


def test_dashboard_without_database_is_refused():
    assert "no such file" in error_line("dashboard")


def test_foreign_host_is_refused():
    assert "--host 192.0.2.1" in error_line("launch", write_study(), "--host", "192.0.2.1")


@pytest.mark.parametrize("command", ["launch", "export"])
def test_database_of_other_version_is_refused(command):
    study = write_study(TINY)
    assert hpo("launch", study, "--trials", 1, "--no-dashboard").returncode == 0
    with contextlib.closing(sqlite3.connect("hpo.db")) as database:
        database.execute("ALTER TABLE hpo_leases DROP COLUMN promotions")
    options = ["--no-dashboard"] if command == "launch" else []
    assert "was used by another version of hpo; use another --storage" in error_line(command, study, *options)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_dashboard_exits_with_130(number):
    optuna.create_study(storage="sqlite:///hpo.db")
    with started("dashboard") as dashboard:
        read_until(dashboard, "dashboard of")
        dashboard.send_signal(number)
        stdout, stderr = dashboard.communicate()
    assert (dashboard.returncode, stdout) == (130, ""), stderr
    assert "Traceback" not in stderr
