"""Presets: default ranges and values of a model, which a study file takes over with one key.

A preset is expanded when the study file is read. A study stores the expanded values, so that it does not change if a
later version has another preset.
"""

from collections.abc import Mapping
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
    train={"optimizer": "adam", "momentum": 0.9, "schedule": "cosine", "batch_size": "auto", "keep": "best"},
    space={
        "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
        "regularization": {"low": 1e-6, "high": 3e-2, "log": True},
        "hidden_size": {"low": 32, "high": 400},
        "epochs": {"low": 100, "high": 500},
        "dropout": {"low": 0.0, "high": 0.5},
    },
)
_BOOSTING = Preset(
    train={},
    space={
        "learning_rate": {"low": 0.02, "high": 0.3, "log": True},
        "max_iter": {"low": 20, "high": 400, "log": True},
        "max_leaf_nodes": {"low": 4, "high": 64, "log": True},
        "min_samples_leaf": {"low": 2, "high": 50, "log": True},
        "l2_regularization": {"low": 1e-4, "high": 10.0, "log": True},
        "max_features": {"low": 0.3, "high": 1.0},
    },
)

# Presets by their name in a study file, and by the kind of the model or the import path of the estimator.
PRESETS: Mapping[str, Mapping[str, Preset]] = MappingProxyType(
    {
        "tabular": {
            "mlp": _NET,
            "mlp-torch": _NET,
            "sklearn.ensemble.HistGradientBoostingClassifier": _BOOSTING,
            "sklearn.ensemble.HistGradientBoostingRegressor": _BOOSTING,
        }
    }
)


class PresetError(ValueError):
    """Preset that does not exist, or that has no ranges for the model. The message starts with the key."""


def expand_presets(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of a study file with the keys of [train] and [space] that ``preset`` stands for.

    With a list of models, ``space.preset`` is that of each model, and ``space.NAME.preset`` that of one model.

    Raises:
        PresetError: if there is no such preset, or none for the model.
    """
    train, space, model = (tables.get(name, {}) for name in ("train", "space", "model"))
    if not all(isinstance(table, Mapping) for table in (train, space, model)):
        return tables
    names = model.get("kind")
    if isinstance(names, list | tuple):
        return tables | _expand_each(train, space, {str(name): _model_of(model, name) for name in names})
    if "preset" not in space:
        return tables
    train, space = _expand(train, space, _model_name(model), "space")
    return tables | {"train": train, "space": space}


def _expand_each(train: Toml, space: Toml, models: Mapping[str, str]) -> dict[str, Any]:
    """Expand the preset of each model of a list, whose keys are in tables of its own."""
    shared = {key: value for key, value in space.items() if key == "preset"}
    tables = {"train": dict(train), "space": {key: value for key, value in space.items() if key != "preset"}}
    for name, model in models.items():
        own_train, own_space = train.get(name, {}), space.get(name, {})
        if isinstance(own_train, Mapping) and isinstance(own_space, Mapping) and {"preset"} & {*shared, *own_space}:
            location = f"space.{name}" if "preset" in own_space else "space"
            expanded = _expand(own_train, {**shared, **own_space}, model, location)
            tables["train"][name], tables["space"][name] = expanded
    return tables


def _expand(train: Toml, space: Toml, model: str, location: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Expand the preset of one model, if its [space] has one."""
    own = {key: value for key, value in space.items() if key != "preset"}
    if "preset" not in space:
        return dict(train), own
    return _find_preset(space["preset"], model, location).expand(train, own)


def _find_preset(name: object, model: str, location: str) -> Preset:
    if not isinstance(name, str) or name not in PRESETS:
        raise PresetError(f"{location}.preset: {' or '.join(map(repr, PRESETS))} is allowed, not {name!r}")
    models = PRESETS[name]
    if model not in models:
        known = ", ".join(models)
        raise PresetError(f"{location}.preset: {name!r} has no ranges for {model}, only for {known}; write the ranges")
    return models[model]


def _model_name(model: Toml) -> str:
    """Return the name of a single model in ``PRESETS``: its estimator, or its kind."""
    return str(model.get("estimator", model.get("kind", "mlp")))


def _model_of(model: Toml, name: Any) -> str:
    """Return the name in ``PRESETS`` of one model of a list, which has a table of its own or is named as its kind."""
    own = model.get(name) if isinstance(name, str) else None
    if isinstance(own, Mapping):
        return _model_name(own)
    return _model_name(model) if name == "sklearn" else str(name)


def _lists_sizes(train: Toml, space: Toml) -> bool:
    searched = space.get("hidden_layers")
    values = searched.get("choices") if isinstance(searched, Mapping) else None
    layers = [train.get("hidden_layers"), *(values if isinstance(values, list | tuple) else [])]
    return any(isinstance(sizes, list | tuple) for sizes in layers)
