"""A user's script, or a user's function in a file or a module."""

import ast
import hashlib
import importlib
import importlib.util
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import optuna

from hpo.config.study import StudyConfig
from hpo.errors import ScriptError

_SUFFIX = ".py"


@dataclass(frozen=True)
class Script:
    """A script with its arguments, or one function.

    Attributes:
        target: The script, or ``file.py:function`` or ``module:function``.
        arguments: The arguments of the script.
        study_file: The study file that names the function, None without one.
    """

    target: str
    arguments: tuple[str, ...] = ()
    study_file: StudyConfig | None = None

    @property
    def is_function(self) -> bool:
        """Whether the target is one function, which hpo calls itself."""
        return ":" in self.target

    @property
    def path(self) -> Path:
        """The script, or the file of the function.

        Raises:
            ScriptError: if the module of the function does not exist.
        """
        place, _, _ = self.target.partition(":")
        if place.endswith(_SUFFIX):
            return Path(place)
        with _searching(Path.cwd()):
            try:
                spec = importlib.util.find_spec(place)
            except (ImportError, ValueError) as error:
                raise ScriptError(f"{place}: no such module: {error}") from None
        if spec is None or spec.origin is None or not spec.origin.endswith(_SUFFIX):
            raise ScriptError(f"{place}: no such module; give a file as {place}.py:function, or a module on the path")
        return Path(spec.origin)

    @property
    def name(self) -> str:
        """The name of a study of this script that has no other name."""
        return self.path.stem if self.study_file is None else self.study_file.study.name

    def read(self) -> bytes:
        """Return the content of the file, after a check of its syntax.

        Raises:
            ScriptError: if the file cannot be read, or is no Python.
        """
        path = self.path
        try:
            source = path.read_bytes()
        except FileNotFoundError:
            raise ScriptError(f"{path}: no such file; give the path of a Python script") from None
        except OSError as error:
            raise ScriptError(f"{path}: cannot be read: {error.strerror}; give the path of a Python script") from None
        try:
            ast.parse(source, str(path))
        except SyntaxError as error:
            place = path if error.lineno is None else f"{path}:{error.lineno}"
            raise ScriptError(f"{place}: {error.msg}; correct the script") from None
        except ValueError as error:
            raise ScriptError(f"{path}: not Python: {error}") from None
        return source

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 hash of the file.

        Raises:
            ScriptError: if the file cannot be read, or is no Python.
        """
        return hashlib.sha256(self.read()).hexdigest()

    def run(self) -> None:
        """Run the script as ``python script.py`` does.

        Raises:
            ScriptError: if the script cannot be read.
            BaseException: the exception of the script.
        """
        path = self.path
        # A script that changes the working folder changes it for itself.
        with _searching(path.resolve().parent), _arguments([str(path), *self.arguments]), chdir(Path.cwd()):
            runpy.run_path(str(path), run_name="__main__")

    def load_function(self) -> Callable[..., Any]:
        """Import the file or module of the function, and return the function.

        Raises:
            ScriptError: if there is no such function.
            Exception: an exception of the user's code.
        """
        place, _, name = self.target.partition(":")
        path = self.path
        is_file = place.endswith(_SUFFIX)
        folder, module_name = (path.resolve().parent, path.stem) if is_file else (Path.cwd(), place)
        with _searching(folder), patch.object(optuna.Study, "optimize", self._refuse_optimize):
            module = importlib.import_module(module_name)
        function = getattr(module, name, None)
        if not callable(function):
            raise ScriptError(f"{path}: no function {name!r}; give one as {place}:function")
        return function  # type: ignore[no-any-return]  # the types of the user's code are unknown

    def _refuse_optimize(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse a search at the import of the function, because each worker would run it, too."""
        raise ScriptError(
            f"{self.path}: calls optimize when it is imported; put the call under if __name__ == '__main__', or run "
            f"the whole script: python -m hpo.launch {self.path}"
        )


@contextmanager
def _searching(folder: Path) -> Iterator[None]:
    """Import modules from a folder first. It stays on the path, because functions import later."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    yield


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, list(arguments)
    try:
        yield
    finally:
        sys.argv = before
