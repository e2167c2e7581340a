"""Hyperparameters of the neural net, and their checks in a study file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from hpo.config.loader import invalid_value, unknown_key
from hpo.config.study import Setting, StudyConfig
from hpo.errors import StudyFileError
from hpo.models.nets.mlp import Optimizer

Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1, strict=False)]


class Hyperparameters(BaseModel):
    """Hyperparameters of one trial.

    Attributes:
        learning_rate: Step size of the first epoch.
        regularization: Factor of the sum of the squared weights in the loss.
        hidden_size: Units of each hidden layer, or None if ``hidden_layers`` lists the sizes.
        epochs: Passes over the training split.
        hidden_layers: Number of hidden layers, or the size of each.
        batch_size: Examples of a step; "auto" for about a twenty-fifth of the training split, from 32 to 1,024.
        momentum: Share of the velocity that a step keeps.
        learning_rate_decay: Factor of the learning rate after each epoch.
        schedule: "cosine" multiplies the learning rate by the half wave (1 + cos(pi * epoch / epochs)) / 2.
        dropout: Probability that a step drops a hidden unit.
        label_smoothing: Share of an example's label that is spread evenly over all classes.
        whitening: Each input is divided by its standard deviation to this power. 0 keeps the inputs, 1 gives all
            inputs the same variance.
        input_scale: Factor of all inputs, applied after the whitening.
        backend: Library that computes the net.
        optimizer: Rule of a step. Adam uses the momentum as the decay of the first moment.
        loss: Error of a predicted number, in units of the standard deviation of the training targets. Classes have the
            cross-entropy.
        keep: Epoch whose weights and validation score are those of the trial: the last, or the one with the best
            validation score.
        class_weight: "balanced" weights the error of an example by n / (classes * n of its class), as scikit-learn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    learning_rate: PositiveFloat
    regularization: NonNegativeFloat
    hidden_size: PositiveInt | None = None
    epochs: PositiveInt
    hidden_layers: PositiveInt | Sizes = 1
    batch_size: PositiveInt | Literal["auto"] = 200
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    whitening: Annotated[float, Field(ge=0, le=1)] = 0.0
    input_scale: PositiveFloat = 1.0
    backend: Literal["numpy", "torch"] = "numpy"
    optimizer: Optimizer = "sgd"
    loss: Literal["squared", "huber"] = "squared"
    class_weight: Literal["none", "balanced"] = "none"
    keep: Literal["last", "best"] = "last"

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        if isinstance(self.hidden_layers, tuple):
            return self.hidden_layers
        assert self.hidden_size is not None, "check_hyperparameters refuses a study file without it"
        return (self.hidden_size,) * self.hidden_layers


FLOAT_HYPERPARAMETERS: frozenset[str] = frozenset(
    name for name, field in Hyperparameters.model_fields.items() if field.annotation is float
)


def check_hyperparameters(config: StudyConfig) -> None:
    """Check the keys and values of ``[train]`` and ``[space]``.

    Raises:
        StudyFileError: if a key is unknown or missing, or a value, an end of a range or a choice is not allowed.
    """
    _check_keys(config)
    _check_values(config)


def hyperparameters_of(config: StudyConfig, params: Mapping[str, Any]) -> Hyperparameters:
    """Return the hyperparameters of a trial with these parameters of the search space."""
    return Hyperparameters.model_validate(config.params_to_settings(params))


def max_epochs(config: StudyConfig) -> int:
    """Return the epochs of the longest trial that the study can have."""
    return max(epochs for epochs in config.values("epochs") if isinstance(epochs, int))


def _check_keys(config: StudyConfig) -> None:
    known = Hyperparameters.model_fields
    for table, keys in (("train", config.train), ("space", config.space)):
        for key in keys:
            if key not in known:
                raise _study_file_error(config, table, key, unknown_key(key, known))
    for key, field in known.items():
        required = field.is_required() or (key == "hidden_size" and not _lists_sizes(config))
        if required and not config.values(key):
            raise _study_file_error(config, "space", key, "missing; give a range in [space] or a value in [train]")


def _lists_sizes(config: StudyConfig) -> bool:
    """Return whether ``hidden_layers`` lists sizes, and check that it does not mix both forms."""
    forms = {isinstance(layers, tuple) for layers in config.values("hidden_layers")}
    if forms == {True, False}:
        problem = "numbers of layers or lists of sizes are allowed, not both"
        raise _study_file_error(config, "space", "hidden_layers", problem)
    for table, keys in (("train", config.train), ("space", config.space)):
        if True in forms and "hidden_size" in keys:
            problem = "hidden_layers lists the sizes already; remove this key"
            raise _study_file_error(config, table, "hidden_size", problem)
    return True in forms


def _check_values(config: StudyConfig) -> None:
    """Validate each fixed value, each end of a range and each choice as part of a full set of hyperparameters."""
    fixed: dict[str, Setting] = dict(config.train)
    lowest = {key: config.values(key)[0] for key in config.space}
    candidates = [{key: value} for key in config.space for value in config.values(key)]
    for candidate in candidates or [{}]:
        try:
            Hyperparameters.model_validate(fixed | lowest | candidate)
        except ValidationError as error:
            # Prefer the error of an element of a list to the error that the list is not a number.
            details = max(error.errors(), key=lambda details: len(details["loc"]))
            key = str(details["loc"][0])
            table = "train" if key in config.train else "space"
            raise _study_file_error(config, table, key, invalid_value(details)) from None


def _study_file_error(config: StudyConfig, table: str, key: str, problem: str) -> StudyFileError:
    return StudyFileError(f"{config.path}: {config.key(table, key)}: {problem}")
