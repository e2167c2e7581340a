"""The commands and the snippets of the README."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, hpo, read_until, started, strict_json, write_study

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of the README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line and not line.startswith("#")]


def command(start: str) -> list[str]:
    """Return the words of the command of the README that starts with a text."""
    found = [line for line in COMMANDS if line.startswith(start)]
    assert found, f"the README has no command that starts with {start!r}"
    return shlex.split(found[0])


def test_every_command_has_a_test():
    tested = ["make launch", "make test", "python -m hpo.dashboard", "python -m hpo.worker --storage"]
    tested += [f"python -m hpo.launch {words}" for words in ("cifar10", "passengers.toml", "train.py", "--storage")]
    tested += ["python -m hpo.export passengers.toml", "python -m benchmarks.chaos", "python -m hpo.reproduce"]
    tested += ["cp .env.example .env", "docker compose up", "docker compose run"]
    assert [line for line in COMMANDS if not line.startswith(tuple(tested))] == []


def make(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    # This environment was made by `make setup`.
    run = ["make", "-C", ROOT, "-s", f"BIN={sys.prefix}/bin", *arguments]
    return subprocess.run(run, check=True, capture_output=True, text=True, **options)


@pytest.mark.parametrize("trials", [10, pytest.param(None, marks=pytest.mark.slow)])
def test_make_launch_runs_digits(trials):
    shutil.copytree(ROOT / "studies", "studies")
    recipe = make("-n", "-o", ".venv/.installed", *command("make launch")[1:]).stdout.split()
    assert recipe[:3] == [f"{sys.prefix}/bin/python", "-m", "hpo.launch"]
    budget = {} if trials is None else {"HPO_TRIALS": str(trials)}
    with started("launch", *recipe[3:], "--port", "18080", HPO_CONFIRM="", **budget) as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    best = strict_json(stdout)
    assert best["study"] == "digits"
    assert sum(best["trials"].values()) == (trials or 100)
    repeats = [len(trial["values"]) for trial in best["confirmation"]["trials"]]
    assert repeats == [3] * min(3, best["trials"]["complete"])
    if trials is None:
        assert len(repeats) == 3
        assert best["metrics"]["validation_accuracy"] >= 0.96
        assert best["confirmation"]["mean"] >= 0.96


def test_make_test_runs_all_checks():
    recipe = make("-n", "-o", ".venv/.installed-test", *command("make test")[1:]).stdout.splitlines()
    assert [line.removeprefix(f"{sys.prefix}/bin/") for line in recipe] == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "lint-imports --no-logo",
        'python -m pytest -m "not slow"',
    ]


@pytest.mark.slow
@pytest.mark.cifar10
def test_cifar10_command_starts():
    with started("launch", *command("python -m hpo.launch cifar10")[3:], "--port", "18080") as process:
        assert "keeps 197" in read_until(process, "data cifar10: 49000/1000/1000")
        read_until(process, "running")


@pytest.mark.slow
@pytest.mark.cifar10
def test_cifar10_best_command_starts():
    # On fewer images, because the preparation of all images and their variants takes a minute.
    study = (ROOT / "studies/cifar10_best.toml").read_text()
    split, fewer = "train = 46000, validation = 4000, test = 10000", "train = 600, validation = 300, test = 300"
    assert split in study
    Path("studies").mkdir()
    Path("studies/cifar10_best.toml").write_text(study.replace(split, fewer))
    with started("launch", *command("python -m hpo.launch cifar10_best")[3:], "--port", "18080") as process:
        read_until(process, "data cifar10: 600/300/300")
        read_until(process, "paused")


def write_passengers():
    """Write a table with text, dates, booleans and gaps."""
    rng = np.random.default_rng(0)
    age, fare = rng.integers(1, 80, 200), rng.gamma(2, 15, 200)
    women = rng.random(200) < 0.4
    survived = rng.random(200) < np.where(women, 0.8, 0.2)
    columns = {
        "name": [f"Passenger {i}, {'Mrs' if woman else 'Mr'}" for i, woman in enumerate(women)],
        "sex": np.where(women, "female", "male"),
        "age": [None if i % 9 == 0 else years for i, years in enumerate(age.tolist())],
        "fare": fare.round(2),
        "boarded": [f"1912-04-{10 + i % 3}" for i in range(200)],
        "alone": rng.random(200) < 0.5,
        "survived": np.where(survived, "yes", "no"),
    }
    pd.DataFrame(columns).to_csv("passengers.csv", index=False)


@pytest.mark.slow
def test_own_data_commands_and_snippet_run():
    write_passengers()
    (study,) = blocks("toml")
    tomllib.loads(study)
    Path("passengers.toml").write_text(study)
    launch = command("python -m hpo.launch passengers.toml")[3:]
    done = hpo("launch", *launch, "--port", "18080", HPO_TRIALS="6", HPO_CONFIRM="0")
    assert done.returncode == 0, done.stderr
    exported = hpo("export", *command("python -m hpo.export passengers.toml")[3:])
    assert exported.returncode == 0, exported.stderr
    result, refit = strict_json(done.stdout), strict_json(exported.stdout)
    assert {key: value for key, value in refit.items() if key != "refit"} == result
    (snippet,) = blocks("python")
    ran = subprocess.run([sys.executable, "-W", "error", "-c", snippet], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) == pytest.approx(refit["refit"]["metrics"]["test_accuracy"])


def test_optuna_script_command_runs():
    document = (ROOT / "docs/optuna-scripts.md").read_text()
    script = re.search(r"^```python\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    Path("train.py").write_text(script[1])
    done = hpo("launch", *command("python -m hpo.launch train.py")[3:], "--no-dashboard")
    assert done.returncode == 0, done.stderr
    best = strict_json(Path("results/train/best.json").read_text())
    assert sum(best["trials"].values()) == 200


def test_commands_for_many_machines_run(postgres):
    url, study = postgres.new_database(), str(write_study())
    # The worker runs all trials, and the launch joins the finished study.
    for name, options in ("worker", []), ("launch", ["--no-dashboard", "--quiet"]):
        words = command(f"python -m hpo.{name} --storage")
        assert words[4].startswith("postgresql://")
        done = hpo(name, "--storage", url, *words[5:], *options, HPO_STUDY=study)
        assert done.returncode == 0, done.stderr
    assert strict_json(done.stdout)["trials"]["complete"] == 8
    assert command("python -m hpo.dashboard")[3:] == []
    with started("dashboard", "--port", "18080", HPO_STORAGE=url) as process:
        assert "http://127.0.0.1:" in read_until(process, "dashboard of")


def test_chaos_command_has_options_of_readme():
    # The tests in tests/chaos run it.
    words = command("python -m benchmarks.chaos")
    run = [sys.executable, *words[1:], "--help"]
    options = [word for word in words if word.startswith("--")]
    described = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert options
    assert [option for option in options if option not in described] == []


def test_container_commands_name_services():
    # test_containers.py runs the services.
    assert command("cp")[1:] == [".env.example", ".env"]
    assert (ROOT / ".env.example").is_file()
    services = re.findall(r"^  (\w+):$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    up, run = command("docker compose up"), command("docker compose run")
    assert up[up.index("--scale") + 1].partition("=")[0] in services
    assert run[4] in services
    assert run[5:8] == ["python", "-m", "hpo.export"]
