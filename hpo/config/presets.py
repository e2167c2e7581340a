"""Presets: default ranges and values of a model, which a study file takes over with one key.

A preset is expanded when the study file is read. A study stores the expanded values, so that it does not change if a
later version has another preset.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# A table of a study file, as TOML has it.
Toml = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """Default keys of [train] and [space] for one model.

    Attributes:
        train: Values of hyperparameters that are not searched.
        space: Ranges of the others.
    """

    train: Toml
    space: Toml

    def expand(self, train: Toml, space: Toml) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return [train] and [space] with the keys of the preset that neither of them has.

        ``hidden_size`` is left out if ``hidden_layers`` lists the sizes.
        """
        given = {*train, *space} | ({"hidden_size"} if _lists_sizes(train, space) else set())
        added_train = {key: value for key, value in self.train.items() if key not in given}
        added_space = {key: value for key, value in self.space.items() if key not in given}
        return {**added_train, **train}, {**added_space, **space}


_NET = Preset(
    train={"optimizer": "adam", "keep": "best", "batch_size": "auto", "schedule": "cosine", "momentum": 0.9},
    space={
        "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
        "regularization": {"low": 1e-6, "high": 3e-2, "log": True},
        "hidden_size": {"low": 32, "high": 400},
        "epochs": {"low": 100, "high": 500},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)

# Presets by their name in a study file, and by the kind of the model or the estimator's class.
PRESETS: Mapping[str, Mapping[str, Preset]] = MappingProxyType({"tabular": {"mlp": _NET, "mlp-torch": _NET}})


def model_name(model: Toml) -> str:
    """Return the name of a model in ``PRESETS`` from the [model] of a study file: its estimator, or its kind."""
    return str(model.get("estimator", model.get("kind", "mlp")))


def find_preset(name: object, model: str) -> Preset:
    """Return the preset of a model.

    Args:
        name: The name of the preset.
        model: The kind of the model, or the estimator's class such as "sklearn.ensemble.RandomForestClassifier".

    Raises:
        ValueError: if there is none. The message states the allowed values.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"{_quoted(PRESETS)} is allowed, not {name!r}")
    models = PRESETS[name]
    if model not in models:
        raise ValueError(f"{name!r} has no ranges for {model}, only for {', '.join(models)}; give them in [space]")
    return models[model]


def _quoted(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _lists_sizes(train: Toml, space: Toml) -> bool:
    searched = space.get("hidden_layers")
    values = searched.get("choices", []) if isinstance(searched, Mapping) else []
    layers = [train.get("hidden_layers"), *(values if isinstance(values, list | tuple) else [])]
    return any(isinstance(sizes, list | tuple) for sizes in layers)
