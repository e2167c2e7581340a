"""Hyperparameter optimization of a NumPy neural net by a fleet that cannot lose work."""

import os
import signal
import sys
from typing import Any

__all__ = ["load_predictor", "load_split"]

if sys.argv[:1] == ["-m"]:
    # `python -m hpo.launch` has a second of imports before it: Ctrl-C there is no traceback either.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def __getattr__(name: str) -> Any:
    # Every command imports this package first; most need neither.
    match name:
        case "load_predictor":
            from hpo.models.predictor import load_predictor

            return load_predictor
        case "load_split":
            from hpo.data.cache import load_split

            return load_split
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
