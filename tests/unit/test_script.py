"""A script, or a function in a file or module: its file, its errors, and its run."""

import hashlib
import sys
from pathlib import Path

import optuna
import pytest

from hpo.errors import ScriptError
from hpo.scripts.script import Script


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch):
    """Forget the modules and the folders that a script adds."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(text="", path="train.py"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def error_of(target):
    with pytest.raises(ScriptError) as error:
        Script(target).read()
    return str(error.value)


# The file


@pytest.mark.parametrize(
    ("target", "is_function", "name"),
    [
        ("train.py", False, "train"),
        ("folder/my train.py", False, "my train"),
        ("train.py:objective", True, "train"),
        ("folder/train.py:objective", True, "train"),
    ],
)
def test_target_has_file_and_name(target, is_function, name):
    script = Script(target)
    assert (script.is_function, script.name) == (is_function, name)
    assert script.path == Path(target.partition(":")[0])


def test_module_of_function_is_found_in_working_folder():
    write("def f(): ...", "package_of_test/inner.py")
    assert Script("package_of_test.inner:f").path == Path("package_of_test/inner.py").absolute()


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("no_such_module_of_test:f", "no_such_module_of_test: no such module; give a file as "),
        ("no_such_module_of_test.inner:f", "no_such_module_of_test.inner: no such module"),
        ("math:f", "math: no such module; give a file as "),
        (":f", ": no such module"),
    ],
)
def test_missing_module_is_named(target, problem):
    assert error_of(target).startswith(problem)


def test_missing_file_is_named():
    assert error_of("folder/no.py") == "folder/no.py: no such file; give the path of a Python script"
    assert error_of("folder/no.py:f") == "folder/no.py: no such file; give the path of a Python script"


def test_folder_is_no_script():
    Path("folder.py").mkdir()
    assert error_of("folder.py") == "folder.py: cannot be read: Is a directory; give the path of a Python script"


@pytest.mark.parametrize(
    ("text", "line"),
    [("def f(:\n  pass\n", 1), ("x = 1\nif x:\ny = 2\n", 3), ("x = 1\n\n'open\n", 3), ("if 1:\n\tx = 1\n  y = 2\n", 3)],
)
def test_syntax_error_names_file_and_line(text, line):
    message = error_of(write(text))
    assert message.startswith(f"train.py:{line}: ")
    assert message.endswith("; correct the script")
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"x = '\xff'\n", b"x = 1\x00\n", b"# coding: no-such-coding\n"])
def test_other_content_is_no_python(content):
    Path("train.py").write_bytes(content)
    message = error_of("train.py")
    assert message.startswith("train.py")
    assert "\n" not in message


def test_fingerprint_is_hash_of_content():
    write("x = 1\n")
    fingerprint = Script("train.py").fingerprint
    assert fingerprint == hashlib.sha256(b"x = 1\n").hexdigest()
    assert Script("train.py:f", ("--arguments",)).fingerprint == fingerprint
    write("x = 2\n")
    assert Script("train.py").fingerprint != fingerprint


# The run of a script


def test_script_runs_as_main_with_its_arguments_and_folder():
    write("value = 7", "folder with space/sibling_of_test.py")
    path = write(
        "import sys, sibling_of_test\nraise SystemExit([__name__, __file__, sys.argv, sibling_of_test.value])",
        "folder with space/train.py",
    )
    before = list(sys.argv)
    with pytest.raises(SystemExit) as exited:
        Script(path, ("-a", "b c")).run()
    assert exited.value.code == ["__main__", path, [path, "-a", "b c"], 7]
    assert sys.argv == before


def test_exception_of_script_is_raised():
    path = write("raise LookupError('of the script')")
    with pytest.raises(LookupError, match="of the script"):
        Script(path).run()


# The function


def test_function_of_file_is_loaded():
    write("value = 3", "folder/sibling_of_test.py")
    write("from sibling_of_test import value\ndef f(): return value", "folder/objectives_of_test.py")
    assert Script("folder/objectives_of_test.py:f").load_function()() == 3


def test_search_at_import_of_function_is_refused():
    target = write(
        "import optuna\ndef f(trial): raise AssertionError\noptuna.create_study().optimize(f, n_trials=3)",
        "searching_of_test.py",
    )
    with pytest.raises(ScriptError, match="calls optimize when it is imported"):
        Script(f"{target}:f").load_function()
    # The method is in place again.
    assert optuna.Study.optimize.__module__ == "optuna.study.study"


def test_function_of_module_is_loaded():
    write("def f(): return __name__", "package_of_test/inner.py")
    assert Script("package_of_test.inner:f").load_function()() == "package_of_test.inner"


@pytest.mark.parametrize("name", ["g", "value", ""])
def test_missing_function_is_named(name):
    write("value = 3\ndef f(): ...", "objectives_of_test.py")
    with pytest.raises(ScriptError, match=r"give one as objectives_of_test.py:function") as error:
        Script(f"objectives_of_test.py:{name}").load_function()
    assert str(error.value).startswith(f"objectives_of_test.py: no function {name!r}")
