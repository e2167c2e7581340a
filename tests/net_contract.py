"""Requirements of the net in each backend. A test class subclasses `NetContract` for a backend."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import make_net_trainer, make_split, net_weights, score, weight_bytes

from hpo.data.metrics import METRICS
from hpo.models.base import model_type
from hpo.models.nets.hyperparameters import Hyperparameters
from hpo.models.trainer import DivergenceError
from hpo.testing.models import ModelContract

HYPERPARAMETERS = {
    "learning_rate": 0.1,
    "regularization": 1e-3,
    "hidden_size": 5,
    "epochs": 4,
    "batch_size": 16,
    "momentum": 0.9,
    "learning_rate_decay": 0.9,
    "dropout": 0.3,
    "whitening": 0.5,
    "label_smoothing": 0.1,
}


class NetContract(ModelContract):
    backend: str

    def make_model(self, train, task, classes, rng):
        hyperparameters = Hyperparameters(backend=self.backend, **HYPERPARAMETERS)
        return model_type(self.backend).build(hyperparameters, train, task, classes, rng)

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        finished=st.integers(0, 5),
        momentum=st.sampled_from([0.0, 0.9]),
        learning_rate_decay=st.sampled_from([1.0, 0.9]),
        schedule=st.sampled_from(["constant", "cosine"]),
        optimizer=st.sampled_from(["sgd", "adam"]),
        keep=st.sampled_from(["last", "best"]),
        hidden_layers=st.integers(1, 3),
        batch_size=st.sampled_from([1, 7, 16, 50, 200]),
        dropout=st.sampled_from([0.0, 0.3]),
        label_smoothing=st.sampled_from([0.0, 0.1]),
        whitening=st.sampled_from([0.0, 0.5]),
        input_scale=st.sampled_from([1.0, 0.5]),
        variants=st.integers(1, 3),
        seed=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 1000)),
    )
    def test_restored_training_gives_same_bits(self, finished, seed, variants, **hyperparameters):
        hyperparameters |= {"split": make_split(variants=variants), "backend": self.backend}
        hyperparameters |= {"validation": make_split(n=9, seed=1)}
        whole = make_net_trainer(epochs=5, seed=seed, **hyperparameters)
        expected = list(whole.epochs())

        interrupted = make_net_trainer(epochs=5, seed=seed, **hyperparameters)
        epochs = interrupted.epochs()
        for _ in range(finished):
            next(epochs)
        state = interrupted.save()
        next(epochs, None)

        resumed = make_net_trainer(epochs=5, seed=seed, **hyperparameters)
        resumed.restore(state)
        assert resumed.epoch == finished
        assert list(resumed.epochs()) == expected[finished:]
        assert weight_bytes(resumed) == weight_bytes(whole)
        assert resumed.kept_scores([make_split(seed=1)]) == whole.kept_scores([make_split(seed=1)])

    def test_divergence_raises_at_its_epoch(self):
        trainer = make_net_trainer(learning_rate=1e6, epochs=50, backend=self.backend)
        with pytest.raises(DivergenceError, match=r"epoch \d: the loss or a weight is not finite"):
            list(trainer.epochs())
        assert trainer.epoch < 9

    def test_overflow_in_last_step_is_divergence(self):
        split = make_split(n=16)
        trainer = make_net_trainer(split, learning_rate=1e38, regularization=100.0, hidden_size=1, backend=self.backend)
        with pytest.raises(DivergenceError, match="loss inf"):
            next(trainer.epochs())
        assert 0 <= score(trainer, split) <= 1

    @settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        whitening=st.sampled_from([0.0, 0.5, 1.0]),
        input_scale=st.sampled_from([1.0, 0.3]),
        hidden_layers=st.integers(1, 3),
        seed=st.integers(0, 1000),
    )
    def test_weights_predict_from_unscaled_inputs(self, seed, **hyperparameters):
        split, unseen = make_split(seed=seed, variants=2), make_split(seed=seed + 1)
        trainer = make_net_trainer(split, dropout=0.2, backend=self.backend, **hyperparameters)
        list(trainer.epochs())
        (net,) = trainer.fitted()
        assert score(trainer, unseen) == METRICS["accuracy"].score(net.outputs(unseen.X[:, :-1]), unseen.y)

    def test_training_accepts_read_only_split(self):
        split = make_split(variants=2)
        split.X.flags.writeable = False
        trainer = make_net_trainer(split, whitening=0.5, dropout=0.5, backend=self.backend)
        list(trainer.epochs())
        trainer.scores([split])

    def test_seed_determines_weights(self):
        trainers = [make_net_trainer(seed=seed, backend=self.backend) for seed in ((1, 2), (1, 2), (1, 3), (2, 2))]
        for trainer in trainers:
            list(trainer.epochs())
        first, again, other_trial, other_study = map(weight_bytes, trainers)
        assert first == again
        assert len({first, other_trial, other_study}) == 3

    def test_weights_have_layer_shapes(self):
        trainer = make_net_trainer(hidden_layers=2, backend=self.backend)
        before = weight_bytes(trainer)
        for W, b in net_weights(trainer):
            W[...], b[...] = 0, 1
        assert weight_bytes(trainer) == before
        assert [W.shape for W, _ in net_weights(trainer)] == [(4, 5), (5, 5), (5, 3)]
        assert [b.shape for _, b in net_weights(trainer)] == [(5,), (5,), (3,)]
