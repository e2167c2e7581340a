"""Replacement of the functions of Optuna that a script calls to create and to optimize a study."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from unittest.mock import patch

import optuna
from optuna.trial import FrozenTrial

# The functions by their names, and the modules in which scripts and libraries find them.
_FUNCTIONS = ("create_study", "load_study", "delete_study")
_MODULES = (optuna, optuna.study, optuna.study.study)
_METHODS = ("optimize", "ask", "enqueue_trial", "add_trial", "add_trials")


class Interceptor(Protocol):
    """Receiver of a script's calls. While it handles a call, Optuna's own functions are in place."""

    def create_study(self, **arguments: Any) -> optuna.Study:
        """Return a study that the script creates."""

    def load_study(self, **arguments: Any) -> optuna.Study:
        """Return a study that the script loads."""

    def delete_study(self, **arguments: Any) -> None:
        """Delete a study."""

    def optimize(self, study: optuna.Study, *arguments: Any, **keywords: Any) -> None:
        """Optimize a study."""

    def ask(self, study: optuna.Study, *arguments: Any, **keywords: Any) -> optuna.Trial:
        """Start a trial outside of ``optimize``."""

    def enqueue_trial(self, study: optuna.Study, *arguments: Any, **keywords: Any) -> None:
        """Add a trial with fixed parameters."""

    def add_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Add a trial."""

    def add_trials(self, study: optuna.Study, trials: Any) -> None:
        """Add trials."""


class Interception:
    """Replacement of Optuna's functions within a block.

    Args:
        interceptor: The receiver of the calls.
    """

    def __init__(self, interceptor: Interceptor) -> None:
        self._interceptor = interceptor
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for name in _FUNCTIONS:
            replacement = self._replace(getattr(optuna, name), name)
            for module in _MODULES:
                self._stack.enter_context(patch.object(module, name, replacement))
        for name in _METHODS:
            replacement = self._replace(getattr(optuna.Study, name), name)
            self._stack.enter_context(patch.object(optuna.Study, name, replacement))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _replace(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        receive = getattr(self._interceptor, name)

        @functools.wraps(original)
        def replacement(*arguments: Any, **keywords: Any) -> Any:
            with self._paused():
                return receive(*arguments, **keywords)

        return replacement

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._stack.close()
        try:
            yield
        finally:
            self.__enter__()
