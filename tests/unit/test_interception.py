"""Replacement of Optuna's functions: in all modules, paused within a call, and only within its block."""

import optuna
import pytest
from optuna.study import Study, study

from hpo.scripts.interception import Interception

FUNCTIONS = ("create_study", "load_study", "delete_study")
METHODS = ("optimize", "ask", "enqueue_trial", "add_trial", "add_trials")
MODULES = (optuna, optuna.study, study)


def replaceable():
    """Return all attributes that an interception replaces."""
    return [getattr(module, name) for module in MODULES for name in FUNCTIONS] + [
        getattr(Study, name) for name in METHODS
    ]


ORIGINALS = replaceable()


class Recorder:
    """Interceptor that records calls, and whether Optuna's own functions are in place during a call."""

    def __init__(self, on_call=lambda: None):
        self.calls = []
        self._on_call = on_call

    def __getattr__(self, name):
        def receive(*arguments, **keywords):
            assert replaceable() == ORIGINALS
            self.calls.append((name, arguments, keywords))
            self._on_call()
            return name

        return receive


@pytest.fixture
def own():
    """Return a study that Optuna itself has created."""
    return optuna.create_study()


def test_each_function_is_replaced_in_all_modules(own):
    recorder = Recorder()
    with Interception(recorder):
        for name in FUNCTIONS:
            for module in MODULES:
                assert getattr(module, name)(study_name="s") == name
        for name in METHODS:
            assert getattr(own, name)(1, a=2) == name
    assert recorder.calls[:: len(MODULES)][: len(FUNCTIONS)] == [(name, (), {"study_name": "s"}) for name in FUNCTIONS]
    assert recorder.calls[-len(METHODS) :] == [(name, (own, 1), {"a": 2}) for name in METHODS]
    assert replaceable() == ORIGINALS


def test_replacement_has_name_and_signature_of_original():
    with Interception(Recorder()):
        assert optuna.create_study.__name__ == "create_study"
        assert optuna.Study.optimize.__doc__ == ORIGINALS[-len(METHODS)].__doc__


def test_functions_are_restored_after_exception():
    with pytest.raises(LookupError), Interception(Recorder()):
        raise LookupError
    assert replaceable() == ORIGINALS


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_functions_are_replaced_again_after_exception_in_call(error):
    def fail():
        raise error

    with Interception(Recorder(fail)):
        replaced = replaceable()
        with pytest.raises(error):
            optuna.create_study()
        assert [value.__wrapped__ for value in replaceable()] == [value.__wrapped__ for value in replaced]
        assert replaceable() != ORIGINALS
    assert replaceable() == ORIGINALS


def test_call_reaches_optuna_itself():
    class Passing(Recorder):
        def create_study(self, **arguments):
            return optuna.create_study(**arguments)

    with Interception(Passing()):
        assert optuna.create_study(study_name="own").study_name == "own"
