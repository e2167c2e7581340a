"""Presets of [space], and their place in the settings of a study."""

import pytest
from study_files import ABSENT, toml

from hpo.config.loader import load_config
from hpo.config.presets import PRESETS
from hpo.errors import StudyFileError
from hpo.models.kinds.registry import check_models
from hpo.models.nets.hyperparameters import check_hyperparameters

OWN_RATE = {"low": 0.5, "high": 0.75, "log": False}


def load(tmp_path, **tables):
    path = tmp_path / "study.toml"
    path.write_text(toml({"study": {"name": "mine"}, "data": {"dataset": "digits"}, **tables}), encoding="utf-8")
    return load_config(path)


def expanded(tmp_path):
    preset = PRESETS["tabular"]["mlp"]
    return load(tmp_path, train=dict(preset.train), space=dict(preset.space))


def test_study_stores_expanded_preset(tmp_path):
    expected = expanded(tmp_path).settings()
    settings = load(tmp_path, space={"preset": "tabular"}).settings()
    assert settings == expected
    assert "space.preset" not in settings


def test_preset_of_net_is_valid(tmp_path):
    config = load(tmp_path, space={"preset": "tabular"})
    check_hyperparameters(config)
    assert config.train["keep"] == "best"
    assert config.space["learning_rate"].log
    assert config.space["regularization"].log
    assert config.space["hidden_size"].ends == (32, 400)
    assert config.space["epochs"].ends == (100, 500)


@pytest.mark.parametrize(
    ("tables", "changed"),
    [
        ({"space": {"learning_rate": OWN_RATE}}, {"space.learning_rate": OWN_RATE}),
        ({"train": {"learning_rate": 0.5}}, {"space.learning_rate": ABSENT, "train.learning_rate": 0.5}),
        ({"train": {"keep": "last"}}, {"train.keep": "last"}),
        ({"train": {"whitening": 0.5}}, {"train.whitening": 0.5}),
        (
            {"space": {"batch_size": {"choices": [16, 32]}}},
            {"train.batch_size": ABSENT, "space.batch_size": {"choices": [16, 32]}},
        ),
    ],
    ids=["range", "value", "keep", "addition", "search"],
)
def test_own_key_replaces_key_of_preset(tables, changed, tmp_path):
    config = load(tmp_path, **tables | {"space": {"preset": "tabular", **tables.get("space", {})}})
    check_hyperparameters(config)
    settings = expanded(tmp_path).settings() | changed
    assert config.settings() == {key: value for key, value in settings.items() if value is not ABSENT}


@pytest.mark.parametrize(
    "tables", [{"train": {"hidden_layers": [9, 8]}}, {"space": {"hidden_layers": {"choices": [[9], [9, 8]]}}}], ids=str
)
def test_listed_sizes_replace_hidden_size(tables, tmp_path):
    config = load(tmp_path, **tables | {"space": {"preset": "tabular", **tables.get("space", {})}})
    check_hyperparameters(config)
    assert config.values("hidden_size") == ()


@pytest.mark.parametrize("preset", ["tabluar", 3, ["tabular"], {"low": 1, "high": 2}], ids=str)
def test_unknown_preset_is_refused(preset, tmp_path):
    with pytest.raises(StudyFileError, match=r"study.toml: space.preset: 'tabular' is allowed, not .+"):
        load(tmp_path, space={"preset": preset})


def test_model_without_preset_is_refused(tmp_path):
    model = {"kind": "sklearn", "estimator": "sklearn.svm.NuSVC"}
    with pytest.raises(StudyFileError, match=r"space.preset: 'tabular' has no ranges for sklearn.svm.NuSVC, only for"):
        load(tmp_path, model=model, space={"preset": "tabular"})


BOOSTING = "sklearn.ensemble.HistGradientBoostingClassifier"
BOTH = {"kind": ["mlp", "trees"], "trees": {"estimator": BOOSTING}}


def keys_of(name, estimator):
    preset = PRESETS["tabular"][estimator]
    return {f"{name}.{key}" for key in (*preset.train, *preset.space)}


def test_preset_of_estimator_is_valid(tmp_path):
    config = load(tmp_path, model={"kind": "sklearn", "estimator": BOOSTING}, space={"preset": "tabular"})
    check_models(config, "classification")
    assert set(config.space) == set(PRESETS["tabular"][BOOSTING].space)


def test_preset_expands_each_model_of_list(tmp_path):
    config = load(tmp_path, model=BOTH, space={"preset": "tabular"})
    check_models(config, "classification")
    assert {*config.train, *config.space} == keys_of("mlp", "mlp") | keys_of("trees", BOOSTING)


def test_own_keys_of_model_of_list_replace_preset(tmp_path):
    own = {"learning_rate": OWN_RATE}
    config = load(tmp_path, model=BOTH, train={"mlp": {"epochs": 7}}, space={"preset": "tabular", "trees": own})
    assert config.train["mlp.epochs"] == 7
    assert "mlp.epochs" not in config.space
    assert config.space["trees.learning_rate"].ends == (0.5, 0.75)
    assert config.space["mlp.learning_rate"].ends != (0.5, 0.75)


def test_model_of_list_has_own_preset(tmp_path):
    space = {"mlp": {"preset": "tabular"}, "trees": {"max_iter": {"low": 5, "high": 9}}}
    config = load(tmp_path, model=BOTH, space=space)
    assert {*config.train, *config.space} == keys_of("mlp", "mlp") | {"trees.max_iter"}


def test_unknown_preset_of_model_of_list_is_refused(tmp_path):
    with pytest.raises(StudyFileError, match=r"space.trees.preset: 'tabular' is allowed, not 'best'"):
        load(tmp_path, model=BOTH, space={"trees": {"preset": "best"}})
