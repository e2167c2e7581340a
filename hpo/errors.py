"""Errors that a user can fix; each command prints their message in one line.

    HpoError
    ├── StudyFileError           a study file that is missing or invalid
    ├── ScriptError              a script that is missing or cannot be run
    │   ├── ScriptFailedError    a script that raises an exception
    │   └── CallbackError        a callback that raises an exception
    ├── EnqueueError             parameters to enqueue that are missing or invalid
    ├── DataError                a data set that is missing or unusable
    │   └── MissingDataError     a data set that is missing
    ├── StorageError             a database that cannot be reached or used
    │   ├── StudyMismatchError   a study that was created from other settings or other data
    │   └── DatabaseTimeoutError a database that does not answer
    ├── OutputError              a folder or file that cannot be written
    │   └── ReaderGoneError      a stdout that is closed or that nobody reads any more
    ├── LimitError               a limit that this machine cannot enforce
    ├── DashboardError           a dashboard that cannot listen on its address
    ├── WorkerStartupError       workers that crash before they train a trial
    ├── WorkerRefusalError       workers that die of the same expected error
    └── TrialFailureError        failed trials, or no complete trial

A message states what is wrong, where, and what to do.
"""


class HpoError(Exception):
    """Root of the errors that a command reports in one line with exit code 1."""


class StudyFileError(HpoError):
    """A study file that is missing or invalid."""


class ScriptError(HpoError):
    """A script that is missing or cannot be run, or a function that it lacks."""


class ScriptFailedError(ScriptError):
    """A script that raises an exception outside its objective."""


class CallbackError(ScriptError):
    """A callback of a script that raises an exception."""


class EnqueueError(HpoError):
    """Parameters to enqueue that are missing or invalid."""


class DataError(HpoError):
    """A data set that is missing or unusable."""


class MissingDataError(DataError):
    """A data set that is missing."""


class StorageError(HpoError):
    """A database that cannot be reached or used."""


class StudyMismatchError(StorageError):
    """A study that was created from other settings or other data."""


class DatabaseTimeoutError(StorageError):
    """A database that does not answer."""


class OutputError(HpoError):
    """A folder or file that cannot be written."""


class ReaderGoneError(OutputError):
    """A stdout that is closed, or that nobody reads any more."""


class LimitError(HpoError):
    """A limit that this machine cannot enforce, or that leaves no room to train."""


class DashboardError(HpoError):
    """A dashboard that cannot listen on its address."""


class WorkerStartupError(HpoError):
    """Workers that crash before they train a trial."""


class WorkerRefusalError(HpoError):
    """Workers that die of the same expected error, which no trial has caused."""


class TrialFailureError(HpoError):
    """Trials that failed, or no complete trial to export."""
