"""The studies of a script that runs under hpo, in the launch and in each of its workers."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo.config.study import ObjectiveConfig, StudyConfig, StudyTable
from hpo.errors import ScriptError, StorageError
from hpo.runner.function_objective import FunctionCall
from hpo.scripts.records import read_seen
from hpo.scripts.script import Script
from hpo.search.pruning.asha_pruner import AshaPruner
from hpo.search.registry import find_factory
from hpo.search.space import Space, build_space
from hpo.storage.database.connection import Database
from hpo.storage.leased_storage import LeasedStorage
from hpo.storage.study import Study

# The pruners by their names on the command line and in a study file.
SCRIPT_PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "asha": AshaPruner,
    "hyperband": HyperbandPruner,
    "median": MedianPruner,
    "none": NopPruner,
}
# A sampler that the script does not seed gets this seed.
SEED = 0

_UNSAFE = re.compile(r"[^\w.+=, -]+")
_MAX_FOLDER_LENGTH = 50


class ScriptEnded(BaseException):  # no error of the script
    """End of a script in this process, which the script must not catch.

    Attributes:
        cause: The error to report; None if the script has nothing left to do.
    """

    def __init__(self, cause: Exception | None = None) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass
class OpenStudy:
    """A study of a script.

    Attributes:
        study: The study in the database.
        storage: The storage of the script's objects.
        config: The study's name and the script, as a study file would have them.
        seen: The number of trials that the study had at each call of ``optimize`` of the script. A worker and a
            restarted launch show the script the same trials at the same call, so that a script that asks how many
            trials are left makes the same calls.
        default_samplers: The samplers that Optuna has chosen.
        optuna_study: The script's newest object of the study.
        calls: The calls of ``optimize`` for this study so far, by their numbers among all calls of the script.
        n_added: The trials that the script has enqueued or added so far.
    """

    study: Study
    storage: LeasedStorage
    config: StudyConfig
    seen: dict[int, int]
    default_samplers: list[BaseSampler] = field(default_factory=list)
    optuna_study: optuna.Study | None = None
    calls: list[int] = field(default_factory=list)
    n_added: int = 0

    def is_sampler_given(self, study: optuna.Study) -> bool:
        """Return whether the script has chosen the sampler of its object of this study."""
        return not any(study.sampler is default for default in self.default_samplers)


@dataclass(frozen=True)
class OptimizeArguments:
    """Arguments of ``Study.optimize``, with Optuna's names and defaults."""

    func: Callable[[optuna.Trial], float | Sequence[float]]
    n_trials: int | None = None
    timeout: float | None = None
    n_jobs: int = 1
    catch: Iterable[type[Exception]] | type[Exception] = ()
    callbacks: Iterable[Callable[[optuna.Study, FrozenTrial], None]] | None = None
    gc_after_trial: bool = False
    show_progress_bar: bool = False

    def call(self, seed: int) -> FunctionCall:
        """Return the part that a worker needs, for a study of this seed."""
        catch = (self.catch,) if isinstance(self.catch, type) else tuple(self.catch)
        return FunctionCall(self.func, catch, tuple(self.callbacks or ()), self.gc_after_trial, seed)


@dataclass(frozen=True)
class OptimizeCall:
    """One call of ``Study.optimize``.

    Attributes:
        study: The script's object of the study.
        opened: The study.
        arguments: The arguments of the call.
        index: The number of the call among all calls of the script, from 0.
        number: The number of the call among the calls for this study, from 0.
    """

    study: optuna.Study
    opened: OpenStudy
    arguments: OptimizeArguments
    index: int
    number: int


class ScriptSession:
    """Receiver of the calls of one run of a script.

    Args:
        script: The script.
        database: The database of studies that have no other.
        is_database_given: Whether all studies have this database, whatever the script says.
        note: Receives messages for the user.

    Attributes:
        opened: The studies of the script by their names.
    """

    def __init__(
        self,
        script: Script,
        database: Database,
        is_database_given: bool,
        note: Callable[[str], None],
    ) -> None:
        self.opened: dict[str, OpenStudy] = {}
        self._script = script
        self._database = database
        self._is_database_given = is_database_given
        self._note = note
        self._n_unnamed = 0
        self._n_calls = 0
        # The script may change the working folder.
        self._folder = Path.cwd()

    def create_study(self, **arguments: Any) -> optuna.Study:
        """Join the study that the script creates."""
        directions = _parse_directions(arguments)
        if directions is None:
            # Optuna raises its error for wrong arguments.
            return optuna.create_study(**arguments)
        name = arguments.get("study_name") or self._next_name()
        is_joined = name not in self.opened
        if is_joined:
            self._open(self._database_for(arguments.get("storage")), name, directions)
        # A study of an earlier launch is joined. Within one run of the script, Optuna's rule holds.
        joins = is_joined or arguments.get("load_if_exists", False)
        return self._optuna_study(name, arguments, optuna.create_study, load_if_exists=joins)

    def load_study(self, **arguments: Any) -> optuna.Study:
        """Load a study of the script, or an earlier one."""
        name = arguments.get("study_name") or next(iter(self.opened), self._script.name)
        if name not in self.opened:
            self._load(self._database_for(arguments.get("storage")), name)
        return self._optuna_study(name, arguments, optuna.load_study)

    def optimize(self, study: optuna.Study, *arguments: Any, **keywords: Any) -> None:
        """Handle a call of ``optimize``, if the script has created or loaded the study by Optuna's functions."""
        opened = self._opened_of(study)
        if opened is None:
            study.optimize(*arguments, **keywords)
            return
        call = OptimizeCall(study, opened, OptimizeArguments(*arguments, **keywords), self._n_calls, len(opened.calls))
        self._n_calls += 1
        opened.calls.append(call.index)
        self._handle(call)
        self._show_views()

    def ask(self, study: optuna.Study, *arguments: Any, **keywords: Any) -> optuna.Trial:
        """Refuse a trial outside of ``optimize``, because each worker would start it, too."""
        if self._opened_of(study) is None:
            return study.ask(*arguments, **keywords)
        raise ScriptEnded(
            ScriptError(
                f"{self._script.path}: study.ask is not for workers; call study.optimize, and study.enqueue_trial for "
                "the first parameters"
            )
        )

    def add_trials(self, study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
        """Add trials one by one."""
        for trial in trials:
            self.add_trial(study, trial)

    def add_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Add a trial."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connections of all studies."""
        for opened in self.opened.values():
            opened.study.close()

    def _handle(self, call: OptimizeCall) -> None:
        raise NotImplementedError

    def _open(self, database: Database, name: str, directions: Sequence[StudyDirection]) -> None:
        raise NotImplementedError

    def _load(self, database: Database, name: str) -> None:
        raise NotImplementedError

    def _config(self, name: str) -> StudyConfig:
        return self._script.study_file or script_config(self._script, name)

    def _space(self) -> Space | None:
        """Return the search space, None if only the function knows it."""
        config = self._script.study_file
        return build_space(config) if config is not None and config.space else None

    def _choose_pruner(self, study: optuna.Study, name: str | None) -> None:
        """Give a study the pruner of the command line or of the study file, if there is one."""
        config = self._script.study_file
        chosen = name if config is None else name or config.study.pruner
        if chosen is not None:
            study.pruner = find_factory(SCRIPT_PRUNERS, "study.pruner", chosen)()

    def _add(self, name: str, study: Study, config: StudyConfig) -> None:
        self.opened[name] = OpenStudy(study, study.leased_storage(), config, read_seen(study.optuna_study))
        self._show_views()

    def _show_views(self) -> None:
        """Show the script the trials that it saw when it first came to its next call of ``optimize``."""
        for opened in self.opened.values():
            opened.storage.show_first(opened.study.id, opened.seen.get(self._n_calls))

    def _show_all(self) -> None:
        """Show all trials."""
        for opened in self.opened.values():
            opened.storage.show_first(opened.study.id, None)

    def _opened_of(self, study: optuna.Study) -> OpenStudy | None:
        """Return a study of the script, None for a study that the script did not create by Optuna's functions."""
        opened = self.opened.get(study.study_name)
        return opened if opened is not None and opened.storage is study._storage else None

    def _optuna_study(
        self, name: str, arguments: Mapping[str, Any], function: Callable[..., optuna.Study], **changes: Any
    ) -> optuna.Study:
        opened = self.opened[name]
        study = function(**{**arguments, **changes, "study_name": name, "storage": opened.storage})
        if arguments.get("sampler") is None:
            opened.default_samplers.append(study.sampler)
        opened.optuna_study = study
        return study

    def _next_name(self) -> str:
        """Return the name of a study without a name."""
        while True:
            self._n_unnamed += 1
            name = self._script.name if self._n_unnamed == 1 else f"{self._script.name}-{self._n_unnamed}"
            if name not in self.opened:
                return name

    def _database_for(self, storage: Any) -> Database:
        """Return the database of a study whose script asks for this storage."""
        url = storage.url if isinstance(storage, RDBStorage) else storage
        if isinstance(storage, _CachedStorage):
            url = storage._backend.url  # noqa: SLF001  # Optuna wraps its storage
        if self._is_database_given or storage is None:
            return self._database
        if not isinstance(url, str):
            self._note(f"{type(storage).__name__} is replaced by {self._database.shown}, which all workers share")
            return self._database
        try:
            database = Database.parse(url)
        except StorageError as error:
            raise ScriptEnded(StorageError(f"{error}; --storage gives the script another one")) from None
        return database if Path.cwd() == self._folder else database.absolute()


def script_config(script: Script, name: str) -> StudyConfig:
    """Return the study of a script as a study file would describe it. Optuna allows any name."""
    table = StudyTable.model_construct(name=name, trials=1, seed=SEED, sampler="tpe", pruner="none")
    path = script.path
    objective = ObjectiveConfig(call=path.name, arguments=script.arguments)
    return StudyConfig.model_construct(study=table, data=None, train={}, space={}, objective=objective, path=path)


def results_folder(results: Path, name: str) -> Path:
    """Return the folder of a study's results. Studies with different names have different folders."""
    safe = _UNSAFE.sub("_", name).strip(" .")[:_MAX_FOLDER_LENGTH]
    if safe == name != "":
        return results / name
    return results / f"{safe or 'study'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _parse_directions(arguments: Mapping[str, Any]) -> list[StudyDirection] | None:
    """Return the directions in the arguments of ``create_study``, None if they are not valid."""
    given, direction = arguments.get("directions"), arguments.get("direction")
    if given is None:
        given = ["minimize" if direction is None else direction]
    elif direction is not None:
        return None
    try:
        directions = [
            value if isinstance(value, StudyDirection) else StudyDirection[str(value).upper()] for value in given
        ]
    except KeyError:
        return None
    return directions if directions and StudyDirection.NOT_SET not in directions else None
