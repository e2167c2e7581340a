"""Contract of the models: a test class subclasses `ModelContract` for an implementation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from hpo.data.division.splits import Split
from hpo.data.metrics import METRICS
from hpo.data.task import Classification, Task
from hpo.models.base import Array, Model
from hpo.models.fitted import pack_model, unpack_model
from hpo.models.trainer import Epoch, Learner, Trainer

CLASSES = np.arange(3)
EPOCHS = 4


class OnStepError(Exception):
    """Error that a test raises after a step."""


def make_split(n: int = 60, features: int = 4, variants: int = 1, seed: int = 0) -> Split:
    """Return read-only data with a mean that depends on the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(CLASSES), n)
    X = rng.normal(size=(variants * n, features)) + np.tile(y, variants)[:, np.newaxis]
    split = Split(np.column_stack([X, np.ones(len(X))]).astype(np.float32), y)
    split.X.flags.writeable = split.y.flags.writeable = False
    return split


class ModelContract(ABC):
    """Requirements of `hpo.models.base.Model`, as pytest tests.

    A subclass implements `make_model`. Its name starts with ``Test``, so that pytest collects it.
    """

    @abstractmethod
    def make_model(self, train: Split, task: Task, classes: Array, rng: np.random.Generator) -> Model:
        """Return an untrained model. The hyperparameters are constant."""

    def make_trainer(self, train: Split | None = None, seed: int = 0) -> Trainer:
        """Return a training of `EPOCHS` epochs."""
        rng = np.random.default_rng(seed)
        model = self.make_model(train or make_split(), Classification(), CLASSES, rng)
        return Trainer([Learner(model, rng)], EPOCHS, METRICS["accuracy"], made_from=str(seed))

    def make_untrained(self, seed: int = 0) -> Model:
        """Return an untrained model for the data of `make_split`."""
        return self.make_model(make_split(), Classification(), CLASSES, np.random.default_rng(seed))

    def test_fit_epoch_returns_finite_loss(self) -> None:
        """Each epoch has a finite training loss, and the weights stay finite."""
        model = self.make_untrained()
        assert model.is_finite()
        for _ in range(EPOCHS):
            loss = model.fit_epoch(lambda: None)
            assert isinstance(loss, float)
            assert np.isfinite(loss)
        assert model.is_finite()

    def test_fit_epoch_calls_on_step(self) -> None:
        """Each epoch has the same number of steps, at least one."""
        model = self.make_untrained()
        steps: list[None] = []
        counts = []
        for _ in range(EPOCHS):
            before = len(steps)
            model.fit_epoch(lambda: steps.append(None))
            counts.append(len(steps) - before)
        assert min(counts) >= 1
        assert len(set(counts)) == 1

    def test_on_step_error_passes(self) -> None:
        """An exception of on_step ends the epoch, and a restored state makes the model usable again."""
        trainer = self.make_trainer()
        state = trainer.save()
        expected = _finish(trainer)
        trainer.restore(state)
        try:
            next(trainer.epochs(_raise))
        except OnStepError:
            pass
        else:
            raise AssertionError("the model suppressed the exception of on_step")
        assert trainer.epoch == 0
        trainer.restore(state)
        assert _finish(trainer) == expected

    def test_predict_returns_row_per_input(self) -> None:
        """The outputs are finite and have one row for each input, for any number of inputs."""
        model = self.make_untrained()
        model.fit_epoch(lambda: None)
        for n in (1, 7, 200):
            outputs = model.predict(make_split(n, seed=1).X)
            assert outputs.shape == (n, len(CLASSES))
            assert np.isfinite(outputs).all()

    def test_predict_does_not_change_training(self) -> None:
        """A training with predictions between the epochs gives the same results."""
        quiet, observed = self.make_trainer(), self.make_trainer()
        expected = _finish(quiet)
        epochs = []
        for epoch in observed.epochs():
            epochs.append(epoch)
            observed.scores([make_split(seed=1)])
        assert epochs == expected
        assert _packed(observed) == _packed(quiet)

    def test_predictions_do_not_depend_on_other_rows(self) -> None:
        """The predicted class of a row is the same in any set of rows."""
        model = self.make_untrained()
        model.fit_epoch(lambda: None)
        X = make_split(50, seed=1).X
        together = model.predict(X).argmax(axis=1)
        assert together.tolist() == [int(model.predict(X[i : i + 1]).argmax()) for i in range(len(X))]

    def test_state_dict_holds_copies(self) -> None:
        """The arrays of a state do not change when the training continues."""
        model = self.make_untrained()
        model.fit_epoch(lambda: None)
        state = model.state_dict()
        before = {name: array.copy() for name, array in state.items()}
        model.fit_epoch(lambda: None)
        assert all(np.array_equal(state[name], array) for name, array in before.items())

    def test_state_dict_restores_predictions(self) -> None:
        """A new model with the state of a trained model predicts the same, even from read-only arrays."""
        trained, restored = self.make_untrained(), self.make_untrained(seed=1)
        trained.fit_epoch(lambda: None)
        state = trained.state_dict()
        for array in state.values():
            array.flags.writeable = False
        restored.load_state_dict(state)
        X = make_split(seed=1).X
        assert np.array_equal(restored.predict(X), trained.predict(X))
        assert pack_model(restored.fitted()) == pack_model(trained.fitted())

    def test_restored_training_is_identical(self) -> None:
        """A training that resumes from a checkpoint after any epoch ends with the same bits."""
        for variants in (1, 2):
            train = make_split(variants=variants)
            whole = self.make_trainer(train)
            states, expected = [whole.save()], []
            for epoch in whole.epochs():
                expected.append(epoch)
                states.append(whole.save())
            for finished, state in enumerate(states):
                resumed = self.make_trainer(train)
                resumed.restore(state)
                assert resumed.epoch == finished
                assert _finish(resumed) == expected[finished:]
                assert _packed(resumed) == _packed(whole)

    def test_same_seed_gives_same_weights(self) -> None:
        """A training is a function of its arguments."""
        one, other = self.make_trainer(), self.make_trainer()
        assert _finish(one) == _finish(other)
        assert _packed(one) == _packed(other)

    def test_fitted_model_is_copy(self) -> None:
        """A fitted model does not change when the training continues."""
        model = self.make_untrained()
        model.fit_epoch(lambda: None)
        fitted = model.fitted()
        before = pack_model(fitted)
        model.fit_epoch(lambda: None)
        assert pack_model(fitted) == before

    def test_fitted_model_predicts_as_model(self) -> None:
        """The packed model has the accuracy of the model on inputs without the constant."""
        trainer = self.make_trainer()
        _finish(trainer)
        split = make_split(seed=1)
        (fitted,) = trainer.fitted()
        restored = unpack_model(pack_model(fitted))
        assert (restored.n_inputs, restored.n_outputs) == (split.features.shape[1], len(CLASSES))
        assert [METRICS["accuracy"].score(restored.outputs(split.features), split.y)] == trainer.scores([split])


def _finish(trainer: Trainer) -> Sequence[Epoch]:
    return list(trainer.epochs())


def _packed(trainer: Trainer) -> list[bytes]:
    return list(map(pack_model, trainer.fitted()))


def _raise() -> None:
    raise OnStepError
