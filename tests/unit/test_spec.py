"""A study file: what is read from it, and the one line that is said of a wrong one."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.config.study import find_study, load_config
from hpo.errors import StudyFileError

ABSENT = object()

VALID = {
    "study": {"name": "mine"},
    "data": {"dataset": "digits"},
    "train": {"batch_size": 50},
    "space": {
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "regularization": {"low": 1e-7, "high": 1e-2, "log": True},
        "hidden_size": {"low": 32, "high": 400},
        "epochs": {"low": 100, "high": 500},
    },
}


def toml(tables):
    """Tables of scalars, lists and inline tables as TOML."""
    lines = []
    for table, content in tables.items():
        if not isinstance(content, dict):
            lines.insert(0, f"{table} = {toml_value(content)}")
            continue
        lines.append(f"[{table}]")
        lines += [f"{toml_value(key)} = {toml_value(value)}" for key, value in content.items()]
    return "\n".join(lines) + "\n"


def toml_value(value):
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case bool():
            return str(value).lower()
        case dict():
            return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(toml_value, value)) + "]"
        case _:
            return repr(value)


def changed(*changes):
    """The valid study with ``("table.key", value)`` changes."""
    tables = copy.deepcopy(VALID)
    for where, value in changes:
        *path, last = where.split(".")
        table = tables
        for key in path:
            table = table.setdefault(key, {})
        table[last] = value
        if value is ABSENT:
            del table[last]
    return tables


def read(tables, folder):
    path = folder / "study.toml"
    path.write_text(toml(tables), encoding="utf-8")
    return load_config(path)


def complaint(path):
    """What is said of a wrong file, after its name: one line."""
    with pytest.raises(StudyFileError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def complaint_of(tables, folder):
    path = folder / "study.toml"
    path.write_text(toml(tables), encoding="utf-8")
    return complaint(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("spec")


# What is read


SHIPPED = sorted(path.stem for path in find_study("digits").parent.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_studies_load_and_are_named_as_their_files(name):
    assert load_config(find_study(name)).study.name == name


def test_cifar10_searches_the_ranges_of_the_report():
    spec = load_config(find_study("cifar10"))
    assert {name: (space.low, space.high, space.log) for name, space in spec.space.items()} == {
        "learning_rate": (1e-7, 1e-2, True),
        "regularization": (1e-7, 1e-2, True),
        "hidden_size": (32, 400, False),
        "epochs": (100, 500, False),
    }
    split = spec.data.split
    assert (split.train, split.validation, split.test, spec.data.pca) == (49000, 1000, 1000, 0.95)


OPTIONAL = {
    "hidden_layers": st.integers(1, 5),
    "batch_size": st.integers(1, 5000),
    "momentum": st.floats(0, 0.999),
    "learning_rate_decay": st.floats(0.001, 1),
    "dropout": st.floats(0, 0.999),
    "label_smoothing": st.floats(0, 0.999),
    "whitening": st.floats(0, 1),
    "input_scale": st.floats(0.001, 10),
}
REQUIRED = {
    "learning_rate": st.floats(1e-12, 10),
    "regularization": st.floats(0, 10),
    "hidden_size": st.integers(1, 5000),
    "epochs": st.integers(1, 5000),
}
counts = st.fixed_dictionaries({part: st.integers(1, 10**6) for part in ("train", "validation", "test")})
fractions = st.fixed_dictionaries({part: st.floats(0.01, 1 / 3) for part in ("train", "validation", "test")})


@st.composite
def ranges(draw, values):
    low, high = sorted((draw(values), draw(values)))
    log = {"log": draw(st.booleans()) and low > 0} if draw(st.booleans()) else {}
    return {"low": low, "high": high} | log


def choices(values):
    return st.fixed_dictionaries({"choices": st.lists(values, min_size=1, max_size=5)})


def searched(values):
    return ranges(values) | choices(values)


SIZES = st.lists(st.integers(1, 500), min_size=1, max_size=4)


@st.composite
def studies(draw):
    """A valid study file as tables."""
    train, space = {}, {}
    alternatives = {name: (values, searched(values)) for name, values in (REQUIRED | OPTIONAL).items()}
    if draw(st.booleans()):
        del alternatives["hidden_size"]
        alternatives["hidden_layers"] = SIZES, choices(SIZES)
    for name, (values, searches) in alternatives.items():
        optional = name in OPTIONAL and "hidden_size" in alternatives
        match draw(st.sampled_from(["train", "space", "default"])):
            case "train":
                train[name] = draw(values)
            case "default" if optional:
                pass
            case _:
                space[name] = draw(searches)
    study = st.fixed_dictionaries(
        {"name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)},
        optional={
            "trials": st.integers(1, 10**6),
            "seed": st.integers(0, 2**32 - 1),
            "sampler": st.sampled_from(["tpe", "random", "random-grid", "qmc", "cmaes", "gp"]),
            "pruner": st.sampled_from(["asha", "hyperband", "median", "none"]),
        },
    )
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    data = st.fixed_dictionaries(
        {"dataset": text},
        optional={
            "label": text,
            "split": counts | fractions,
            "scale": st.sampled_from(["feature", "global", "none"]),
            "pca": st.floats(0, 0.999),
        },
    )
    tables = {"study": draw(study), "data": draw(data), "train": train, "space": space}
    return {name: table for name, table in tables.items() if table}


def flat(tables, prefix=""):
    """``(table.key, value)`` of all values, however deep."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value))  # lists, not tuples


@settings(max_examples=60, deadline=None)
@given(tables=studies())
def test_what_is_written_is_what_is_read(tables, folder):
    loaded = dict(flat(read(tables, folder).model_dump()))
    written = dict(flat(tables))
    assert {key: loaded[key] for key in written} == written
    assert {key: type(loaded[key]) for key in written} == {key: type(value) for key, value in written.items()}


@settings(max_examples=30, deadline=None)
@given(tables=studies(), trials=st.integers(1, 10**6))
def test_the_budget_is_not_among_the_settings(tables, trials, folder):
    other = tables | {"study": tables["study"] | {"trials": trials}}
    assert read(tables, folder).settings() == read(other, folder).settings()


@settings(max_examples=30, deadline=None)
@given(tables=studies())
def test_settings_survive_json(tables, folder):
    remembered = read(tables, folder).settings()
    assert json.loads(json.dumps(remembered, allow_nan=False)) == remembered


@pytest.mark.parametrize(
    "change",
    [
        ("study.name", "yours"),
        ("study.seed", 1),
        ("study.sampler", "random"),
        ("study.pruner", "none"),
        ("data.dataset", "cifar10"),
        ("data.label", "species"),
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
def test_settings_tell_every_other_change(change, tmp_path):
    before, after = read(VALID, tmp_path).settings(), read(changed(change), tmp_path).settings()
    differing = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert differing == [".".join(change[0].split(".")[:2])]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [({"low": 3, "high": 40}, 40), ({"choices": [7, 90, 8]}, 90), ({"low": 5, "high": 5}, 5)],
)
def test_the_longest_trial_is_the_upper_end_of_what_is_searched(epochs, expected, tmp_path):
    assert read(changed(("space.epochs", epochs)), tmp_path).max_epochs == expected


def test_the_longest_trial_is_the_fixed_number_of_epochs(tmp_path):
    assert read(changed(("space.epochs", ABSENT), ("train.epochs", 12)), tmp_path).max_epochs == 12


def test_a_trial_trains_with_its_parameters_the_fixed_values_and_the_defaults(tmp_path):
    spec = read(VALID, tmp_path)
    params = {"learning_rate": 0.01, "regularization": 1e-3, "hidden_size": 64, "epochs": 200}
    assert spec.hyperparameters(params).model_dump() == params | {
        "batch_size": 50,
        "hidden_layers": 1,
        "momentum": 0.0,
        "learning_rate_decay": 1.0,
        "dropout": 0.0,
        "label_smoothing": 0.0,
        "whitening": 0.0,
        "input_scale": 1.0,
        "backend": "numpy",
    }


LISTS = [[200], [200, 150], [200, 150, 100]]


def test_the_layers_of_a_trial_can_be_listed(tmp_path):
    tables = changed(("space.hidden_size", ABSENT), ("space.hidden_layers", {"choices": LISTS}))
    spec = read(tables, tmp_path)
    rest = {"learning_rate": 0.01, "regularization": 1e-3, "epochs": 200}
    trained = [spec.hyperparameters(rest | {"hidden_layers": json.dumps(sizes)}) for sizes in LISTS]
    assert [list(hyperparameters.hidden_sizes) for hyperparameters in trained] == LISTS
    assert {hyperparameters.hidden_size for hyperparameters in trained} == {None}
    fixed = read(changed(("space.hidden_size", ABSENT), ("train.hidden_layers", LISTS[-1])), tmp_path)
    assert fixed.hyperparameters(rest).hidden_sizes == (200, 150, 100)


def test_a_number_of_layers_has_them_all_of_one_size(tmp_path):
    params = {"learning_rate": 0.01, "regularization": 1e-3, "hidden_size": 64, "epochs": 200}
    assert read(changed(("train.hidden_layers", 3)), tmp_path).hyperparameters(params).hidden_sizes == (64, 64, 64)


@pytest.mark.parametrize(("key", "value", "none"), [("data.mirror", True, False), ("data.shift", 2, 0)])
def test_a_study_without_variants_is_the_one_that_it_was_before_there_were_any(key, value, none, tmp_path):
    for change in ((key, ABSENT), (key, none)):
        assert key not in read(changed(change), tmp_path).settings()
    assert read(changed((key, value)), tmp_path).settings()[key] == value


def test_a_study_that_names_no_backend_is_the_one_that_it_was_before_there_were_any(tmp_path):
    assert "train.backend" not in read(VALID, tmp_path).settings()


def test_a_study_is_frozen(tmp_path):
    spec = read(VALID, tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        spec.study.trials = 3


# What is refused

HYPERPARAMETERS = "allowed are learning_rate, regularization, hidden_size, epochs"
FRACTIONS = "three fractions that add up to at most 1.0"

WRONG = [
    # a key that nobody knows
    ("trian", {"momentum": 0.9}, "did you mean train", "allowed are study, data, train, space"),
    ("study.tirals", 3, "did you mean trials", "allowed are name, trials, seed, sampler, pruner"),
    ("study.zzz", 3, "unknown key; allowed are name"),
    ("data.pac", 0.9, "did you mean pca", "allowed are dataset, label, split, scale, pca"),
    ("data.split.trian", 0.5, "did you mean train", "allowed are train, validation, test"),
    ("train.momentun", 0.9, "did you mean momentum", HYPERPARAMETERS),
    ("train.zzz", 0.9, f"unknown key; {HYPERPARAMETERS}"),
    ("space.hiden_size", {"low": 1, "high": 2}, "did you mean hidden_size", HYPERPARAMETERS),
    ("space.hidden_size.logg", True, "did you mean log", "allowed are low, high, log"),
    ("range", {"low": 1}, "unknown key", "allowed are study, data, train, space"),
    ("study.range", 3, "unknown key", "allowed are name, trials, seed, sampler, pruner"),
    # ranges and choices
    ("space.learning_rate", {"low": 1, "high": 0.1}, "low = 1 is above high = 0.1", "low <= high is allowed"),
    ("space.learning_rate", {"low": 0, "high": 0.1, "log": True}, "needs low > 0", "low = 0"),
    ("space.learning_rate", {"low": -1.0, "high": 0.1, "log": True}, "needs low > 0", "low = -1.0"),
    ("space.learning_rate.high", ABSENT, "missing"),
    ("space.learning_rate", {"low": -1, "high": 0.1}, "greater than 0", "-1"),
    ("space.epochs", {"low": 0, "high": 4}, "greater than 0", "0"),
    ("space.epochs", {"choices": [5, 0]}, "greater than 0", "0"),
    ("space.momentum", {"low": 0.5, "high": 1.0}, "less than 1", "1.0"),
    ("space.epochs", {"choices": []}, "at least 1"),
    ("space.epochs", {"choices": 3}, "3"),
    ("space.epochs", 7, "7", "{ low, high, log } or { choices }", "[train]"),
    ("space.epochs", [7, 8], "[7, 8]", "{ low, high, log } or { choices }"),
    ("space.hidden_size", {"low": 32.5, "high": 400}, "integer", "32.5"),
    ("space.hidden_size", {"low": 32, "high": 400.5}, "integer", "400.5"),
    ("space.hidden_size", {"choices": [32, 64.5]}, "integer", "64.5"),
    # in neither place, or in both
    ("space.epochs", ABSENT, "missing", "a range in [space] or a value in [train]"),
    ("space.learning_rate", ABSENT, "missing", "a range in [space] or a value in [train]"),
    ("train.momentum", 1.0, "less than 1", "1.0"),
    ("train.batch_size", 0, "greater than 0", "0"),
    ("train.batch_size", 1.5, "integer", "1.5"),
    ("space.epochs", {"choices": [[3]]}, "integer", "[3]"),
    ("space.epochs", {"choices": ["3"]}, "integer", "'3'"),
    # types
    ("study", 1, "1"),
    ("study.name", 3, "string", "3"),
    ("study.name", ABSENT, "missing"),
    ("study.trials", "ten", "integer", "'ten'"),
    ("study.trials", 1.5, "integer", "1.5"),
    ("data.dataset", 3, "string", "3"),
    ("data.dataset", ABSENT, "missing"),
    ("data.dataset", "", "at least 1 character"),
    ("data.label", 3, "string", "3"),
    ("data.split", 3, "3"),
    ("data.split.train", "half", "'half'"),
    ("data.pca", "most", "number", "'most'"),
    ("data.scale", "big", "'feature', 'global' or 'none'", "'big'"),
    ("train.batch_size", [50], "[50]"),
    ("train.batch_size", "50", "integer", "'50'"),
    ("train.momentum", "high", "number", "'high'"),
    ("train.backend", "jax", "'numpy' or 'torch'", "'jax'"),
    ("train.backend", 1, "'numpy' or 'torch'", "1"),
    ("space.learning_rate.log", "yes", "boolean", "'yes'"),
    ("space.learning_rate.log", 1, "boolean", "1"),
    ("space.learning_rate.low", "small", "'small'"),
    # true is no number
    ("study.trials", True, "True"),
    ("study.seed", True, "True"),
    ("data.pca", True, "True"),
    ("data.split.train", True, "True"),
    ("train.batch_size", True, "True"),
    ("space.epochs.low", True, "True"),
    ("space.epochs", {"choices": [True]}, "True"),
    # nor is nan, nor infinity
    ("data.pca", math.nan, "finite", "nan"),
    ("train.momentum", math.nan, "nan"),
    ("train.batch_size", math.inf, "inf"),
    ("space.learning_rate.low", math.nan, "nan"),
    ("space.learning_rate.high", math.inf, "inf"),
    ("space.epochs", {"choices": [math.nan]}, "nan"),
    ("data.split", {"train": math.nan, "validation": 0.1, "test": 0.1}, "nan"),
    # names
    *(("study.name", name, repr(name)) for name in ("a/b", "..", "", "-a", "a b", "é", "a\n", "[red]", "x" * 101)),
    # what exists
    ("study.sampler", "tpee", "'tpe'", "'random'", "'qmc'", "'tpee'"),
    ("study.pruner", "ash", "'asha'", "'hyperband'", "'median'", "'none'", "'ash'"),
    # intervals
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
    ("key", "value", "said"),
    [(key, value, said) for key, value, *said in WRONG],
    ids=[f"{key}-{'absent' if value is ABSENT else ascii(value)}"[:60] for key, value, *_ in WRONG],
)
def test_a_wrong_key_is_named_with_what_is_allowed(key, value, said, tmp_path):
    message = complaint_of(changed((key, value)), tmp_path)
    assert re.match(rf"{re.escape(key)}\b", message), message
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.hidden_layers", [3, 0], ("greater than 0", "not 0")),
        ("train.hidden_layers", [], ("[]",)),
        ("train.hidden_layers", [1.5], ("integer", "1.5")),
        ("train.hidden_layers", ["3"], ("number", "['3']")),
        ("space.hidden_layers", {"choices": [[3], 1]}, ("numbers of layers or lists of sizes",)),
        ("space.hidden_layers", {"choices": [[3], [2.5]]}, ("integer", "2.5")),
        ("space.hidden_layers", {"choices": [[3, True]]}, ("number", "True")),
        ("space.hidden_layers", {"choices": [[3], []]}, ("[]",)),
    ],
)
def test_wrong_sizes_of_layers_are_named(key, value, said, tmp_path):
    message = complaint_of(changed(("space.hidden_size", ABSENT), (key, value)), tmp_path)
    assert re.match(rf"{re.escape(key)}\b", message), message
    for part in said:
        assert part in message


def test_a_size_beside_a_list_of_sizes_is_refused(tmp_path):
    message = complaint_of(changed(("train.hidden_layers", [3])), tmp_path)
    assert message == "space.hidden_size: hidden_layers has the sizes already; leave it out"


def test_a_number_of_layers_needs_their_size(tmp_path):
    message = complaint_of(changed(("space.hidden_size", ABSENT), ("train.hidden_layers", 2)), tmp_path)
    assert message.startswith("space.hidden_size: missing")


@pytest.mark.parametrize("batch_size", [{"low": 10, "high": 20}, {"choices": [10]}])
def test_a_hyperparameter_in_both_tables_is_refused(batch_size, tmp_path):
    message = complaint_of(changed(("space.batch_size", batch_size)), tmp_path)
    assert message.startswith("space.batch_size: ")
    assert "[train]" in message


@pytest.mark.parametrize("table", ["study", "data"])
def test_a_missing_table_is_named(table, tmp_path):
    assert complaint_of(changed((table, ABSENT)), tmp_path) == f"{table}: missing"


def test_without_any_range_or_fixed_value_the_first_hyperparameter_is_missing(tmp_path):
    message = complaint_of(changed(("train", ABSENT), ("space", ABSENT)), tmp_path)
    assert message.startswith("space.learning_rate: missing")


@pytest.mark.parametrize("text", ["[study", "name = ", "[study]\nname = 'a'\nname = 'b'", "{}"])
def test_what_is_not_toml_is_refused(text, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(text)
    assert "not TOML" in complaint(path)


def test_what_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes('[study]\nname = "é"\n'.encode("latin-1"))
    assert "UTF-8" in complaint(path)


def test_a_missing_file_is_named(tmp_path):
    assert complaint(tmp_path / "nowhere.toml") == "no such study file"


def test_a_folder_is_no_study_file(tmp_path):
    assert "cannot be read" in complaint(tmp_path)


# Where a study is found


def test_a_name_is_found_among_the_shipped_studies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study("digits").is_file()


def test_a_study_of_the_working_directory_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    mine = tmp_path / "studies" / "digits.toml"
    mine.write_text(toml(VALID))
    assert find_study("digits").samefile(mine)
    assert find_study("cifar10").is_file()


@pytest.mark.parametrize("path", ["mine.toml", "here/mine.toml", "here/mine", "/away/mine.toml"])
def test_a_path_is_taken_as_it_is(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study(path) == Path(path)


@pytest.mark.parametrize("name", ["nothing", "", "..", "[red]"])
def test_of_an_unknown_name_the_known_ones_are_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.toml").write_text(toml(VALID))
    with pytest.raises(StudyFileError) as caught:
        find_study(name)
    assert str(caught.value).isprintable()
    for part in (
        f"'{name}'",
        "cifar10, cifar10_best, cifar10_deep, cifar10_random_grid, cifar10_raw, digits, mine, toy",
        ".toml",
    ):
        assert part in str(caught.value)
