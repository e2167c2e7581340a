"""Encoding of a table's columns, and warnings about columns that predict the label alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from damage import FORGERIES, forged
from data_files import error_of, make_config
from sklearn.preprocessing import TargetEncoder

from hpo.data.division.splits import raw_splits
from hpo.data.leaks import describe_leaks
from hpo.data.prepared.cache import prepare
from hpo.data.prepared.preprocessing import Preprocessor
from hpo.data.sources import Dataset
from hpo.data.tables.encoder import MAX_ONE_HOT_LEVELS, TableEncoder
from hpo.data.tables.schema import UNKNOWN, Column, Schema
from hpo.models.fitted import FittedNet
from hpo.models.predictor import Member, Predictor, load_predictor

ROWS = 200
RNG = np.random.default_rng(0)
COLOURS = Column("colour", "categorical", levels=("blue", "green", "red"))
CITIES = Column("city", "categorical", levels=tuple(f"city {i:02}" for i in range(MAX_ONE_HOT_LEVELS + 1)))
BORN = Column("born", "date", form="ISO8601")


def fit(columns, X, y=None, rows=None, task="classification"):
    rows = np.arange(len(X)) if rows is None else rows
    y = RNG.integers(0, 2, len(rows)) if y is None else y
    return TableEncoder.fit(Schema(columns), np.asarray(X, float), rows, y, task=task, seed=0)


def test_missing_number_is_the_median_with_an_indicator():
    encoder, _ = fit((Column("x"),), [[1], [2], [9], [np.nan]])
    assert encoder.transform(np.array([[np.nan], [5]])).tolist() == [[2, 1], [5, 0]]


def test_rare_categories_are_together_and_unknown_ones_with_them():
    codes = [[0]] * 50 + [[1]] * 50 + [[2]]
    encoder, _ = fit((COLOURS,), codes)
    encoded = encoder.transform(np.array([[0.0], [1], [2], [UNKNOWN]]))
    assert encoded.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_missing_category_is_a_category():
    encoder, _ = fit((COLOURS,), [[0]] * 50 + [[np.nan]] * 50)
    assert encoder.transform(np.array([[0.0], [np.nan], [UNKNOWN]])).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_date_is_encoded_by_its_parts():
    encoder, _ = fit((BORN,), [[86400.0 * day] for day in range(40)])
    # 1970-02-01 was a Sunday.
    assert encoder.transform(np.array([[31 * 86400.0]])).tolist() == [[31 * 86400, 1970, 2, 1, 6, 32]]
    encoder, _ = fit((replace(BORN, has_times=True),), [[3600.0 * hour] for hour in range(40)])
    assert encoder.transform(np.array([[7200.0]]))[0, -1] == 2


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_many_categories_are_encoded_by_targets_of_other_folds(task):
    codes = RNG.integers(0, len(CITIES.levels), (ROWS, 1)).astype(float)
    y = RNG.integers(0, 2, ROWS) if task == "classification" else RNG.normal(size=ROWS)
    encoder, training = fit((CITIES,), codes, y, task=task)
    whole = TargetEncoder(target_type="binary" if task == "classification" else "continuous").fit(codes, y)
    np.testing.assert_allclose(encoder.transform(codes), whole.transform(codes))
    # A training row does not see its own target.
    assert not np.allclose(training[:], encoder.transform(codes))
    assert np.corrcoef(training[:][:, 0], y)[0, 1] < np.corrcoef(encoder.transform(codes)[:, 0], y)[0, 1] - 0.2


@pytest.mark.parametrize("classes", [[1, 2], [0, 2], [1, 2, 4]])
def test_training_rows_may_lack_a_class(classes):
    codes, y = RNG.integers(0, MAX_ONE_HOT_LEVELS + 1, (ROWS, 1)), np.resize(classes, ROWS)
    encoder, _ = fit((CITIES,), codes, y)
    shares = [np.mean(y == each) for each in (classes[1:] if len(classes) == 2 else classes)]
    assert encoder.transform(np.array([[UNKNOWN]])) == pytest.approx(np.array([shares]))


def test_many_classes_take_frequent_categories():
    codes = RNG.integers(0, len(CITIES.levels), (ROWS, 1)).astype(float)
    encoder, _ = fit((CITIES,), codes, np.arange(ROWS) % 30)
    assert set(np.unique(encoder.transform(codes))) == {0, 1}
    assert encoder.n_outputs <= MAX_ONE_HOT_LEVELS


def test_only_training_rows_are_fitted():
    columns = (Column("x"), COLOURS, CITIES, BORN)
    X = np.column_stack(
        [RNG.normal(size=ROWS), RNG.integers(0, 3, ROWS), RNG.integers(0, 31, ROWS), RNG.normal(size=ROWS)]
    )
    rows = np.arange(100)
    y = RNG.integers(0, 2, 100)
    changed = X.copy()
    changed[100:] = [1e6, UNKNOWN, UNKNOWN, np.nan]
    first, second = fit(columns, X, y, rows), fit(columns, changed, y, rows)
    assert first[1][:].tobytes() == second[1][:].tobytes()
    assert first[0].transform(X).tobytes() == second[0].transform(X).tobytes()


def test_many_columns_are_fitted_in_groups(monkeypatch):
    X = RNG.normal(size=(ROWS, 7))
    X[RNG.random(X.shape) < 0.1] = np.nan
    columns = tuple(Column(f"x{i}") for i in range(7))
    whole, _ = fit(columns, X)
    monkeypatch.setattr("hpo.data.tables.encoder._GROUP_COLUMNS", 3)
    groups, _ = fit(columns, X)
    assert sorted(groups.transform(X).T.tolist()) == sorted(whole.transform(X).T.tolist())
    assert whole.n_outputs == groups.n_outputs == 14


def test_blocks_do_not_change_bits(monkeypatch):
    columns = (Column("x"), COLOURS, CITIES, BORN)
    X = np.column_stack(
        [RNG.normal(size=ROWS), RNG.integers(0, 3, ROWS), RNG.integers(0, 31, ROWS), RNG.normal(size=ROWS)]
    )
    encoder, training = fit(columns, X)
    whole = encoder.transform(X), training[:]
    monkeypatch.setattr("hpo.data.tables.encoder.block_rows", lambda n_columns: 7)
    assert encoder.transform(X).tobytes() == whole[0].tobytes()
    _, again = fit(columns, X, RNG.integers(0, 2, ROWS))
    assert again[3:9].shape == (6, encoder.n_outputs)
    assert np.vstack([training[3:9], training[9:11]]).tobytes() == whole[1][3:11].tobytes()


def test_bytes_restore_the_encoder():
    columns = (Column("x"), COLOURS, CITIES, replace(BORN, has_times=True))
    X = np.column_stack(
        [RNG.normal(size=ROWS), RNG.integers(0, 3, ROWS), RNG.integers(0, 31, ROWS), RNG.normal(size=ROWS)]
    )
    encoder, _ = fit(columns, X)
    again = TableEncoder.from_bytes(encoder.to_bytes())
    assert again.schema == encoder.schema
    assert again.transform(X).tobytes() == encoder.transform(X).tobytes()


@pytest.mark.parametrize("packed", [b"no archive", b"PK\x05\x06" + bytes(18)])
def test_damaged_bytes_are_refused(packed):
    with pytest.raises(ValueError, match="the encoder of the columns is damaged"):
        TableEncoder.from_bytes(packed)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_archive_is_refused(forgery):
    packed = fit((COLOURS, Column("x")), np.arange(100).reshape(50, 2) % 3)[0].to_bytes()
    with pytest.raises(ValueError, match="the encoder of the columns is damaged"):
        TableEncoder.from_bytes(forged(packed, forgery))


def test_type_of_another_package_is_refused():
    import skops.io

    packed = skops.io.dumps({"schema": "[]", "transformer": Schema})
    with pytest.raises(ValueError, match=r"the encoder of the columns holds hpo\.data\.tables\.schema\.Schema"):
        TableEncoder.from_bytes(packed)


# Prepared data and predictors


def people(n=ROWS):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "name": [f"person {i}" for i in range(n)],
            "age": np.where(rng.random(n) < 0.1, np.nan, rng.integers(1, 90, n)),
            "colour": rng.choice(["red", "blue", None], n),
            "city": rng.choice([f"city {i}" for i in range(50)], n),
            "born": pd.to_datetime("1970-01-01") + pd.to_timedelta(rng.integers(0, 9999, n), "D"),
            "member": rng.choice(["yes", "no"], n),
        }
    )
    return frame.assign(bought=np.where((frame["colour"] == "red") ^ (rng.random(n) < 0.1), "yes", "no"))


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))
    people().to_csv("people.csv", index=False)
    return make_config("people.csv")


def predictor_of(data):
    """Return a predictor with random weights."""
    fold = data.folds[0]
    W = np.random.default_rng(0).normal(size=(fold.preprocessor.n_outputs, 2)).astype(np.float32)
    model = FittedNet([(W, np.zeros(2, np.float32))])
    return Predictor(data.classes, (Member(fold.preprocessor, model),), data.feature_names)


def refusal(call, *arguments):
    with pytest.raises(ValueError) as caught:  # the caller checks the message
        call(*arguments)
    return str(caught.value)


def test_prepared_test_split_is_encoded_like_raw_rows(config):
    data = prepare(config)
    X, y = raw_splits(config)["test"]
    assert X.columns.tolist() == ["age", "colour", "city", "born", "member"]
    (test,) = data.load_test()
    assert np.isfinite(test.X).all()
    predicted = predictor_of(data).predict(X)
    outputs = predictor_of(data).members[0].model.outputs(test.features)
    assert (predicted == data.classes[outputs.argmax(axis=1)]).all()
    assert (data.classes[test.y] == y).all()


def test_workers_load_prepared_table_without_encoder(config, monkeypatch):
    folder = prepare(config).folder
    monkeypatch.setattr(TableEncoder, "from_bytes", lambda packed: pytest.fail("it was unpacked"))
    data = prepare(config)
    assert data.folder == folder
    assert data.folds[0].train.features.shape == (140, data.folds[0].preprocessor.n_outputs)


def test_removed_encoder_is_reported(config):
    (prepare(config).folder / "encoder.npy").unlink()
    assert "the prepared data are damaged; remove this folder" in error_of(prepare, config)


def test_predictor_of_table_is_saved(config, tmp_path):
    predictor = predictor_of(prepare(config))
    predictor.save(tmp_path / "model.npz")
    again = load_predictor(tmp_path / "model.npz")
    frame = people()
    assert again.predict_proba(frame).tobytes() == predictor.predict_proba(frame).tobytes()
    assert again.feature_names_in_.tolist() == ["age", "colour", "city", "born", "member"]
    assert again.n_features_in_ == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame[sorted(frame.columns, reverse=True)],
        lambda frame: frame.assign(other="x").drop(columns=["name", "bought"]),
        lambda frame: frame.assign(colour=frame["colour"].astype("category"), age=frame["age"].astype("Int64")),
        lambda frame: frame.assign(member=frame["member"] == "yes", born=frame["born"].astype(str)),
        lambda frame: frame.assign(age=frame["age"].astype(object).where(frame["age"].notna(), "?")),
        lambda frame: frame[["age", "colour", "city", "born", "member"]].to_numpy(),
    ],
)
def test_equal_values_give_equal_predictions(config, change):
    predictor = predictor_of(prepare(config))
    assert predictor.predict_proba(change(people())).tobytes() == predictor.predict_proba(people()).tobytes()


def test_unseen_categories_are_ignored(config):
    predictor = predictor_of(prepare(config))
    unseen, other = (
        people().assign(city=city, colour=colour) for city, colour in (("Mars", "pink"), ("Venus", "gold"))
    )
    assert predictor.predict_proba(unseen).tobytes() == predictor.predict_proba(other).tobytes()
    assert np.isfinite(predictor.predict_proba(unseen)).all()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"age": "old"}, "X: row 0, column 'age': 'old' is not a number"),
        ({"born": "yesterday"}, "X: row 0, column 'born': 'yesterday' is not a date in the format ISO8601"),
        ({"member": "maybe"}, "X: row 0, column 'member': 'maybe' is not true or false"),
        ({"member": 7}, "X: row 0, column 'member': 7.0 is not true or false"),
        ({"age": np.inf}, "X[0, 0] (column 'age') is inf; a number between"),
        ({"age": 1j}, "X: column 'age' holds complex numbers; real numbers are required"),
    ],
)
def test_wrong_value_names_row_and_column(config, change, problem):
    assert refusal(predictor_of(prepare(config)).predict, people().assign(**change)).startswith(problem)


@pytest.mark.parametrize(
    ("X", "problem"),
    [
        (people().drop(columns=["age", "city"]), "X: the columns 'age', 'city' are missing and the columns 'name', "),
        (people().to_numpy(), "X has shape (200, 7); (n, 5) is required"),
        (people()[:0], "X has no rows; at least one is required"),
        (pd.concat([people(), people()[["age"]]], axis=1), "X: several columns have the name 'age'; one is required"),
    ],
)
def test_wrong_columns_are_refused(config, X, problem):
    assert refusal(predictor_of(prepare(config)).predict, X).startswith(problem)


def test_plain_numbers_have_no_encoder(config):
    people()[["age"]].fillna(0).assign(x=1.5, y=people()["bought"]).to_csv("people.csv", index=False)
    assert prepare(config).folds[0].preprocessor.encoder is None


@pytest.mark.parametrize(
    ("column", "is_noted"),
    [
        (people()["bought"], True),
        (people()["bought"].map({"yes": 3.5, "no": 1.5}), True),
        (people()["bought"].where(people()["bought"] == "yes"), True),
        (people()["bought"].map({"yes": 3.0, "no": 1.0}) + RNG.random(ROWS), True),
        (people()["bought"].map({"yes": 2.0, "no": 1.0}) + 2 * RNG.random(ROWS), False),
        (people()["age"], False),
    ],
)
def test_column_that_predicts_label_alone_is_noted(config, column, is_noted):
    people().assign(bought=column, label=people()["bought"]).to_csv("people.csv", index=False)
    note = (
        "column 'bought': predicts the label alone; if it is not known before the label, add to data.drop: ['bought']"
    )
    assert (note in prepare(config).notes) == is_noted


@pytest.mark.parametrize(("last", "is_noted"), [(2.0, True), (1.0, False)])
def test_equal_values_with_other_labels_predict_no_label(last, is_noted):
    y = np.repeat([0, 1], 20)
    dataset = Dataset("own", np.append(1.0 + y[:-1], last)[:, np.newaxis], y, columns=("x",))
    rows = np.roll(np.arange(40), 20)
    assert bool(describe_leaks(dataset, y, np.arange(2), rows)) == is_noted


def test_copy_of_target_is_noted(config):
    frame = people()[["age"]].fillna(0).assign(copy=RNG.normal(size=ROWS))
    frame.assign(y=frame["copy"] ** 3).to_csv("people.csv", index=False)
    assert any("column 'copy': predicts the label alone" in note for note in prepare(config).notes)


def test_encoder_is_stored_without_pickle(config):
    fold = prepare(config).folds[0]
    again = Preprocessor.from_arrays(fold.preprocessor.arrays())
    assert again.packed_encoder.dtype == np.uint8
    assert again.encoder.schema == fold.preprocessor.encoder.schema
