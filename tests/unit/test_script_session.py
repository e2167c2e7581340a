"""Studies of a script that runs under hpo: their names, directions, databases and folders."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import create_trial

from hpo.scripts.script import Script
from hpo.scripts.session import OptimizeArguments, ScriptEnded, ScriptSession, results_folder
from hpo.storage.database.connection import Database

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE


class Storage(InMemoryStorage):
    """Storage in memory that can be told to hide trials."""

    def show_first(self, study_id, count):
        """Ignore the call."""


class FakeSession(ScriptSession):
    """Session whose studies are in memory.

    Attributes:
        joined: The databases, names and directions of the opened studies.
        notes: The messages for the user.
    """

    def __init__(self, target="folder/train.py", *, is_given=False):
        self.joined, self.notes = [], []
        super().__init__(Script(target), Database.parse("sqlite:///hpo.db"), is_given, self.notes.append)

    def _open(self, database, name, directions):
        self.joined.append((database.shown, name, directions))
        storage = Storage()
        study = optuna.create_study(study_name=name, directions=directions, storage=storage)
        opened = SimpleNamespace(
            id=study._study_id, optuna_study=study, leased_storage=lambda: storage, close=lambda: None
        )
        self._add(name, opened, self._config(name))

    def _load(self, database, name):
        self._open(database, name, [MINIMIZE])


@pytest.fixture
def session():
    return FakeSession()


# Directions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [MINIMIZE]),
        ({"direction": None, "directions": None}, [MINIMIZE]),
        ({"direction": "maximize"}, [MAXIMIZE]),
        ({"direction": MAXIMIZE}, [MAXIMIZE]),
        ({"directions": ["minimize", "maximize"]}, [MINIMIZE, MAXIMIZE]),
        ({"directions": (MAXIMIZE, "minimize")}, [MAXIMIZE, MINIMIZE]),
    ],
)
def test_directions_are_those_of_optuna(session, arguments, expected):
    study = session.create_study(**arguments)
    assert study.directions == expected == optuna.create_study(**arguments).directions
    assert session.joined == [("sqlite:///hpo.db", "train", expected)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"direction": "up"},
        {"direction": StudyDirection.NOT_SET},
        {"directions": []},
        {"directions": ["minimize", "up"]},
        {"direction": "minimize", "directions": ["minimize"]},
    ],
)
def test_wrong_directions_are_error_of_optuna(session, arguments):
    with pytest.raises(ValueError) as expected:
        optuna.create_study(**arguments)
    with pytest.raises(ValueError) as error:
        session.create_study(**arguments)
    assert str(error.value) == str(expected.value)
    assert session.joined == []


# Names


def test_studies_without_name_are_named_after_file(session):
    names = [session.create_study().study_name for _ in range(3)]
    assert names == ["train", "train-2", "train-3"]


def test_name_of_study_without_name_is_free(session):
    for name in ("train", "train-2"):
        session.create_study(study_name=name)
    assert session.create_study().study_name == "train-3"


def test_study_is_created_once_in_a_run(session):
    session.create_study(study_name="s")
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        session.create_study(study_name="s")
    again = session.create_study(study_name="s", load_if_exists=True)
    assert again.study_name == "s"
    assert len(session.joined) == 1


def test_loaded_study_is_opened_once(session):
    created = session.create_study(study_name="s", sampler=RandomSampler())
    loaded = session.load_study(study_name="s", storage="sqlite:///other.db")
    assert loaded._storage is created._storage
    assert session.load_study(study_name=None).study_name == "s"
    assert len(session.joined) == 1


def test_study_of_other_launch_is_loaded(session):
    assert session.load_study(study_name="older", storage="sqlite:///other.db").study_name == "older"
    assert session.joined == [("sqlite:///other.db", "older", [MINIMIZE])]


def test_study_that_optuna_created_is_none_of_the_script(session):
    session.create_study(study_name="s")
    assert session._opened_of(optuna.create_study(study_name="s")) is None


def test_trial_outside_of_optimize_is_refused(session):
    with pytest.raises(ScriptEnded) as ended:
        session.ask(session.create_study())
    assert str(ended.value.cause).startswith("folder/train.py: study.ask is not for workers; call study.optimize")
    # A study that Optuna itself has created is in no database of hpo.
    assert session.ask(optuna.create_study()).number == 0


# Databases


def test_storage_of_script_chooses_database(session):
    for name, storage in (
        ("none", None),
        ("url", "sqlite:///own.db"),
        ("rdb", optuna.storages.RDBStorage("sqlite:///rdb.db")),
        ("wrapped", optuna.storages.get_storage("sqlite:///wrapped.db")),
        ("postgresql", "postgresql+psycopg2://user:secret@host/db"),
    ):
        session.create_study(study_name=name, storage=storage)
    shown = [database for database, _, _ in session.joined]
    assert shown[:4] == ["sqlite:///hpo.db", "sqlite:///own.db", "sqlite:///rdb.db", "sqlite:///wrapped.db"]
    assert shown[4].endswith("@host/db")
    assert "secret" not in shown[4]
    assert session.notes == []


def test_given_database_has_precedence():
    session = FakeSession(is_given=True)
    session.create_study(storage="sqlite:///own.db")
    session.create_study(storage=InMemoryStorage())
    assert {database for database, _, _ in session.joined} == {"sqlite:///hpo.db"}
    assert session.notes == []


@pytest.mark.parametrize("make", [InMemoryStorage, lambda: JournalStorage(JournalFileBackend("journal.log"))])
def test_storage_without_database_is_replaced_with_note(session, make):
    storage = make()
    session.create_study(storage=storage)
    assert session.notes == [f"{type(storage).__name__} is replaced by sqlite:///hpo.db, which all workers share"]
    assert session.joined[0][0] == "sqlite:///hpo.db"


def test_database_that_hpo_does_not_support_ends_script(session):
    with pytest.raises(ScriptEnded) as ended:
        session.create_study(storage="mysql://user:secret@host/db")
    assert "--storage gives the script another one" in str(ended.value.cause)
    assert "secret" not in str(ended.value.cause)


# Samplers, and the rest


def test_default_sampler_is_known(session):
    given = session.create_study(study_name="given", sampler=NSGAIISampler())
    default = session.create_study(study_name="default")
    assert session.opened["given"].is_sampler_given(given)
    assert not session.opened["default"].is_sampler_given(default)
    default.sampler = RandomSampler()
    assert session.opened["default"].is_sampler_given(default)
    reloaded = session.load_study(study_name="default")
    assert not session.opened["default"].is_sampler_given(reloaded)


def test_trials_are_added_one_by_one(session):
    added = []
    session.add_trial = lambda study, trial: added.append((study, trial))
    trials = [create_trial(value=value) for value in (1.0, 2.0)]
    session.add_trials("study", iter(trials))
    assert added == [("study", trial) for trial in trials]


def test_arguments_of_optimize_are_those_of_optuna():
    parameters = list(inspect.signature(optuna.Study.optimize).parameters.values())[1:]
    own = list(inspect.signature(OptimizeArguments).parameters.values())
    assert [(own.name, own.default) for own in own] == [(its.name, its.default) for its in parameters]


def test_single_exception_or_several_are_caught():
    assert OptimizeArguments(len, catch=ValueError).call(5).catch == (ValueError,)
    assert OptimizeArguments(len, catch=[ValueError, KeyError]).call(5).catch == (ValueError, KeyError)
    assert OptimizeArguments(len).call(5).catch == ()
    assert OptimizeArguments(len, callbacks=None).call(5).callbacks == ()


# Folders


@pytest.mark.parametrize("name", ["train", "my-study_2.1", "My study", "größe"])
def test_folder_of_results_has_name_of_study(name):
    assert results_folder(Path("results"), name) == Path("results") / name


@pytest.mark.parametrize(
    "name", ["a/b", "../up", "/etc", "..", ".", "", ".hidden", "a\nb", "a\\b", "a:b", "x" * 500, "a\x00b", " "]
)
def test_folder_of_results_is_within_results(name):
    folder = results_folder(Path("results"), name)
    assert folder.parent == Path("results")
    assert not folder.name.startswith(".")
    assert folder.name.strip() == folder.name != ""
    folder.mkdir(parents=True)


def test_different_names_have_different_folders():
    names = ["a b", "a/b", "a_b", "a:b", "日本", "中国", "..", ".", "", "study", *("x" * 300 + end for end in "ab")]
    assert len({results_folder(Path(), name) for name in names}) == len(names)
