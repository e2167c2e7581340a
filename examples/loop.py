"""Search the learning rate and the momentum of a NumPy training loop that resumes from checkpoints."""

import io

import numpy as np
import optuna

import hpo

EPOCHS = 20
BATCH_SIZE = 25

rng = np.random.default_rng(0)
X = rng.normal(size=(400, 8))
y = X @ rng.normal(size=8) + rng.normal(scale=0.1, size=400)
X_train, X_valid, y_train, y_valid = X[:300], X[300:], y[:300], y[300:]


def valid_loss(weights: np.ndarray) -> float:
    return float(np.mean((X_valid @ weights - y_valid) ** 2))


def pack(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def objective(trial: optuna.Trial) -> float:
    learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 0.9)
    weights, velocity, done = np.zeros(8), np.zeros(8), 0

    state = hpo.load_checkpoint(trial)
    if state is not None:
        with np.load(io.BytesIO(state), allow_pickle=False) as saved:
            weights, velocity, done = saved["weights"], saved["velocity"], int(saved["epoch"])

    for epoch in range(done + 1, EPOCHS + 1):
        # The order depends on the epoch only, so that a resumed trial needs no state of a generator.
        order = np.random.default_rng(epoch).permutation(len(X_train))
        for batch in order.reshape(-1, BATCH_SIZE):
            error = X_train[batch] @ weights - y_train[batch]
            velocity = momentum * velocity - learning_rate * X_train[batch].T @ error
            weights = weights + velocity
        trial.report(valid_loss(weights), epoch)
        hpo.save_checkpoint(trial, pack(weights=weights, velocity=velocity, epoch=np.array(epoch)), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return valid_loss(weights)


if __name__ == "__main__":
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=20)
    print("best:", study.best_params, study.best_value)
