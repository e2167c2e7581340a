"""Tables of a study file as frozen, validated models.

The models check the structure of a study file: its tables, its keys, and the type of each value. They do not know which
hyperparameters, samplers and pruners exist, because the packages that implement these check them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

Number = int | float
# Value of a parameter in a trial. Optuna cannot store lists.
Parameter = Number | str | bool
# Value of a hyperparameter in a study file.
Setting = Parameter | Annotated[tuple[Number, ...], Field(strict=False)]
# Names or positions of columns.
ColumnKeys = Annotated[tuple[str | int, ...], Field(strict=False)]
# Each fold has its own copy of the prepared data and its own model.
MAX_FOLDS = 100


# Parameter of a trial that names its model, if the study compares models.
MODEL = "model"
# Name of a model in a list of models.
_NAME = r"^[A-Za-z0-9_-]+$"


class Table(BaseModel):
    """Table of a study file with a fixed set of keys and without type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Range(Table):
    """Interval to search.

    Attributes:
        low: The lower end, included.
        high: The upper end, included.
        log: Whether the scale is logarithmic.
    """

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low > self.high:
            raise table_error(f"low = {self.low} is above high = {self.high}; low <= high is required")
        if self.log and self.low <= 0:
            raise table_error(f"log = true needs low > 0, not low = {self.low}")
        return self

    @property
    def ends(self) -> tuple[Number, Number]:
        """Both ends."""
        return self.low, self.high


class Choices(Table):
    """List of settings to choose from."""

    choices: Annotated[tuple[Setting, ...], Field(min_length=1, strict=False)]

    @property
    def stored(self) -> dict[Parameter, Setting]:
        """Choices by their value in a trial: a list is stored as JSON text."""
        return {json.dumps(choice) if isinstance(choice, tuple) else choice: choice for choice in self.choices}


def _kind(value: Any) -> str:
    choices = isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value)
    return "choices" if choices else "range"


RangeOrChoices = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(_kind),
]


class SplitConfig(Table):
    """Sizes of the three splits: three counts of rows, or three fractions of the data.

    With folds, only the size of the test split is given.
    """

    train: Number = 0.7
    validation: Number = 0.15
    test: Number = 0.15

    def check(self) -> None:
        """Refuse sizes that are neither three counts nor three fractions."""
        sizes = (self.train, self.validation, self.test)
        counts = all(isinstance(size, int) and size >= 1 for size in sizes)
        # Fractions such as 0.7 + 0.15 + 0.15 can exceed 1 by a rounding error.
        fractions = all(isinstance(size, float) and 0 < size < 1 for size in sizes) and sum(sizes) <= 1 + 1e-9
        if not counts and not fractions:
            raise table_error(
                f"train = {self.train}, validation = {self.validation}, test = {self.test}; "
                "three counts of at least 1 are allowed, or three fractions that add up to at most 1.0",
                at=("split",),
            )

    def check_folded(self) -> None:
        """Refuse sizes that contradict folds."""
        if given := sorted(self.model_fields_set & {"train", "validation"}):
            problem = "follows from data.folds; remove it, and give the size of the test split alone"
            raise table_error(problem, at=("split", given[0]))
        is_count = isinstance(self.test, int) and self.test >= 1
        is_fraction = isinstance(self.test, float) and 0 < self.test < 1
        if not is_count and not is_fraction:
            raise table_error(f"{self.test}; a count of at least 1, or a fraction, is allowed", at=("split", "test"))


class DataConfig(Table):
    """Data of a study and their preprocessing.

    Attributes:
        dataset: The name of a built-in data set, or the path of a file.
        task: Whether the labels are classes or numbers; None to decide by the labels.
        header: Whether the first row of a CSV file is a header; None to decide by its content.
        label: The name of the label column of a CSV file, or its position from 0; None for the last column.
        drop: Columns that are no features, by name or position; None to leave out the index that pandas writes.
        categorical: Columns whose values are categories, by name or position; None to decide by the values.
        numeric: Columns whose values are numbers, and whose other texts are missing values.
        date: Columns whose values are dates.
        split: The sizes of the splits.
        scale: The scaling that is fitted to the training split; None for the default of the data set.
        pca: The share of the variance that the PCA keeps; 0 for no PCA.
        mirror: Whether the training split includes the mirror image of each image.
        shift: The number of pixels by which four additional copies of each training image are shifted up, down, left
            and right; 0 for no copies.
        group: The column of the groups, of which none is in two splits; the name of an array in an archive.
        order: The column that orders the rows in time; the name of an array in an archive.
        folds: The number of folds of a cross-validation; None for a single validation split.
        repeats: The number of cross-validations, each with other folds.
    """

    dataset: Annotated[str, Field(min_length=1)]
    task: Literal["classification", "regression"] | None = None
    header: bool | None = None
    label: str | int | None = None
    drop: ColumnKeys | None = None
    categorical: ColumnKeys | None = None
    numeric: ColumnKeys | None = None
    date: ColumnKeys | None = None
    split: SplitConfig = SplitConfig()
    scale: Literal["feature", "global", "none"] | None = None
    pca: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mirror: bool = False
    shift: Annotated[NonNegativeInt, Field(lt=16)] = 0
    group: str | int | None = None
    order: str | int | None = None
    folds: Annotated[int, Field(ge=2, le=MAX_FOLDS)] | None = None
    repeats: Annotated[int, Field(ge=1, le=MAX_FOLDS)] = 1

    @model_serializer(mode="wrap")
    def _omit_unused_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit newer keys that are not used."""
        missing = dict.fromkeys(("header", "drop", "task", "categorical", "numeric", "date", "group", "order", "folds"))
        return _without_unused(dump(self), {"mirror": False, "shift": 0, "repeats": 1, **missing})

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.folds is None:
            self.split.check()
        else:
            self.split.check_folded()
        if self.group is not None and self.order is not None:
            raise table_error("the rows have either groups or an order; remove one of the two keys", at=("group",))
        if self.repeats > 1 and self.folds is None:
            raise table_error("needs folds, which are drawn again in each repeat; set data.folds", at=("repeats",))
        if self.repeats > 1 and self.order is not None:
            raise table_error("ordered rows have the same folds in each repeat; remove this key", at=("repeats",))
        return self


class StudyTable(Table):
    """Name, budget and method of a study.

    Attributes:
        name: The name of the study in the database.
        trials: The budget: the number of trials.
        seed: The seed of the splits, the sampler and the trainings.
        sampler: The name of a sampler. ``hpo.search.sampling.samplers`` checks it.
        pruner: The name of a pruner. ``hpo.search.pruning.pruners`` checks it.
        metric: The name of a metric. ``hpo.data.metrics`` checks it. None for the default of the task.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    trials: PositiveInt = 100
    seed: Annotated[NonNegativeInt, Field(lt=2**32)] = 0
    sampler: str = "tpe"
    pruner: str = "asha"
    metric: str | None = None

    @model_serializer(mode="wrap")
    def _omit_unused_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit newer keys that are not used."""
        return _without_unused(dump(self), {"metric": None})


class EstimatorConfig(Table):
    """Model of a list that is not named as its kind.

    Attributes:
        estimator: The import path of an estimator.
    """

    estimator: Annotated[str, Field(min_length=1)]


class ModelConfig(Table):
    """Model of a study, or the models that it compares. Other keys are the names of models in the list.

    Attributes:
        kind: The kind of the model, or a list of kinds and names. ``hpo.models.kinds`` checks the kinds.
        estimator: The import path of the estimator of the kind "sklearn".
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, EstimatorConfig]

    kind: str | Annotated[tuple[Annotated[str, Field(pattern=_NAME)], ...], Field(min_length=1, strict=False)] = "mlp"
    estimator: Annotated[str, Field(min_length=1)] | None = None

    @property
    def named(self) -> dict[str, EstimatorConfig]:
        """The models that are not named as their kind."""
        return self.__pydantic_extra__

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models to compare; empty for a single model."""
        return self.kind if isinstance(self.kind, tuple) else ()

    @property
    def has_estimators(self) -> bool:
        """Whether a model is an estimator."""
        return bool(self.estimator or self.named)

    def of(self, name: str) -> "ModelConfig":
        """Return one model of the list as a single model."""
        if name in self.named:
            return ModelConfig(kind="sklearn", estimator=self.named[name].estimator)
        return ModelConfig(kind=name, estimator=self.estimator if name == "sklearn" else None)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if len(set(self.names)) < len(self.names):
            raise table_error("a name occurs twice; each model needs its own name", at=("kind",))
        if unlisted := [name for name in self.named if name not in self.names]:
            raise table_error("is not in the list model.kind; add it there, or remove this table", at=(unlisted[0],))
        return self

    @model_serializer(mode="wrap")
    def _omit_unused_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the keys of a study without this table."""
        return _without_unused(dump(self), {"kind": "mlp", "estimator": None})


class ObjectiveConfig(Table):
    """The user's code that each trial runs, instead of the training of a model.

    Attributes:
        call: A script, or a function as ``file.py:function`` or ``module:function``.
        direction: Whether the function's value is minimized or maximized; a script passes it to ``create_study``.
        arguments: The arguments of a script.
    """

    call: Annotated[str, Field(min_length=1)]
    direction: Literal["minimize", "maximize"] = "minimize"
    arguments: Annotated[tuple[str, ...], Field(strict=False)] = ()


class StudyConfig(Table):
    """Content of a study file.

    Attributes:
        study: Name, budget and method.
        data: The data; None for an objective without data.
        train: Hyperparameters with the same value in each trial.
        space: Hyperparameters that are searched. A hyperparameter is in ``train`` or in ``space``, not in both.
        objective: The user's code; None for the training of a model.
        model: The model, or the models to compare; None for a net. With a list of models, the keys of ``train`` and
            ``space`` are "NAME.hyperparameter".
        path: The study file, for messages and for paths that are relative to its folder.
        allowed_imports: Packages of estimators that may be imported, besides the known ones.
        branch: The name of the model in the list that the study file had; empty without a list.
    """

    study: StudyTable
    data: DataConfig | None = None
    train: dict[str, Setting] = {}
    space: dict[str, RangeOrChoices] = {}
    objective: ObjectiveConfig | None = None
    model: ModelConfig | None = None
    path: Path = Field(default=Path("study.toml"), exclude=True)
    allowed_imports: frozenset[str] = Field(default=frozenset(), exclude=True)
    branch: str = Field(default="", exclude=True)

    @model_validator(mode="after")
    def _check_tables_are_disjoint(self) -> Self:
        if shared := sorted(self.train.keys() & self.space.keys()):
            raise table_error("is in [train] too; remove it from one of the two tables", at=("space", shared[0]))
        return self

    @model_validator(mode="after")
    def _check_booleans(self) -> Self:
        """Refuse booleans for nets, which have no such hyperparameter."""
        if self.model is None or self.model.kind in ("mlp", "mlp-torch"):
            for table, keys in (("train", self.train), ("space", self.space)):
                for key in keys:
                    if any(isinstance(value, bool) for value in self.values(key)):
                        value = next(str(value).lower() for value in self.values(key) if isinstance(value, bool))
                        raise table_error(f"a number, a text or a list is allowed, not {value}", at=(table, key))
        return self

    @property
    def branches(self) -> "dict[str, StudyConfig]":
        """The study file of each model of a list, as if it were the only model; empty without a list."""
        names = self.model.names if self.model is not None else ()
        return {name: self._branch(name) for name in names}

    def _branch(self, name: str) -> "StudyConfig":
        assert self.model is not None, "only a list of models has branches"
        prefix = f"{name}."
        tables = {
            table: {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
            for table, content in (("train", self.train), ("space", self.space))
        }
        return self.model_copy(update={"model": self.model.of(name), "branch": name, **tables})

    def key(self, table: str, key: str) -> str:
        """Return the name of a key of ``train``, ``space`` or ``model`` in the study file, for messages."""
        is_named = table != "model" or self.branch not in ("", "sklearn")
        return ".".join([table, *[self.branch] * bool(self.branch and is_named), key])

    def values(self, key: str) -> tuple[Setting, ...]:
        """Return the fixed value, the ends of the range or the choices of a hyperparameter.

        Returns:
            The values; empty if the hyperparameter is neither in ``train`` nor in ``space``.
        """
        searched = self.space.get(key)
        if isinstance(searched, Range):
            return searched.ends
        if isinstance(searched, Choices):
            return searched.choices
        return (self.train[key],) if key in self.train else ()

    def params_to_settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial: the fixed values and its parameters, with lists as lists."""
        return self.train | {key: self._setting(key, value) for key, value in params.items()}

    def _setting(self, key: str, value: Any) -> Setting:
        searched = self.space.get(key)
        return searched.stored[value] if isinstance(searched, Choices) else value

    def settings(self) -> dict[str, Any]:
        """Return all settings but the budget, as a flat ``{"table.key": value}``.

        A study in a database keeps them, so that it cannot continue with other settings.
        """
        dump = self.model_dump(mode="json")
        del dump["study"]["trials"]
        return {f"{table}.{key}": value for table, keys in dump.items() for key, value in (keys or {}).items()}


def _without_unused(dump: dict[str, Any], unused: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dumped table without the keys that have the values of unused ones.

    Databases that are older than these keys stay valid, because they have no such keys.
    """
    return {key: value for key, value in dump.items() if key not in unused or value != unused[key]}


def table_error(problem: str, at: tuple[str, ...] = ()) -> PydanticCustomError:
    """Return the error of a validator.

    Args:
        problem: The problem, as it is shown to the user.
        at: The path of the key below the validated table.
    """
    return PydanticCustomError("study_file", "{problem}", {"problem": problem, "at": at})
