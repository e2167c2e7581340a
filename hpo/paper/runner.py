"""Where the experiments of the report are done: each an ordinary study, trained by a fleet, in one database."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpo.config.study import Range, Setting, Split, StudyConfig, find_study, load_config
from hpo.data.cache import PreparedData, load_prepared, prepare, raw_split
from hpo.data.sources import Array
from hpo.models.optional_dependencies import check_installed
from hpo.models.predictor import Predictor
from hpo.runner.limits import Limits
from hpo.runner.worker_loop import WorkerConfig
from hpo.search.enqueue import Params
from hpo.search.samplers import check_feasible
from hpo.storage import database as storage
from hpo.storage.study import Study
from hpo.tuning.result import export_best, export_trial
from hpo.tuning.stages import Crew, has_ended, introduction, joined
from hpo.ui.display import clock, count_of

QUICK_SPLIT = Split(train=5000, validation=1000, test=1000)
QUICK_TRIALS = 8  # of a study, at most
QUICK_EPOCHS = 20  # of so many one is left, but at least two


@dataclass(frozen=True)
class Measured:
    """A trial of a study: its number, the accuracies of its net on each split, its loss, and the net."""

    number: int
    metrics: Mapping[str, float]
    predictor: Predictor


@dataclass(frozen=True)
class Trained:
    """A study whose trials have all ended, with its file and the folder of its data."""

    study: Study
    spec: StudyConfig
    path: Path
    folder: Path

    @property
    def name(self) -> str:
        """Of the study."""
        return self.spec.study.name

    @property
    def effort(self) -> str:
        """The study's name, how many trials and what time: that in which at least one of them was on its way."""
        trials = self.study.trials
        spans = ((trial.datetime_start, trial.datetime_complete) for trial in trials)
        seconds = covered((start.timestamp(), end.timestamp()) for start, end in spans if start and end)
        time = f"{seconds:.2g} s" if seconds < 60 else clock(seconds)
        return f"`{self.name}`, {count_of(len(trials), 'trial')} in {time}"

    def best(self) -> Measured:
        """The best trial."""
        return _measured(export_best(self.study, self.spec, self.folder))

    def trial_with(self, **settings: Setting) -> Measured:
        """The first trial with these hyperparameters."""
        all_settings = (self.spec.hyperparameters(trial.params).model_dump() for trial in self.study.trials)
        number = next(number for number, one in enumerate(all_settings) if settings.items() <= one.items())
        return _measured(export_trial(self.study, self.spec, self.folder, number))

    def test(self) -> tuple[Array, Array]:
        """Raw features and labels of the test split."""
        return raw_split(self.spec, self.path)["test"]


@dataclass(frozen=True)
class Lab:
    """What the experiments are done with.

    Attributes:
        crew: trains the studies.
        url: of the database.
        limits: of every trial.
        quick: whether studies of images are cut down to what takes seconds.
        verbose: whether tracebacks are shown.
        tell: is told what comes to be trained.
    """

    crew: Crew
    url: str
    limits: Limits
    quick: bool
    verbose: bool
    tell: Callable[[str], None]

    @contextmanager
    def trained(
        self, study: str, name: str | None = None, enqueued: Sequence[Params] = (), **changes: Setting
    ) -> Iterator[Trained]:
        """A study, trained to the end of its budget if it is not yet.

        Args:
            study: the name of its file.
            name: what it is called instead, if its file is changed.
            enqueued: what it tries first.
            changes: to its [study] and its [train].

        Raises:
            HpoError: something that the user can mend.
            LaunchStoppedError: a signal stopped the training.
        """
        spec, path = self._load(study, name or study, changes)
        if self._cuts(spec):
            enqueued = [_fewer_epochs(params) for params in enqueued]
        budget = spec.study.trials
        check_installed(spec)
        check_feasible(spec, budget)
        url = storage.parse_url(self.url)
        folder = prepare(spec, path)
        data = load_prepared(folder)
        with storage.translate_errors(url), joined(url, spec, data.fingerprint) as opened:
            if not has_ended(opened.trials, budget):
                self.tell(introduction(spec, budget, url, data))
                config = WorkerConfig(self.url, spec, folder, budget, self.limits, self.verbose, tuple(enqueued))
                replace(self.crew, workers=min(self.crew.workers, budget)).train(opened, config, spec.study.name)
            yield Trained(opened, spec, path, folder)

    def prepared(self, study: str) -> PreparedData:
        """The data of a study.

        Raises:
            HpoError: something that the user can mend.
        """
        return load_prepared(prepare(*self._load(study, study, {})))

    def _load(self, study: str, name: str, changes: Mapping[str, Setting]) -> tuple[StudyConfig, Path]:
        path = find_study(study)
        spec = derived(load_config(path), name, changes)
        return (quick_version(spec) if self._cuts(spec) else spec), path

    def _cuts(self, spec: StudyConfig) -> bool:
        return self.quick and spec.data.dataset == "cifar10"


def derived(spec: StudyConfig, name: str, changes: Mapping[str, Setting]) -> StudyConfig:
    """The study under another name, with these settings of its [study] or its [train]."""
    tables = spec.model_dump()
    tables["study"]["name"] = name
    for key, value in changes.items():
        tables["study" if key in tables["study"] else "train"][key] = value
    return StudyConfig.model_validate(tables)


def quick_version(spec: StudyConfig) -> StudyConfig:
    """A study of the same kind that takes seconds."""
    study = {"name": f"{spec.study.name}_quick", "trials": min(spec.study.trials, QUICK_TRIALS)}
    space = dict(spec.space)
    if isinstance(epochs := space.get("epochs"), Range):
        space["epochs"] = epochs.model_copy(update={end: _fewer(getattr(epochs, end)) for end in ("low", "high")})
    return spec.model_copy(
        update={
            "study": spec.study.model_copy(update=study),
            "data": spec.data.model_copy(update={"split": QUICK_SPLIT}),
            "train": _fewer_epochs(spec.train),
            "space": space,
        }
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _fewer_epochs(params: Params) -> dict[str, Any]:
    return {key: _fewer(value) if key == "epochs" else value for key, value in params.items()}


def _fewer(epochs: Any) -> int:
    return max(2, int(epochs) // QUICK_EPOCHS)


def _measured(exported: tuple[dict[str, Any], Predictor]) -> Measured:
    parameters, predictor = exported
    return Measured(parameters["trial"], parameters["metrics"], predictor)
