"""Estimators as models: growth, outputs, checkpoints and storage."""

import io
import json
import zipfile

import numpy as np
import pytest
from damage import FORGERIES, forged
from estimators import CLASSIFIERS, GROWING
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from hpo.data.division.splits import Split
from hpo.data.metrics import probabilities
from hpo.data.task import Classification, Regression
from hpo.models.base import RefusalError
from hpo.models.estimators import model as estimator_model
from hpo.models.estimators.budget import budget_of
from hpo.models.estimators.fitted import FittedEstimator, dump, load
from hpo.models.estimators.model import EstimatorModel
from hpo.models.fitted import pack_model, unpack_model
from hpo.testing.models import CLASSES, make_split

STEPS = 12


def make_model(name, split=None, stops=None, classes=CLASSES):
    return EstimatorModel(CLASSIFIERS[name](STEPS, 3), split or make_split(), Classification(), classes, stops)


def train(model, steps=STEPS):
    for _ in range(steps):
        model.fit_epoch(lambda: None)
    return model


def fit_plainly(name, split):
    return CLASSIFIERS[name](STEPS, 3).fit(split.features, split.y)


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("stops", [None, (2, 5)])
def test_grown_ensemble_equals_plain_fit(name, stops):
    split = make_split()
    grown = train(make_model(name, stops=stops)).fitted().estimator
    X = make_split(seed=1).features
    assert np.array_equal(grown.predict_proba(X), fit_plainly(name, split).predict_proba(X))


def test_ensemble_grows_at_stops_only():
    model = make_model("forest", stops=(2, 5))
    sizes = [len(getattr(train(model, 1).fitted().estimator, "estimators_", [])) for _ in range(STEPS)]
    assert sizes == [0, 2, 2, 2, 5, 5, 5, 5, 5, 5, 5, STEPS]


def test_each_pass_has_another_order(monkeypatch):
    model, seeds = make_model("linear"), []
    monkeypatch.setattr(SGDClassifier, "partial_fit", lambda self, *_, **__: seeds.append(self.random_state))
    monkeypatch.setattr(EstimatorModel, "_compute_loss", lambda _: 0.0)
    train(model)
    assert len(set(seeds)) == STEPS


@pytest.mark.parametrize(
    ("estimator", "steps"),
    [
        (HistGradientBoostingClassifier(max_iter=7, early_stopping=False), 7),
        (HistGradientBoostingClassifier(max_iter=7, early_stopping=True), 1),
        (RandomForestClassifier(9), 9),
        (SGDClassifier(max_iter=5), 5),
        (SGDClassifier(max_iter=5, early_stopping=True), 1),
        (SGDClassifier(max_iter=5, class_weight="balanced"), 1),
        (MLPClassifier(max_iter=5), 5),
        (MLPClassifier(max_iter=5, solver="lbfgs"), 1),
        (LogisticRegression(max_iter=50), 1),
        (CLASSIFIERS["boosting"](6, 0), 6),
        (CLASSIFIERS["boosting"](6, 0).set_params(n_iter_no_change=3), 1),
    ],
)
def test_steps(estimator, steps):
    assert budget_of(estimator).steps == steps


@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
def test_other_packages_have_one_step(name):
    assert budget_of(CLASSIFIERS[name](6, 0)).steps == 1


def test_variants_are_rows():
    split = make_split(variants=2)
    model = train(make_model("one step", split), 1)
    expected = LogisticRegression(random_state=3).fit(split.X[:, :-1].astype(float), np.tile(split.y, 2))
    assert np.array_equal(model.fitted().estimator.coef_, expected.coef_)


def test_outputs_are_logarithms_of_probabilities():
    split = make_split()
    outputs = train(make_model("forest")).predict(split.X)
    assert np.allclose(probabilities(outputs), fit_plainly("forest", split).predict_proba(split.features), atol=1e-12)


@pytest.mark.parametrize("shape", ["ovr", "ovo"])
@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_largest_decision_is_predicted_class(shape, n_classes):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = rng.integers(0, n_classes, len(X))
    fitted = FittedEstimator(SVC(gamma=3, decision_function_shape=shape).fit(X, y), 2, n_classes)
    outputs = fitted.outputs(X.astype(np.float32))
    assert outputs.shape == (len(X), n_classes)
    assert np.array_equal(outputs.argmax(axis=1), fitted.estimator.predict(X.astype(np.float32).astype(float)))


@pytest.mark.parametrize("name", ["forest", "linear", "one step"])
def test_class_without_training_rows_has_lowest_output(name):
    split = make_split()
    rows = split.y != 1
    model = train(make_model(name, Split(split.X[rows], split.y[rows])))
    outputs = model.predict(split.X)
    assert outputs.shape == (len(split.y), len(CLASSES))
    assert np.isfinite(outputs).all()
    assert 1 not in outputs.argmax(axis=1)


def test_number_is_single_output():
    split = make_split()
    model = EstimatorModel(Ridge(), Split(split.X, split.y.astype(float)), Regression(), np.empty(0))
    train(model, 1)
    X = split.features.astype(float)
    assert np.array_equal(model.predict(split.X)[:, 0], Ridge().fit(X, split.y).predict(X))


def test_refused_data_are_one_line():
    split = make_split()
    with pytest.raises(RefusalError, match=r"^SVC: .*classes[^\n]*$"):
        train(make_model("no probabilities", Split(split.X, np.zeros_like(split.y))), 1)


def test_refused_prediction_is_one_line():
    split = make_split()
    estimator = KNeighborsClassifier(len(split.y) + 1)
    model = EstimatorModel(estimator, split, Classification(), CLASSES)
    with pytest.raises(RefusalError, match=r"^KNeighborsClassifier: Expected n_neighbors <= n_samples_fit[^\n]*$"):
        train(model, 1)


def test_balanced_classes_are_trained():
    estimator = SGDClassifier(class_weight="balanced", random_state=0)
    model = EstimatorModel(estimator, make_split(), Classification(), CLASSES)
    assert np.isfinite(train(model, 1).predict(make_split().X)).all()


def test_large_state_is_repeated(monkeypatch):
    monkeypatch.setattr(estimator_model, "MAX_STATE_BYTES", 0)
    interrupted, resumed, whole = (make_model("forest", stops=(2, 5)) for _ in range(3))
    state = train(interrupted, 7).state_dict()
    assert "estimator" not in state
    resumed.load_state_dict(state)
    assert pack_model(train(resumed, STEPS - 7).fitted()) == pack_model(train(whole).fitted())


@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_packed_model_predicts_same(name):
    fitted = train(make_model(name)).fitted()
    unpacked = unpack_model(pack_model(fitted))
    X = make_split(seed=1).features
    assert np.array_equal(unpacked.outputs(X), fitted.outputs(X))
    assert (unpacked.n_inputs, unpacked.n_outputs) == (4, 3)
    assert pack_model(unpacked) == pack_model(fitted)


def test_model_of_other_package_is_refused():
    packed = dump(Foreign())
    with pytest.raises(ValueError, match=r"needs estimators_user\.Foreign; .*'estimators_user' \(--allow-import"):
        load(packed)


class Foreign:
    """Class of a package that is not trusted."""

    def __init__(self):
        self.value = 1


Foreign.__module__ = "estimators_user"


@pytest.mark.parametrize(
    ("module", "name"),
    [("sklearn.datasets._base", "urlretrieve"), ("sklearn.utils._testing", "_delete_folder"), ("os", "system")],
)
def test_function_is_refused(module, name):
    with pytest.raises(ValueError, match="it needs"):
        load(with_function(module, name))


def with_function(module, name):
    """Return an archive that names a function as its object."""
    packed = io.BytesIO()
    schema = {"__class__": name, "__module__": module, "__loader__": "FunctionNode", "content": {}, "__id__": 1}
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema | {"protocol": 2, "_skops_version": "0"}))
    return packed.getvalue()


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_archive_is_refused(forgery):
    packed = dump(Ridge().fit([[0.0], [1.0]], [0.0, 1.0]))
    with pytest.raises(ValueError, match="not an estimator"):
        load(forged(packed, forgery))


@pytest.mark.parametrize("damaged", [b"", b"PK", b"no archive", dump(Ridge())[:200]])
def test_damaged_bytes_are_refused(damaged):
    with pytest.raises(ValueError, match="not an estimator"):
        load(damaged)
