"""Search the hyperparameters of XGBoost; the checkpoint is the booster in XGBoost's own format."""

import optuna
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

import hpo

ROUNDS = 30

X, y = load_breast_cancer(return_X_y=True)
X_train, X_valid, y_train, y_valid = train_test_split(X, y, random_state=0)
train, valid = xgboost.DMatrix(X_train, y_train), xgboost.DMatrix(X_valid)


# A booster does not hold the state of XGBoost's random generator: with `subsample` or `colsample_*`, a resumed trial
# draws other samples than an uninterrupted trial.
def objective(trial: optuna.Trial) -> float:
    params = {
        "objective": "binary:logistic",
        "eta": trial.suggest_float("eta", 0.01, 1.0, log=True),
        "max_depth": trial.suggest_int("max_depth", 1, 6),
        "lambda": trial.suggest_float("lambda", 1e-3, 10.0, log=True),
        "nthread": 1,
    }
    state = hpo.load_checkpoint(trial)
    booster = xgboost.Booster(params, [train], model_file=None if state is None else bytearray(state))

    for round_ in range(booster.num_boosted_rounds(), ROUNDS):
        booster.update(train, round_)
        trial.report(log_loss(y_valid, booster.predict(valid)), round_ + 1)
        hpo.save_checkpoint(trial, bytes(booster.save_raw("ubj")), round_ + 1)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(log_loss(y_valid, booster.predict(valid)))


if __name__ == "__main__":
    study = optuna.create_study()
    study.optimize(objective, n_trials=20)
    print("best:", study.best_params, study.best_value)
