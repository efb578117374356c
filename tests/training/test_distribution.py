import functools
import json
import pathlib
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, CycledMomentum, TorchSGD, Triangle, distribution

WORKER = pathlib.Path(__file__).with_name("worker.py")
FROM_IMAGE = PGD(LinfBall(8), steps=2, random_start=False)


def test_strategies(monkeypatch):
    assert distribution.strategy("none").num_replicas_in_sync == 1
    assert distribution.strategy("auto").num_replicas_in_sync == 1  # no GPU
    assert isinstance(distribution.strategy("mirrored"), tf.distribute.MirroredStrategy)
    assert distribution.strategy("mirrored").num_replicas_in_sync == 2  # the tests' two logical devices
    assert distribution.strategy("mirrored") is distribution.strategy("mirrored")
    with pytest.raises(ValueError, match="auto, none, mirrored, multiworker, tpu.*tpu_pod"):
        distribution.strategy("tpu_pod")
    with pytest.raises(ValueError, match="TF_CONFIG"):
        distribution.strategy("multiworker")
    monkeypatch.setenv("TF_CONFIG", '{"cluster')
    with pytest.raises(ValueError, match="TF_CONFIG must be as in .*Received: "):
        distribution.strategy("auto")


@pytest.fixture
def run_workers(tmp_path):
    """Returns a function that runs workers in parallel, and returns the exit status and standard error of each."""
    process = subprocess.Popen([sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    too_long = threading.Timer(300, process.kill)
    too_long.start()

    def run(*tasks):
        process.stdin.write("\t".join([str(tmp_path), *(",".join(map(str, task)) for task in tasks)]) + "\n")
        process.stdin.flush()
        statuses = json.loads(process.stdout.readline())
        return [(status, (tmp_path / f"{task}.txt").read_text()) for status, (task, *_) in zip(statuses, tasks)]

    yield run
    process.communicate(timeout=60)
    too_long.cancel()


def test_two_workers_of_which_one_is_killed_equal_one_device(free_ports, run_workers, tmp_path):
    """Two processes on loopback give the loss, metrics and weights of one device, with the same global batch size."""
    ports = free_ports(2)
    (status, error), (killed, _) = run_workers((0, 3, *ports), (1, 3, *ports))
    assert (status, killed) == (1, -9)
    assert "ConnectionError: Another worker has ended" in error
    assert {path.name for path in (tmp_path / "checkpoints").glob("*.npz")} == {"step-2.npz"}

    ports = free_ports(2)
    for status, error in run_workers(("alone", 0), (0, 0, *ports), (1, 0, *ports)):
        assert status == 0, error
    alone, *workers = (json.loads((tmp_path / f"{task}.json").read_text()) for task in ("alone", 0, 1))
    assert [record["replicas"] for record in (alone, *workers)] == [1, 2, 2]
    for worker in workers:
        for ours, theirs in zip(worker["weights"], alone["weights"]):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        for name, values in alone["history"].items():
            assert worker["history"][name][-1] == pytest.approx(values[-1], rel=1e-4)  # of a whole epoch
        assert worker["evaluated"]["robust_accuracy"] == pytest.approx(alone["evaluated"]["robust_accuracy"])
        assert worker["evaluated"]["accuracy"] == pytest.approx(alone["evaluated"]["accuracy"])
    assert workers[0]["weights"] == workers[1]["weights"]
    for worker in workers:
        assert worker["probes"] == [3, 6, 9]
        assert worker["best"] == workers[0]["best"]
    assert {path.name for path in (tmp_path / "checkpoints").glob("*.npz")} == {"step-9.npz", "step-10.npz"}
    assert (tmp_path / "checkpoints.weights.h5").exists()


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(3)
    images, labels = rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8), rng.integers(0, 4, 40)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)


def trained(strategy, model, batches, optimizer=None, attack=FROM_IMAGE, **options):
    with distribution.strategy(strategy).scope():
        trainer = AdversarialModel(model(), attack)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(optimizer() if optimizer else keras.optimizers.SGD(0.05), loss, metrics=["accuracy"], **options)
    history = trainer.fit(batches, epochs=1, shuffle=False, verbose=0).history
    return trainer, np.concatenate([np.ravel(weight) for weight in trainer.classifier.get_weights()]), history


def sgd():
    return keras.optimizers.SGD(0.05)


def torch_sgd():
    rate = Triangle(0.05, 5, 2)
    return TorchSGD(rate, nesterov=True, cycle=CycledMomentum(rate, 0.8, 0.9))


@pytest.fixture(scope="module")
def on_one_device(tiny_model, batches):
    """Returns a function that trains on one device: (weights, history). It trains once for each optimizer."""

    @functools.cache
    def train(optimizer):
        return trained("none", tiny_model, batches, optimizer, jit_compile=False)[1:]

    return train


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (sgd, {}),
        (lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.1), {}),
        (lambda: keras.optimizers.SGD(0.5, clipnorm=0.1), {}),
        (lambda: keras.optimizers.SGD(0.5, clipvalue=0.01), {}),
        (sgd, {"steps_per_execution": 5}),
        (sgd, {"jit_compile": True}),
        (torch_sgd, {}),
        (lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=None), {}),
    ],
    ids=["plain", "global_clipnorm", "clipnorm", "clipvalue", "steps_per_execution", "jit_compile", "torch_sgd", "ema"],
)
def test_two_replicas_equal_one(optimizer, options, tiny_model, batches, on_one_device):
    one, alone = on_one_device(optimizer)
    _, two, mirrored = trained("mirrored", tiny_model, batches, optimizer, **options)
    np.testing.assert_allclose(two, one, atol=1e-5 if "jit_compile" not in options else 1e-3)
    assert mirrored["adversarial_accuracy"] == pytest.approx(alone["adversarial_accuracy"])


def test_the_weight_penalty_is_that_of_one_device(tiny_model, batches):
    def penalised():
        model = tiny_model()
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.regularizer = keras.regularizers.L2(0.1)
        return model

    _, one, alone = trained("none", penalised, batches)
    _, two, mirrored = trained("mirrored", penalised, batches)
    np.testing.assert_allclose(two, one, atol=1e-5)
    np.testing.assert_allclose(mirrored["loss"], alone["loss"], rtol=1e-5)


def test_each_replica_draws_noise_of_its_own(tiny_model, images, labels):
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        trainer = AdversarialModel(tiny_model(), PGD(LinfBall(8), steps=1))
        trainer.compile("sgd", "mse")
    x, y = tf.constant(images), tf.constant(labels, tf.int32)

    @tf.function
    def start(step):
        return strategy.run(lambda: trainer._adversarial(x, y, trainer._replica_seed(step)))

    first, again, later = (
        [one.numpy() for one in strategy.experimental_local_results(start(tf.constant(step)))] for step in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.mean(first[0] != first[1]) > 0.5
    assert np.mean(first[0] != later[0]) > 0.5


def test_an_overflow_on_one_replica_skips_the_step_on_all():
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        variable = keras.Variable(np.ones(3, np.float32))
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=4.0)
        optimizer.build([variable])

    @tf.function
    def step(bad):
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.where(number == bad, tf.constant(float("inf")), 1.0) * tf.ones(3)
            optimizer.apply(distribution.clip_summed_gradients(optimizer, [gradient]), [variable])

        strategy.run(replica)

    for bad in (0, 1):
        step(tf.constant(bad))
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.ones(3))
    assert keras.ops.convert_to_numpy(optimizer.dynamic_scale) == 1.0  # halved twice
    step(tf.constant(2))  # no overflow
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), -np.ones(3))


def test_clipping_is_of_unscaled_gradients():
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(1.0, global_clipnorm=0.5), initial_scale=8.0
        )
        optimizer.build([keras.Variable(np.zeros(4, np.float32))])
    run = tf.function(lambda: strategy.run(lambda: distribution.clip_summed_gradients(optimizer, [8 * tf.ones(4)])[0]))
    for gradient in strategy.experimental_local_results(run()):
        np.testing.assert_allclose(np.linalg.norm(2 * gradient / 8), 0.5, rtol=1e-5)


def test_a_last_batch_of_one_image(tiny_model, batches):
    images, labels = next(iter(batches.unbatch().batch(9)))
    few = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)  # one replica gets none of the last batch
    trainers = [trained(name, tiny_model, batches)[0] for name in ("none", "mirrored")]
    alone, mirrored = (trainer.evaluate(few, verbose=0, return_dict=True) for trainer in trainers)
    for name in ("accuracy", "robust_accuracy"):
        assert mirrored[name] == pytest.approx(alone[name])


def test_what_would_be_wrong_is_refused(tiny_model):
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.BatchNormalization(), keras.layers.Flatten()])
        trainer = AdversarialModel(model, FROM_IMAGE)
        with pytest.raises(ValueError, match="synchronized = True for all 1"):
            trainer.compile("sgd", "mse")
        trainer = AdversarialModel(tiny_model(), FROM_IMAGE)
        for option in ({"gradient_accumulation_steps": 2}, {"use_ema": True, "ema_overwrite_frequency": 5}):
            with pytest.raises(ValueError, match="Keras cannot run"):
                trainer.compile(keras.optimizers.SGD(0.1, **option), "mse")


def test_a_batch_norm_inside_a_layer_is_checked_too():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.parts = [keras.layers.BatchNormalization(name="inner")]

        def call(self, inputs):
            return self.parts[0](inputs)

    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.Sequential([Block()])])
    with pytest.raises(ValueError, match="for all 1, such as inner"):
        distribution.check(model, keras.optimizers.SGD(), strategy)
