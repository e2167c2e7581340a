"""Estimators with each budget."""

import pytest
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

# Small fits are slow with several threads on a busy machine.
threadpool_limits(1)

# Each takes the number of steps and the seed.
CLASSIFIERS = {
    "histogram boosting": lambda steps, seed: HistGradientBoostingClassifier(
        max_iter=steps, early_stopping=False, random_state=seed
    ),
    "forest": lambda steps, seed: RandomForestClassifier(steps, random_state=seed),
    "extra trees": lambda steps, seed: ExtraTreesClassifier(steps, random_state=seed),
    "bagging": lambda steps, seed: BaggingClassifier(n_estimators=steps, random_state=seed),
    "boosting": lambda steps, seed: GradientBoostingClassifier(n_estimators=steps, subsample=0.5, random_state=seed),
    "linear": lambda steps, seed: SGDClassifier(max_iter=steps, random_state=seed),
    "net": lambda steps, seed: MLPClassifier((5,), max_iter=steps, random_state=seed),
    "one step": lambda _, seed: LogisticRegression(random_state=seed),
    "no probabilities": lambda _, seed: SVC(random_state=seed),
    "lightgbm": lambda steps, seed: pytest.importorskip("lightgbm").LGBMClassifier(
        n_estimators=steps, n_jobs=1, random_state=seed, verbose=-1
    ),
    "xgboost": lambda steps, seed: pytest.importorskip("xgboost").XGBClassifier(
        n_estimators=steps, n_jobs=1, random_state=seed
    ),
}
GROWING = ["histogram boosting", "forest", "extra trees", "bagging", "boosting"]
