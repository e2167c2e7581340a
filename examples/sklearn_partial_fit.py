"""Search the regularization of scikit-learn's SGDClassifier, whose fitted arrays are the checkpoint."""

import io

import numpy as np
import optuna
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

import hpo

EPOCHS = 12
FITTED = ("coef_", "intercept_", "t_", "classes_")

digits = load_digits()
X_train, X_valid, y_train, y_valid = train_test_split(digits.data / 16, digits.target, random_state=0)


def pack(classifier: SGDClassifier, epoch: int) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, epoch=epoch, **{name: getattr(classifier, name) for name in FITTED})
    return buffer.getvalue()


def unpack(classifier: SGDClassifier, state: bytes) -> int:
    """Set the fitted attributes and return the epoch of a checkpoint."""
    with np.load(io.BytesIO(state), allow_pickle=False) as saved:
        for name in FITTED:
            setattr(classifier, name, saved[name])
        # scikit-learn counts the updates in a Python float.
        classifier.t_ = float(saved["t_"])
        return int(saved["epoch"])


def objective(trial: optuna.Trial) -> float:
    alpha = trial.suggest_float("alpha", 1e-6, 1e-1, log=True)
    # With an integer as random_state, each call of partial_fit shuffles alike.
    classifier = SGDClassifier(alpha=alpha, random_state=trial.user_attrs.get("seed", 0))
    state = hpo.load_checkpoint(trial)
    done = 0 if state is None else unpack(classifier, state)

    for epoch in range(done + 1, EPOCHS + 1):
        classifier.partial_fit(X_train, y_train, classes=np.unique(y_train))
        trial.report(classifier.score(X_valid, y_valid), epoch)
        hpo.save_checkpoint(trial, pack(classifier, epoch), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(classifier.score(X_valid, y_valid))


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=20)
    print("best:", study.best_params, study.best_value)
