"""Errors that a user can mend, each told in one line.

    HpoError
    ├── StudyFileError     a study file that is missing or wrong
    ├── EnqueueError       parameters to try first that are missing or wrong
    ├── DataError          a data set that is missing or unusable
    ├── StorageError       a database that cannot be reached or used
    │   └── StudyMismatchError   a study made from other settings or other data
    ├── OutputError        a folder or file that cannot be written
    └── TrialFailureError  trials that crashed at every attempt, or no trial to show

The message says what is wrong, where, and what to do.
"""


class HpoError(Exception):
    """The root: the commands print its message in one line and exit with 1."""


class StudyFileError(HpoError):
    """A study file that is missing or wrong."""


class EnqueueError(HpoError):
    """Parameters to try first that are missing, or that a study cannot try."""


class DataError(HpoError):
    """A data set that is missing or unusable."""


class StorageError(HpoError):
    """A database that cannot be reached or used."""


class StudyMismatchError(StorageError):
    """A study that was made from other settings or other data."""


class OutputError(HpoError):
    """A folder or file that cannot be written."""


class TrialFailureError(HpoError):
    """Trials that crashed at every attempt, or no finished trial to show."""
