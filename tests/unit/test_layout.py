"""The arrows between the modules, and what each of them may do, read from their source."""

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import hpo

FOLDER = Path(hpo.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))

WITHOUT_OPTUNA = [
    "errors",
    "spec",
    "features",
    "datasets",
    "cifar10",
    "data",
    "network",
    "torch_network",
    "training",
    "predictor",
    "files",
    "extras",
]
# `cifar10` draws the bar of its download.
MAY_PRINT = {"cli", "display", "launcher", "export", "dashboard", "reproduction", "cifar10"}
COMMANDS = {"launch", "export", "dashboard", "reproduce"}
MAY_USE_SQLALCHEMY = {"storage", "study", "leases", "records", "history", "launcher", "stages"}
MAY_SPEAK_SQL = {"storage", "leases"}


@cache
def tree(module):
    return ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))


@cache
def imports(module):
    """Everything that a module imports at any depth, as dotted names."""
    names = set()
    for node in ast.walk(tree(module)):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                assert node.level == 0, f"{module}: a relative import"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def packages(module):
    """The foreign packages that it imports."""
    return frozenset(name.split(".")[0] for name in imports(module)) - {"hpo"}


@cache
def arrows(module):
    """The modules of ours that it imports."""
    return frozenset(name.split(".")[1] for name in imports(module) if name.startswith("hpo.")) & frozenset(MODULES)


def reached(module):
    """The module and all that it imports, directly or through others."""
    found, left = set(), [module]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += arrows(one)
    return found


def calls(module):
    """Every call, as the dotted name of what is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]


def names(module):
    """Every name and dotted name that the code mentions."""
    nodes = (node for node in ast.walk(tree(module)) if isinstance(node, ast.Name | ast.Attribute))
    return {ast.unparse(node) for node in nodes}


def test_the_source_is_where_these_tests_look():
    assert {"launch", "worker", "spec"} <= set(MODULES)
    assert {"cli", "storage", "spec"} <= arrows("launcher")
    assert "optuna" in packages("sampling")
    assert "sampling" in reached("launch")


# Arrows


def test_there_is_no_cycle():
    graph = graphlib.TopologicalSorter({module: arrows(module) for module in MODULES})
    assert set(graph.static_order()) == set(MODULES)  # or it raises, with the cycle


@pytest.mark.parametrize("module", WITHOUT_OPTUNA)
def test_what_comes_before_optuna_does_without_it(module):
    guilty = [one for one in reached(module) if any(package.startswith("optuna") for package in packages(one))]
    assert guilty == []


@pytest.mark.parametrize("module", ["spec", "network", "errors"])
def test_the_lowest_modules_know_nothing_of_the_service(module):
    assert reached(module) <= {module, "errors"}


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_a_command_but_the_launch_its_dashboard(module):
    assert module in ("launcher", "preload") or not arrows(module) & COMMANDS


def test_a_worker_starts_without_scikit_learn():
    script = "import sys, hpo.worker; print([name for name in ('optuna', 'sklearn', 'pandas') if name in sys.modules])"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("['optuna']\n", "")


@pytest.mark.parametrize("command", ["launch", "reproduce"])
def test_a_command_line_is_read_before_what_takes_long_is_imported(command):
    slow = {"numpy", "optuna", "sqlalchemy", "pydantic", "rich"}
    script = f"import sys, hpo.{command}; print({slow} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=FOLDER.parent, capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_forked_processes_need_not_import_what_opens_a_study():
    needed = {"alembic.migration", "alembic.script", "optuna.storages._rdb.models", "sqlalchemy.dialects.sqlite"}
    of_some_samplers = {"cmaes", "torch"}
    script = f"import sys, hpo.preload; print({needed} - set(sys.modules) | {of_some_samplers} & set(sys.modules))"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_what_the_package_offers_is_there():
    assert hpo.__all__
    for name in hpo.__all__:
        assert callable(getattr(hpo, name))


def test_what_the_package_does_not_offer_is_not_there():
    with pytest.raises(AttributeError, match="load_nothing"):
        hpo.load_nothing  # noqa: B018


def test_one_module_knows_pytorch():
    assert [module for module in MODULES if "torch" in packages(module)] == ["torch_network"]
    assert reached("torch_network") == {"torch_network", "network"}


# What a module may do

PRINTERS = re.compile(r"print|say|cli\.say|(rich\.console\.)?Console|(click\.)?s?echo|sys\.(stdout|stderr)(\..*)?")


@pytest.mark.parametrize("module", sorted(set(MODULES) - MAY_PRINT))
def test_nobody_else_prints(module):
    assert [name for name in names(module) if PRINTERS.fullmatch(name)] == []


@pytest.mark.parametrize("module", ["cli", "launcher", "export"])
def test_those_who_print_are_seen_to(module):
    assert [name for name in names(module) if PRINTERS.fullmatch(name)] != []


@pytest.mark.parametrize("module", sorted(set(MODULES) - MAY_USE_SQLALCHEMY))
def test_nobody_else_knows_sqlalchemy(module):
    assert not packages(module) & {"sqlalchemy", "psycopg", "sqlite3"}


@pytest.mark.parametrize("module", ["study", "launcher", "stages"])
def test_others_know_a_database_by_its_url_alone(module):
    assert {name for name in imports(module) if name.startswith("sqlalchemy")} == {"sqlalchemy.engine.URL"}


SQL = re.compile(r"\s*(SELECT|INSERT\s+INTO|UPDATE|DELETE\s+FROM|CREATE|DROP|ALTER|PRAGMA|BEGIN)\b")


def sql_of(module):
    constants = (node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant))
    return [text for text in constants if isinstance(text, str) and SQL.match(text)]


@pytest.mark.parametrize("module", sorted(set(MODULES) - MAY_SPEAK_SQL))
def test_nobody_else_speaks_sql(module):
    assert sql_of(module) == []


def test_the_storage_is_seen_to_speak_sql():
    assert "SELECT 1" in sql_of("storage")


# Nothing that a file holds is run


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_pickled_or_evaluated(module):
    assert not packages(module) & {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
    assert not {name for name, _ in calls(module)} & {"eval", "exec", "compile", "__import__"}


def archives_read(module):
    return [
        node
        for name, node in calls(module)
        if name in ("np.load", "numpy.load") or name.split(".")[-1] in ("NpzFile", "open_memmap")
    ]


@pytest.mark.parametrize("module", MODULES)
def test_arrays_are_loaded_without_pickle(module):
    for node in archives_read(module):
        allowed = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert allowed.get("allow_pickle") == "False", f"line {node.lineno}"


@pytest.mark.parametrize("module", ["predictor", "datasets"])
def test_those_who_load_arrays_are_seen_to(module):
    assert archives_read(module)


def test_joblib_which_unpickles_is_for_the_prepared_data_alone():
    assert [module for module in MODULES if "joblib" in packages(module)] == ["data"]


# Docstrings


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    assert ast.get_docstring(tree(module)), "the module"
    public = [
        node
        for node in tree(module).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []
