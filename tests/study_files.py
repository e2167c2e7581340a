"""Study files that tests write and change."""

import copy
import json

from hypothesis import strategies as st

from hpo.config.loader import load_config

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
    """Return tables of scalars, lists and inline tables as TOML."""
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
    """Return the valid study with ``("table.key", value)`` changes."""
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


def load_tables(tables, folder):
    """Write tables into a study file of this folder and load it."""
    path = folder / "study.toml"
    path.write_text(toml(tables), encoding="utf-8")
    return load_config(path)


_OPTIONAL = {
    "hidden_layers": st.integers(1, 5),
    "batch_size": st.integers(1, 5000),
    "momentum": st.floats(0, 0.999),
    "learning_rate_decay": st.floats(0.001, 1),
    "dropout": st.floats(0, 0.999),
    "label_smoothing": st.floats(0, 0.999),
    "whitening": st.floats(0, 1),
    "input_scale": st.floats(0.001, 10),
}
_REQUIRED = {
    "learning_rate": st.floats(1e-12, 10),
    "regularization": st.floats(0, 10),
    "hidden_size": st.integers(1, 5000),
    "epochs": st.integers(1, 5000),
}
_COUNTS = st.fixed_dictionaries({name: st.integers(1, 10**6) for name in ("train", "validation", "test")})
_FRACTIONS = st.fixed_dictionaries({name: st.floats(0.01, 1 / 3) for name in ("train", "validation", "test")})


@st.composite
def _ranges(draw, values):
    low, high = sorted((draw(values), draw(values)))
    log = {"log": draw(st.booleans()) and low > 0} if draw(st.booleans()) else {}
    return {"low": low, "high": high} | log


def _choices(values):
    return st.fixed_dictionaries({"choices": st.lists(values, min_size=1, max_size=5)})


def _searched(values):
    return _ranges(values) | _choices(values)


_SIZES = st.lists(st.integers(1, 500), min_size=1, max_size=4)


@st.composite
def studies(draw):
    """Draw a valid study file as tables."""
    train, space = {}, {}
    alternatives = {name: (values, _searched(values)) for name, values in (_REQUIRED | _OPTIONAL).items()}
    if draw(st.booleans()):
        del alternatives["hidden_size"]
        alternatives["hidden_layers"] = _SIZES, _choices(_SIZES)
    for name, (values, searches) in alternatives.items():
        optional = name in _OPTIONAL and "hidden_size" in alternatives
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
            "split": _COUNTS | _FRACTIONS,
            "scale": st.sampled_from(["feature", "global", "none"]),
            "pca": st.floats(0, 0.999),
        },
    )
    tables = {"study": draw(study), "data": draw(data), "train": train, "space": space}
    return {name: table for name, table in tables.items() if table}
