"""Hyperparameter optimization by worker processes that may crash without losing work."""

import os
import signal
import sys
from typing import Any

__all__ = ["AshaPruner", "load_checkpoint", "load_predictor", "load_split", "save_checkpoint"]

if sys.argv[:1] == ["-m"]:
    if sys.platform == "win32":
        sys.exit("hpo: Windows is not supported, because workers are forked; use the Windows Subsystem for Linux (WSL)")
    # hpo uses joblib for files only. If /dev/shm is full or read-only, joblib warns that it has no semaphores. A script
    # may use joblib for more.
    if not any(".py" in argument or argument.startswith("hpo.scripts") for argument in sys.orig_argv[1:]):
        os.environ["JOBLIB_MULTIPROCESSING"] = "0"
    # `python -m hpo.launch` imports for a second before the command line is parsed. Ctrl-C then needs no traceback.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def __getattr__(name: str) -> Any:
    # Every command imports this package first, and most commands need none of these names.
    match name:
        case "AshaPruner":
            from hpo.search.pruning.asha_pruner import AshaPruner

            return AshaPruner
        case "load_checkpoint":
            from hpo.runner.function_trial import load_checkpoint

            return load_checkpoint
        case "save_checkpoint":
            from hpo.runner.function_trial import save_checkpoint

            return save_checkpoint
        case "load_predictor":
            from hpo.models.predictor import load_predictor

            return load_predictor
        case "load_split":
            from hpo.data.division.splits import load_split

            return load_split
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
