"""Search the optimizer of a PyTorch net; the checkpoint holds model, optimizer, scheduler and generator."""

import io

import optuna
import torch
from sklearn.datasets import load_digits

import hpo

EPOCHS, BATCH_SIZE = 8, 100

digits = load_digits()
X_train, X_valid = torch.tensor(digits.data / 16, dtype=torch.float32).split([1200, 597])
y_train, y_valid = torch.tensor(digits.target).split([1200, 597])


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    return (model.eval()(X_valid).argmax(dim=1) == y_valid).float().mean().item()


def objective(trial: optuna.Trial) -> float:
    torch.manual_seed(trial.user_attrs.get("seed", 0))
    hidden, dropout = trial.suggest_int("hidden", 16, 64), torch.nn.Dropout(trial.suggest_float("dropout", 0.0, 0.5))
    model = torch.nn.Sequential(torch.nn.Linear(64, hidden), torch.nn.ReLU(), dropout, torch.nn.Linear(hidden, 10))
    optimizer = torch.optim.SGD(model.parameters(), trial.suggest_float("lr", 1e-2, 1.0, log=True), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    parts, done = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
    state = hpo.load_checkpoint(trial)
    if state is not None:
        saved = torch.load(io.BytesIO(state), weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
        done = saved["epoch"]

    for epoch in range(done + 1, EPOCHS + 1):
        model.train()
        for batch in torch.randperm(len(X_train)).split(BATCH_SIZE):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X_train[batch]), y_train[batch]).backward()
            optimizer.step()
        scheduler.step()

        trial.report(accuracy(model), epoch)
        states = {name: part.state_dict() for name, part in parts.items()}
        buffer = io.BytesIO()
        torch.save(states | {"rng": torch.get_rng_state(), "epoch": epoch}, buffer)
        hpo.save_checkpoint(trial, buffer.getvalue(), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy(model)


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_warmup_steps=2))
    study.optimize(objective, n_trials=12)
    print("best:", study.best_params, study.best_value)
