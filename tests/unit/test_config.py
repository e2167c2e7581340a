"""Reading of study files, and the one-line error of an invalid study file."""

import contextlib
import copy
import json
import math
import os
import re
import tempfile
from pathlib import Path

import pytest
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from study_files import ABSENT, VALID, changed, load_tables, studies, toml

from hpo.config.loader import find_study, load_config, with_overrides
from hpo.config.study import StudyConfig
from hpo.errors import StudyFileError

FRACTIONS = "three fractions that add up to at most 1.0"
SHIPPED = sorted(path.stem for path in find_study("digits").parent.glob("*.toml"))


def error_of(path):
    """Return the error of an invalid file without the name of the file."""
    with pytest.raises(StudyFileError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def error_of_tables(tables, folder):
    path = folder / "study.toml"
    path.write_text(toml(tables), encoding="utf-8")
    return error_of(path)


def flat(tables, prefix=""):
    """Yield ``(table.key, value)`` of all values, however deep."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            # JSON turns tuples into lists.
            yield f"{prefix}{key}", json.loads(json.dumps(value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("config")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_study_has_name_of_its_file(name):
    assert load_config(find_study(name)).study.name == name


def test_cifar10_study_has_ranges_of_report():
    config = load_config(find_study("cifar10"))
    assert {name: (space.low, space.high, space.log) for name, space in config.space.items()} == {
        "learning_rate": (1e-7, 1e-2, True),
        "regularization": (1e-7, 1e-2, True),
        "hidden_size": (32, 400, False),
        "epochs": (100, 500, False),
    }
    split = config.data.split
    assert (split.train, split.validation, split.test, config.data.pca) == (49000, 1000, 1000, 0.95)


@settings(max_examples=60, deadline=None)
@given(tables=studies())
def test_loaded_values_equal_written_values(tables, folder):
    loaded = dict(flat(load_tables(tables, folder).model_dump()))
    written = dict(flat(tables))
    assert {key: loaded[key] for key in written} == written
    assert {key: type(loaded[key]) for key in written} == {key: type(value) for key, value in written.items()}


@settings(max_examples=30, deadline=None)
@given(tables=studies(), trials=st.integers(1, 10**6))
def test_settings_exclude_budget(tables, trials, folder):
    other = tables | {"study": tables["study"] | {"trials": trials}}
    assert load_tables(tables, folder).settings() == load_tables(other, folder).settings()


@settings(max_examples=30, deadline=None)
@given(tables=studies())
def test_settings_survive_json(tables, folder):
    stored = load_tables(tables, folder).settings()
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored


def test_settings_are_flat_and_complete(tmp_path):
    assert load_tables(VALID, tmp_path).settings() == {
        "study.name": "mine",
        "study.seed": 0,
        "study.sampler": "tpe",
        "study.pruner": "asha",
        "data.dataset": "digits",
        "data.label": None,
        "data.split": {"train": 0.7, "validation": 0.15, "test": 0.15},
        "data.scale": None,
        "data.pca": 0.0,
        "train.batch_size": 50,
        "space.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "space.regularization": {"low": 1e-7, "high": 1e-2, "log": True},
        "space.hidden_size": {"low": 32, "high": 400, "log": False},
        "space.epochs": {"low": 100, "high": 500, "log": False},
    }


def test_settings_without_data_have_other_tables(tmp_path):
    with_data = load_tables(VALID, tmp_path).settings()
    without_data = load_tables(changed(("data", ABSENT)), tmp_path).settings()
    assert without_data == {key: value for key, value in with_data.items() if not key.startswith("data.")}


@pytest.mark.parametrize(
    "change",
    [
        ("study.name", "yours"),
        ("study.seed", 1),
        ("study.sampler", "random"),
        ("study.pruner", "none"),
        ("data.dataset", "cifar10"),
        ("data.label", "species"),
        ("data.label", -1),
        ("data.header", False),
        ("data.split", {"train": 1000, "validation": 100, "test": 100}),
        ("data.scale", "none"),
        ("data.pca", 0.95),
        ("train.batch_size", 51),
        ("train.momentum", 0.9),
        ("train.backend", "torch"),
        ("train.backend", "numpy"),
        ("space.learning_rate.low", 1e-5),
        ("space.learning_rate.high", 0.2),
        ("space.learning_rate.log", False),
        ("space.epochs", {"choices": [100, 500]}),
        ("space.hidden_layers", {"low": 1, "high": 2}),
    ],
    ids=lambda change: change[0],
)
def test_settings_change_with_each_key(change, tmp_path):
    before, after = load_tables(VALID, tmp_path).settings(), load_tables(changed(change), tmp_path).settings()
    differing = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert differing == [".".join(change[0].split(".")[:2])]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [({"low": 3, "high": 40}, (3, 40)), ({"choices": [7, 90, 8]}, (7, 90, 8)), ({"low": 5, "high": 5}, (5, 5))],
)
def test_values_returns_ends_or_choices(epochs, expected, tmp_path):
    assert load_tables(changed(("space.epochs", epochs)), tmp_path).values("epochs") == expected


def test_values_returns_fixed_value(tmp_path):
    config = load_tables(VALID, tmp_path)
    assert config.values("batch_size") == (50,)
    assert config.values("momentum") == ()


def test_trial_settings_join_fixed_values_and_params(tmp_path):
    config = load_tables(VALID, tmp_path)
    params = {"learning_rate": 0.01, "regularization": 1e-3, "hidden_size": 64, "epochs": 200}
    assert config.params_to_settings(params) == params | {"batch_size": 50}


def test_trial_settings_restore_listed_choices(tmp_path):
    lists = [[200], [200, 150], [200, 150, 100]]
    config = load_tables(changed(("space.hidden_size", ABSENT), ("space.hidden_layers", {"choices": lists})), tmp_path)
    restored = [config.params_to_settings({"hidden_layers": json.dumps(sizes)})["hidden_layers"] for sizes in lists]
    assert restored == [(200,), (200, 150), (200, 150, 100)]


@pytest.mark.parametrize(("key", "value", "none"), [("data.mirror", True, False), ("data.shift", 2, 0)])
def test_settings_omit_unused_augmentation(key, value, none, tmp_path):
    for change in ((key, ABSENT), (key, none)):
        assert key not in load_tables(changed(change), tmp_path).settings()
    assert load_tables(changed((key, value)), tmp_path).settings()[key] == value


def test_settings_omit_default_backend(tmp_path):
    assert "train.backend" not in load_tables(VALID, tmp_path).settings()


def test_config_is_frozen(tmp_path):
    config = load_tables(VALID, tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        config.study.trials = 3


def test_config_keeps_its_path(tmp_path):
    config = load_tables(VALID, tmp_path)
    assert config.path == tmp_path / "study.toml"
    assert "path" not in config.model_dump()
    assert StudyConfig.model_validate(VALID).path == Path("study.toml")


def test_overrides_change_study_and_train(tmp_path):
    config = load_tables(VALID, tmp_path)
    other = with_overrides(config, "yours", {"seed": 7, "batch_size": 10, "momentum": 0.5, "hidden_layers": (3, 4)})
    assert other.path == config.path
    assert other.settings() == config.settings() | {
        "study.name": "yours",
        "study.seed": 7,
        "train.batch_size": 10,
        "train.momentum": 0.5,
        "train.hidden_layers": [3, 4],
    }


def test_overrides_refuse_invalid_value(tmp_path):
    config = load_tables(VALID, tmp_path)
    with pytest.raises(StudyFileError, match=r"study.toml: study.seed: .* not -1"):
        with_overrides(config, "yours", {"seed": -1})
    with pytest.raises(StudyFileError, match=r"space.epochs: is in \[train\] too"):
        with_overrides(config, "yours", {"epochs": 3})


INVALID = [
    ("path", "study.toml", "unknown key", "allowed are study, data, train, space"),
    ("trian", {"momentum": 0.9}, "did you mean train", "allowed are study, data, train, space"),
    ("study.tirals", 3, "did you mean trials", "allowed are name, trials, seed, sampler, pruner"),
    ("study.zzz", 3, "unknown key; allowed are name"),
    (
        "data.pac",
        0.9,
        "did you mean pca",
        "allowed are dataset, task, header, label, drop, categorical, numeric, date, split",
    ),
    ("data.split.trian", 0.5, "did you mean train", "allowed are train, validation, test"),
    ("space.hidden_size.logg", True, "did you mean log", "allowed are low, high, log"),
    ("range", {"low": 1}, "unknown key", "allowed are study, data, train, space"),
    ("study.range", 3, "unknown key", "allowed are name, trials, seed, sampler, pruner"),
    ("space.learning_rate", {"low": 1, "high": 0.1}, "low = 1 is above high = 0.1", "low <= high is required"),
    ("space.learning_rate", {"low": 0, "high": 0.1, "log": True}, "needs low > 0", "low = 0"),
    ("space.learning_rate", {"low": -1.0, "high": 0.1, "log": True}, "needs low > 0", "low = -1.0"),
    ("space.learning_rate.high", ABSENT, "missing"),
    ("space.epochs", {"choices": []}, "at least 1"),
    ("space.epochs", {"choices": 3}, "3"),
    ("space.epochs", 7, "7", "{ low, high, log } or { choices }", "[train]"),
    ("space.epochs", [7, 8], "[7, 8]", "{ low, high, log } or { choices }"),
    ("study", 1, "1"),
    ("study.name", 3, "string", "3"),
    ("study.name", ABSENT, "missing"),
    ("study.trials", "ten", "integer", "'ten'"),
    ("study.trials", 1.5, "integer", "1.5"),
    ("data.dataset", 3, "string", "3"),
    ("data.dataset", ABSENT, "missing"),
    ("data.dataset", "", "at least 1 character"),
    ("data.label", 3.5, "3.5"),
    ("data.split", 3, "3"),
    ("data.split.train", "half", "'half'"),
    ("data.pca", "most", "number", "'most'"),
    ("data.scale", "big", "'feature', 'global' or 'none'", "'big'"),
    ("space.learning_rate.log", "yes", "boolean", "'yes'"),
    ("space.learning_rate.log", 1, "boolean", "1"),
    ("space.learning_rate.low", "small", "'small'"),
    ("study.trials", True, "true"),
    ("study.seed", True, "true"),
    ("data.pca", True, "true"),
    ("data.split.train", True, "true"),
    ("train.batch_size", True, "true"),
    ("space.epochs.low", True, "true"),
    ("space.epochs", {"choices": [True]}, "true"),
    ("data.pca", math.nan, "finite", "nan"),
    ("train.momentum", math.nan, "nan"),
    ("train.batch_size", math.inf, "inf"),
    ("space.learning_rate.low", math.nan, "nan"),
    ("space.learning_rate.high", math.inf, "inf"),
    ("space.epochs", {"choices": [math.nan]}, "nan"),
    ("data.split", {"train": math.nan, "validation": 0.1, "test": 0.1}, "nan"),
    *(("study.name", name, repr(name)) for name in ("a/b", "..", "", "-a", "a b", "é", "a\n", "[red]", "x" * 101)),
    ("study.seed", -1, "greater than or equal to 0", "-1"),
    ("study.seed", 2**32, "less than 4294967296"),
    ("study.trials", 0, "greater than 0", "0"),
    ("data.pca", 1.0, "less than 1", "1.0"),
    ("data.pca", 95.0, "less than 1", "95.0"),
    ("data.pca", -0.1, "greater than or equal to 0", "-0.1"),
    ("data.split", {"train": 100, "validation": 0.2, "test": 0.2}, "three counts of at least 1", FRACTIONS),
    ("data.split", {"train": 100}, "three counts of at least 1", FRACTIONS),
    ("data.split", {"train": 0, "validation": 1, "test": 1}, "three counts of at least 1", FRACTIONS),
    ("data.split", {"train": 0.8, "validation": 0.2, "test": 0.0}, FRACTIONS),
    ("data.split", {"train": 0.8, "validation": 0.15, "test": 0.1}, FRACTIONS),
    ("data.split", {"train": 1.0, "validation": 0.1, "test": 0.1}, FRACTIONS),
]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [(key, value, expected) for key, value, *expected in INVALID],
    ids=[f"{key}-{'absent' if value is ABSENT else ascii(value)}"[:60] for key, value, *_ in INVALID],
)
def test_error_names_key_and_allowed_values(key, value, expected, tmp_path):
    message = error_of_tables(changed((key, value)), tmp_path)
    assert re.match(rf"{re.escape(key)}\b", message), message
    for text in expected:
        assert text in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.hidden_layers", ["3"], ("number", "['3']")),
        ("space.hidden_layers", {"choices": [[3, True]]}, ("number", "True")),
    ],
)
def test_error_names_item_of_list(key, value, expected, tmp_path):
    message = error_of_tables(changed(("space.hidden_size", ABSENT), (key, value)), tmp_path)
    assert re.match(rf"{re.escape(key)}\b", message), message
    for text in expected:
        assert text in message


@pytest.mark.parametrize("batch_size", [{"low": 10, "high": 20}, {"choices": [10]}])
def test_key_in_both_tables_is_refused(batch_size, tmp_path):
    message = error_of_tables(changed(("space.batch_size", batch_size)), tmp_path)
    assert message.startswith("space.batch_size: ")
    assert "[train]" in message


def test_missing_study_table_is_refused(tmp_path):
    assert error_of_tables(changed(("study", ABSENT)), tmp_path) == "study: missing"


@pytest.mark.parametrize("text", ["[study", "name = ", "[study]\nname = 'a'\nname = 'b'", "{}"])
def test_file_without_toml_is_refused(text, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(text)
    assert "not TOML" in error_of(path)


def test_file_without_utf_8_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes('[study]\nname = "é"\n'.encode("latin-1"))
    assert "UTF-8" in error_of(path)


def test_missing_file_is_refused(tmp_path):
    assert error_of(tmp_path / "nowhere.toml") == "no such study file"


def test_folder_is_refused(tmp_path):
    assert "cannot be read" in error_of(tmp_path)


def test_find_study_finds_shipped_study():
    assert find_study("digits").is_file()


def test_find_study_prefers_working_directory(tmp_path):
    (tmp_path / "studies").mkdir()
    mine = tmp_path / "studies" / "digits.toml"
    mine.write_text(toml(VALID))
    assert find_study("digits").samefile(mine)
    assert find_study("cifar10").is_file()


@pytest.mark.parametrize("path", ["mine.toml", "here/mine.toml", "here/mine", "/away/mine.toml"])
def test_find_study_returns_path_unchanged(path):
    assert find_study(path) == Path(path)


@pytest.mark.parametrize("name", ["nothing", "", "..", "[red]"])
def test_find_study_lists_known_names(name, tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.toml").write_text(toml(VALID))
    with pytest.raises(StudyFileError) as caught:
        find_study(name)
    assert str(caught.value).isprintable()
    for text in (
        f"'{name}'",
        "cifar10, cifar10_best, cifar10_deep, cifar10_random_grid, cifar10_raw, digits, iris, mine, toy",
        ".toml",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a = " + b"[" * 100_000, "not TOML: its values are nested too deeply"),
        (b'[study]\nname = "a\0b"', "not TOML: "),
        (b"\xff\xfe", "not TOML: the text is not UTF-8"),
        (b"#" * 1_000_001, "not a study file: it has more than 1,000,000 bytes"),
    ],
)
def test_damaged_study_file_is_one_line(content, problem, tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(StudyFileError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


def test_study_file_that_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    for path, problem in [(tmp_path / "pipe.toml", "file"), (tmp_path, "directory"), (Path("/dev/zero"), "file")]:
        with pytest.raises(StudyFileError, match=f"cannot be read: .*{problem}"):
            load_config(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_study_file_is_an_error_or_valid(data):
    content = find_study("digits").read_bytes()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(StudyFileError):
        path = Path(folder, "study.toml")
        path.write_bytes(data.draw(damaged(content)))
        load_config(path)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("data.label", True, "the name of a column, or its position from 0, is allowed, not true"),
        ("data.label", 1.5, "the name of a column, or its position from 0, is allowed, not 1.5"),
        ("data.drop", "id", "a list of names or positions of columns, such as [\"id\", 0], is allowed, not 'id'"),
        ("study.trials", "ten", "an integer is allowed, not 'ten'"),
        ("data.pca", 1.5, "a number less than 1.0 is allowed, not 1.5"),
        ("data.mirror", 1, "true or false (a boolean) is allowed, not 1"),
    ],
)
def test_error_has_words_of_study_file(key, value, problem, tmp_path):
    assert error_of_tables(changed((key, value)), tmp_path) == f"{key}: {problem}"


@pytest.mark.parametrize(("key", "value"), [("data.folds", 5), ("data.group", "patient"), ("data.order", 0)])
def test_settings_omit_unused_division_of_rows(key, value, tmp_path):
    settings = load_tables(VALID, tmp_path).settings()
    assert not {key, "data.repeats"} & settings.keys()
    assert load_tables(changed((key, value)), tmp_path).settings() == settings | {key: value}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((("data.group", "a"), ("data.order", "b")), "data.group: the rows have either groups or an order; remove "),
        ((("data.repeats", 2),), "data.repeats: needs folds, which are drawn again in each repeat; set data.folds"),
        (
            (("data.folds", 2), ("data.repeats", 2), ("data.order", "b")),
            "data.repeats: ordered rows have the same folds in each repeat; remove this key",
        ),
    ],
)
def test_contradictory_division_of_rows_is_refused(changes, message, tmp_path):
    assert error_of_tables(changed(*changes), tmp_path).startswith(message)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"train": 0.8, "test": 0.2},
            "data.split.train: follows from data.folds; remove it, and give the size of the ",
        ),
        ({"test": 0}, "data.split.test: 0; a count of at least 1, or a fraction, is allowed"),
        ({"test": 1.5}, "data.split.test: 1.5; a count of at least 1, or a fraction, is allowed"),
    ],
)
def test_split_that_contradicts_folds_is_refused(split, message, tmp_path):
    assert error_of_tables(changed(("data.folds", 5), ("data.split", split)), tmp_path).startswith(message)


# Models

COMPARED = {
    "study": {"name": "mine"},
    "data": {"dataset": "digits"},
    "model": {"kind": ["mlp", "trees"], "trees": {"estimator": "package.Trees"}},
    "train": {"mlp": {"epochs": 5}, "trees": {"bootstrap": True, "max_depth": "none"}},
    "space": {"mlp": {"learning_rate": {"low": 0.1, "high": 1.0}}},
}


def test_list_of_models_has_study_file_of_each(tmp_path):
    config = load_tables(COMPARED, tmp_path)
    assert config.train == {"mlp.epochs": 5, "trees.bootstrap": True, "trees.max_depth": "none"}
    net, trees = config.branches["mlp"], config.branches["trees"]
    assert (net.model.kind, net.train, list(net.space)) == ("mlp", {"epochs": 5}, ["learning_rate"])
    assert (trees.model.kind, trees.model.estimator) == ("sklearn", "package.Trees")
    assert (trees.train, trees.space) == ({"bootstrap": True, "max_depth": "none"}, {})
    assert net.key("space", "learning_rate") == "space.mlp.learning_rate"
    assert trees.key("model", "estimator") == "model.trees.estimator"


def test_single_model_has_no_branches(tmp_path):
    assert load_tables(VALID, tmp_path).branches == {}
    assert load_tables(VALID | {"model": {"kind": "mlp-torch"}}, tmp_path).branches == {}


def test_settings_name_models(tmp_path):
    settings = load_tables(COMPARED, tmp_path).settings()
    assert settings["model.kind"] == ["mlp", "trees"]
    assert settings["model.trees"] == {"estimator": "package.Trees"}
    assert settings["train.trees.bootstrap"] is True


def test_study_without_other_model_keeps_its_settings(tmp_path):
    settings = load_tables(VALID, tmp_path).settings()
    assert load_tables(VALID | {"model": {"kind": "mlp"}}, tmp_path).settings() == settings
    assert not [key for key in settings if key.startswith("model")]


def test_permission_to_import_is_no_setting(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(toml(VALID))
    config = load_config(path, ["package"])
    assert config.allowed_imports == {"package"}
    assert with_overrides(config, "other", {}).allowed_imports == {"package"}
    assert config.settings() == load_config(path).settings()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.kind", 3, "model.kind: a kind of model, or a list of names"),
        ("model.kind", [], "model.kind: a kind of model, or a list of names"),
        ("model.kind", ["mlp", "mlp"], "model.kind: a name occurs twice"),
        ("model.kind", ["mlp", "a.b"], "model.kind: a kind of model, or a list of names"),
        ("model.kind", ["mlp"], "model.trees: is not in the list model.kind"),
        ("model.kidn", "mlp", "model.kidn: unknown key; did you mean kind?"),
        ("model.trees.estimatr", "a.B", "model.trees.estimatr: unknown key; did you mean estimator?"),
        ("space.learning_rate", {"low": 1, "high": 2}, "space.learning_rate: model.kind is a list; move the key to"),
        ("train.mlp", 3, "train.mlp: model.kind is a list; move the key to"),
        ("space.mlp.epochs", {"low": 1}, "space.mlp.epochs.high: missing"),
        ("train.mlp.learning_rate", 0.1, "space.mlp.learning_rate: is in [train] too"),
    ],
)
def test_error_in_models_is_one_line(key, value, message, tmp_path):
    tables = copy.deepcopy(COMPARED)
    *path, last = key.split(".")
    table = tables
    for name in path:
        table = table[name]
    table[last] = value
    assert message in error_of_tables(tables, tmp_path)
