"""Training of the studies of the experiments, all in one database."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.config.loader import find_study, load_config, with_overrides
from hpo.config.study import Range, Setting, SplitConfig, StudyConfig
from hpo.data.division.splits import raw_splits
from hpo.data.prepared.cache import PreparedData, prepare
from hpo.data.sources import Array
from hpo.errors import MissingDataError
from hpo.fleet.status import ProgressListener
from hpo.models.nets.hyperparameters import hyperparameters_of
from hpo.models.predictor import Predictor
from hpo.runner.limits import Limits
from hpo.search.enqueue import Params
from hpo.storage.database.connection import Database
from hpo.storage.study import load_study
from hpo.tuning.result import export_trial
from hpo.tuning.tuner import Tuner, TuningResult
from hpo.utils.text import count_of, format_duration

QUICK_SPLIT = SplitConfig(train=5000, validation=1000, test=1000)
QUICK_MAX_TRIALS = 8

# Epochs are divided by this number; at least two are left.
QUICK_EPOCHS_DIVISOR = 20


@dataclass(frozen=True)
class TrialResult:
    """Number of a trial, the metrics of its net on each split, and the net."""

    number: int
    metrics: Mapping[str, float]
    predictor: Predictor


@dataclass(frozen=True)
class TrainedStudy:
    """Study with a finished budget."""

    config: StudyConfig
    database: Database
    result: TuningResult

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.config.study.name

    @property
    def cost_summary(self) -> str:
        """Name of the study, its number of trials, and the time during which at least one trial ran."""
        trials = self.result.trials
        spans = ((trial.datetime_start, trial.datetime_complete) for trial in trials)
        seconds = busy_seconds((start.timestamp(), end.timestamp()) for start, end in spans if start and end)
        time = f"{seconds:.2g} s" if seconds < 60 else format_duration(seconds)
        return f"`{self.name}`, {count_of(len(trials), 'trial')} in {time}"

    def best(self) -> TrialResult:
        """Return the best trial."""
        if self.result.predictor is None:
            raise MissingDataError(self.result.missing_data)
        return _trial_result(self.result.parameters, self.result.predictor)

    def trial_with(self, **settings: Setting) -> TrialResult:
        """Return the first trial with these hyperparameters."""
        number = next(
            trial.number
            for trial in self.result.trials
            if settings.items() <= hyperparameters_of(self.config, trial.params).model_dump().items()
        )
        with self.database.translate_errors(), load_study(self.database, self.config) as study:
            return _trial_result(*export_trial(study, self.config, prepare(self.config), number))

    def test_split(self) -> tuple[Array, Array]:
        """Return raw features and labels of the test split."""
        return raw_splits(self.config)["test"]


@dataclass(frozen=True, kw_only=True)
class ExperimentRunner:
    """Trains the studies of the experiments.

    Attributes:
        database: The database of all studies.
        workers: The number of workers.
        limits: The limits of each trial.
        listener_for: Function that returns the progress listener for the title of a study.
        quick: Whether the studies of images are cut down to seconds.
        verbose: Whether the exits of workers have a traceback.
        log: The receiver of a banner of each study before its training.
    """

    database: Database
    workers: int
    limits: Limits
    listener_for: Callable[[str], ProgressListener]
    quick: bool
    verbose: bool
    log: Callable[[str], None]

    def train(
        self, study: str, name: str | None = None, enqueued: Sequence[Params] = (), **changes: Setting
    ) -> TrainedStudy:
        """Train a study until its budget is finished.

        Args:
            study: The name of the study file.
            name: The name of the study if it differs from the file's.
            enqueued: The parameters to try first.
            changes: New values for the file's [study] and [train] tables.

        Raises:
            HpoError: if the user has to fix the data, the database or a trial.
            TuningInterruptedError: if a stop signal arrived.
        """
        config = self._load(study, name or study, changes)
        if self._is_cut(config):
            enqueued = [_with_fewer_epochs(params) for params in enqueued]
        tuner = Tuner(
            config=config,
            database=self.database,
            workers=min(self.workers, config.study.trials),
            listener_for=self.listener_for,
            limits=self.limits,
            enqueued=tuple(enqueued),
            verbose=self.verbose,
            on_start=self.log,
        )
        return TrainedStudy(config, self.database, tuner.run())

    def prepare(self, study: str) -> PreparedData:
        """Prepare the data of a study.

        Raises:
            DataError: if the data are missing or unusable.
        """
        return prepare(self._load(study, study, {}))

    def _load(self, study: str, name: str, changes: Mapping[str, Setting]) -> StudyConfig:
        config = with_overrides(load_config(find_study(study)), name, changes)
        return quick_version(config) if self._is_cut(config) else config

    def _is_cut(self, config: StudyConfig) -> bool:
        return self.quick and config.data is not None and config.data.dataset == "cifar10"


def quick_version(config: StudyConfig) -> StudyConfig:
    """Return a study of the same kind that takes seconds."""
    assert config.data is not None
    study = {"name": f"{config.study.name}_quick", "trials": min(config.study.trials, QUICK_MAX_TRIALS)}
    space = dict(config.space)
    if isinstance(epochs := space.get("epochs"), Range):
        space["epochs"] = epochs.model_copy(update={end: _fewer(getattr(epochs, end)) for end in ("low", "high")})
    return config.model_copy(
        update={
            "study": config.study.model_copy(update=study),
            "data": config.data.model_copy(update={"split": QUICK_SPLIT}),
            "train": _with_fewer_epochs(config.train),
            "space": space,
        }
    )


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _with_fewer_epochs(params: Params) -> dict[str, Any]:
    return {key: _fewer(value) if key == "epochs" else value for key, value in params.items()}


def _fewer(epochs: Any) -> int:
    return max(2, int(epochs) // QUICK_EPOCHS_DIVISOR)


def _trial_result(parameters: dict[str, Any], predictor: Predictor) -> TrialResult:
    return TrialResult(parameters["trial"], parameters["metrics"], predictor)
