"""A study file as frozen, validated objects.

TOML goes in, a ``StudyConfig`` comes out, or a ``StudyFileError`` that names the file, the key and what is allowed.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from hpo.errors import StudyFileError

Number = int | float
Parameter = Number | str  # of a trial: Optuna keeps no lists
Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1, strict=False)]
Setting = Parameter | Annotated[tuple[Number, ...], Field(strict=False)]  # what a hyperparameter can be in a file


class _Table(BaseModel):
    """A table of the study file: its keys are fixed, its values are of the type that is written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Hyperparameters(_Table):
    """What one trial trains with.

    ``learning_rate_decay`` multiplies the learning rate once an epoch. ``hidden_layers`` is a number of layers of
    ``hidden_size`` units each, or the sizes of the layers themselves, without a ``hidden_size``; a step drops each
    hidden unit with the probability ``dropout``. ``label_smoothing`` is the share of an example that all classes have
    in equal parts. Each input is divided by its standard deviation to the power of ``whitening``: 0 leaves the inputs
    as they are, 1 gives all of them the same variance; then all are multiplied by ``input_scale``.
    ``backend`` is what computes the net.
    """

    learning_rate: PositiveFloat
    regularization: NonNegativeFloat
    hidden_size: PositiveInt | None = None
    epochs: PositiveInt
    hidden_layers: PositiveInt | Sizes = 1
    batch_size: PositiveInt = 200
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    whitening: Annotated[float, Field(ge=0, le=1)] = 0.0
    input_scale: PositiveFloat = 1.0
    backend: Literal["numpy", "torch"] = "numpy"

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """The units of each hidden layer."""
        if isinstance(self.hidden_layers, tuple):
            return self.hidden_layers
        assert self.hidden_size is not None, "a study file without it is refused"
        return (self.hidden_size,) * self.hidden_layers


def is_whole(hyperparameter: str) -> bool:
    """Whether its numbers are integers."""
    return Hyperparameters.model_fields[hyperparameter].annotation is not float


class Range(_Table):
    """An interval to search, both ends included; on a logarithmic scale with ``log``."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise _problem(f"low = {self.low} is above high = {self.high}; low <= high is allowed")
        if self.log and self.low <= 0:
            raise _problem(f"log = true needs low > 0, and low = {self.low}")
        return self

    @property
    def ends(self) -> tuple[Number, Number]:
        return self.low, self.high


class Choices(_Table):
    """A list to choose from."""

    choices: Annotated[tuple[Setting, ...], Field(min_length=1, strict=False)]

    @property
    def ends(self) -> tuple[Setting, ...]:
        return self.choices

    @property
    def stored(self) -> dict[Parameter, Setting]:
        """Each choice by what stands for it in a trial."""
        return {json.dumps(one) if isinstance(one, tuple) else one: one for one in self.choices}


def _kind(value: Any) -> str:
    choices = isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value)
    return "choices" if choices else "range"


Searched = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(_kind),
]


class Split(_Table):
    """How many images (or rows) train, validate and test: three counts, or three fractions of the data."""

    train: Number = 0.7
    validation: Number = 0.15
    test: Number = 0.15

    @model_validator(mode="after")
    def _counts_or_fractions(self) -> Self:
        parts = (self.train, self.validation, self.test)
        counts = all(isinstance(part, int) and part >= 1 for part in parts)
        fractions = all(isinstance(part, float) and 0 < part < 1 for part in parts) and sum(parts) <= 1 + 1e-9
        if not counts and not fractions:
            raise _problem(
                f"train = {self.train}, validation = {self.validation}, test = {self.test}; "
                "three counts of at least 1 are allowed, or three fractions that add up to at most 1.0"
            )
        return self


class DataConfig(_Table):
    """Which data, and what is fitted to the training split: scaling, then PCA.

    With ``mirror`` each training image is there a second time, left and right exchanged. With ``shift`` each is there
    four times more, moved up, down, left and right by so many pixels.
    """

    dataset: Annotated[str, Field(min_length=1)]
    label: str | None = None
    split: Split = Split()
    scale: Literal["feature", "global", "none"] | None = None
    pca: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mirror: bool = False
    shift: Annotated[NonNegativeInt, Field(lt=16)] = 0

    @model_serializer(mode="wrap")
    def _without_defaults_of_late(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Studies and prepared data from before there were variants of images are still the same without them."""
        return {key: value for key, value in dump(self).items() if key not in ("mirror", "shift") or value}


SamplerName = Literal["tpe", "random", "random-grid", "qmc", "cmaes", "gp"]
PrunerName = Literal["asha", "hyperband", "median", "none"]


class _StudyTable(_Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    trials: PositiveInt = 100
    seed: Annotated[NonNegativeInt, Field(lt=2**32)] = 0
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "asha"


class StudyConfig(_Table):
    """A whole study file.

    Every hyperparameter stands in ``space`` (searched), in ``train`` (fixed for every trial), or in neither
    where it has a default.
    """

    study: _StudyTable
    data: DataConfig
    train: dict[str, Setting] = {}
    space: dict[str, Searched] = {}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if twice := sorted(self.train.keys() & self.space.keys()):
            raise _problem("stands in [train] too; once is allowed", at=("space", twice[0]))
        known = Hyperparameters.model_fields
        for table in ("train", "space"):
            for key in getattr(self, table):
                if key not in known:
                    raise _problem(_unknown(key, known), at=(table, key))
        for key, field in known.items():
            needed = field.is_required() or (key == "hidden_size" and not self._lists_sizes())
            if needed and key not in self.train and key not in self.space:
                raise _problem("missing; give a range in [space] or a value in [train]", at=("space", key))
        return self

    def _lists_sizes(self) -> bool:
        """Whether ``hidden_layers`` is a list of sizes, and not a number of layers."""
        kinds = {isinstance(layers, tuple) for layers in self.values("hidden_layers")}
        if kinds == {True, False}:
            raise _problem("numbers of layers or lists of sizes are allowed, not both", at=("space", "hidden_layers"))
        for table in ("train", "space"):
            if True in kinds and "hidden_size" in getattr(self, table):
                raise _problem("hidden_layers has the sizes already; leave it out", at=(table, "hidden_size"))
        return True in kinds

    @model_validator(mode="after")
    def _allowed_values(self) -> Self:
        """Try both ends of every range: what a hyperparameter may be is said once, in ``Hyperparameters``."""
        corner = {key: searched.ends[0] for key, searched in self.space.items()}
        tried = [(key, value) for key, searched in self.space.items() for value in searched.ends]
        for key, value in tried or [("", 0)]:
            try:
                Hyperparameters.model_validate(self.train | corner | ({key: value} if key else {}))
            except ValidationError as error:
                # The deepest: inside of a list rather than that the list is no number.
                details = max(error.errors(), key=lambda details: len(details["loc"]))
                where = str(details["loc"][0])
                table = "train" if where in self.train else "space"
                given = list(details["input"]) if isinstance(details["input"], tuple) else details["input"]
                raise _problem(f"{_lower(details['msg'])}, not {given!r}", at=(table, where)) from None
        return self

    def hyperparameters(self, params: Mapping[str, Any]) -> Hyperparameters:
        """What a trial with these parameters of the space trains with."""
        return Hyperparameters.model_validate(self.train | {key: self._setting(key, params[key]) for key in params})

    def _setting(self, key: str, value: Any) -> Setting:
        searched = self.space.get(key)
        return searched.stored[value] if isinstance(searched, Choices) else value

    def values(self, key: str) -> tuple[Setting, ...]:
        """Of a hyperparameter: its fixed value, the ends of its range, or all its choices."""
        if key in self.space:
            return self.space[key].ends
        return (self.train[key] if key in self.train else Hyperparameters.model_fields[key].default,)

    @property
    def max_epochs(self) -> int:
        """The longest that a trial can be, in epochs."""
        return max(epochs for epochs in self.values("epochs") if isinstance(epochs, int))

    def settings(self) -> dict[str, Any]:
        """What a study remembers of its file, as flat ``table.key: value``: all but the budget."""
        dump = self.model_dump(mode="json")
        del dump["study"]["trials"]
        return {f"{table}.{key}": value for table, keys in dump.items() for key, value in keys.items()}


def load_config(path: Path) -> StudyConfig:
    """The study file at ``path``.

    Raises:
        StudyFileError: the file is missing, is not TOML, or has a wrong key or value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyFileError(f"{path}: no such study file") from None
    except OSError as error:
        raise StudyFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StudyFileError(f"{path}: not TOML: not a UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{path}: not TOML: {_lower(str(error))}") from None
    try:
        return StudyConfig.model_validate(table)
    except ValidationError as error:
        raise StudyFileError(f"{path}: {_describe(_most_telling(error.errors()))}") from None


def find_study(study: str) -> Path:
    """The path of a study given as a path to a ``.toml`` or as a name.

    Raises:
        StudyFileError: no study of that name, here or among those that ship with the package.
    """
    if study.endswith(".toml") or "/" in study:
        return Path(study)
    here = Path("studies")
    shipped = [Path(__file__).parents[1] / "studies", Path(__file__).parents[2] / "studies"]
    folders = [folder for folder in (here, *shipped) if folder.is_dir()]
    for folder in folders:
        if (path := folder / f"{study}.toml").is_file():
            return path
    names = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise StudyFileError(f"no study named '{study}'; there are {', '.join(names)}, or give the path of a .toml file")


def _problem(problem: str, at: tuple[str, ...] = ()) -> PydanticCustomError:
    return PydanticCustomError("study_file", "{problem}", {"problem": problem, "at": at})


def _unknown(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown key; {hint}allowed are {', '.join(known)}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


_TABLES: dict[tuple[str, ...], type[_Table]] = {
    (): StudyConfig,
    ("study",): _StudyTable,
    ("data",): DataConfig,
    ("data", "split"): Split,
}


def _most_telling(errors: list[ErrorDetails]) -> ErrorDetails:
    """A misspelt key before the one that is missed for it; of a number that is none, that it is no number."""
    return min(errors, key=lambda error: (error["type"] != "extra_forbidden", error["loc"][-1:] == ("int",)))


def _describe(error: ErrorDetails) -> str:
    """One line from one of Pydantic's errors: the key, what is wrong with it, what is allowed."""
    # Behind table and key stand Pydantic's names of the types that were tried.
    types = ("range", "choices", "int", "float")
    location = tuple(str(part) for i, part in enumerate(error["loc"]) if i < 2 or part not in types)
    location += tuple(error.get("ctx", {}).get("at", ()))
    match error["type"]:
        case "study_file":
            said = error["msg"]
        case "extra_forbidden":
            searched = Choices if "choices" in error["loc"] else Range
            said = _unknown(location[-1], _TABLES.get(location[:-1], searched).model_fields)
        case "model_type" if location[:1] == ("space",):
            allowed = "{ low, high, log } or { choices } are allowed here, a fixed value in [train]"
            said = f"{error['input']!r} is no range; {allowed}"
        case "model_type" | "dict_type":
            said = f"a table is allowed, not {error['input']!r}"
        case "missing":
            said = "missing"
        case "string_pattern_mismatch":
            said = f"{error['input']!r} is no name; letters, digits, '.', '_' and '-' are allowed"
        case _:
            said = f"{_lower(error['msg'])}, not {error['input']!r}"
    return f"{'.'.join(location) or 'the file'}: {said}"
