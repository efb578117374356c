import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import APGD, PGD, LinfBall
from keras_sat.training import AdversarialModel, CycledMomentum, Free, OneCycle, StepDecay, Triangle, cost

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_step_decay_is_a_rise_then_tenths():
    rate = StepDecay(0.4, [30, 60, 90], warmup_steps=5, warmup_from=0.1)
    expected = {0: 0.1, 1: 0.16, 5: 0.4, 29: 0.4, 30: 0.04, 60: 0.004, 90: 0.0004, 99: 0.0004}
    for step, value in expected.items():
        assert float(rate(tf.constant(step))) == pytest.approx(value, rel=1e-5)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(rate))
    assert float(again(60)) == pytest.approx(0.004)


# Learning rates of torch 2.13: OneCycleLR(optimizer, max_lr, total_steps, pct_start) with its defaults, and
# CyclicLR(optimizer, base_lr=0, max_lr=0.2, step_size_up=7.5, step_size_down=7.5), read before each optimizer.step().
ONE_CYCLE = [
    (
        {"peak": 0.2, "total_steps": 40, "warmup_steps": 0.25 * 40},
        {0: 0.008, 1: 0.013789508405, 5: 0.120670225056, 9: 0.2, 10: 0.199452191728, 20: 0.140673901613}
        | {38: 0.000548608272, 39: 8e-07},
    ),
    (
        {"peak": 0.4, "total_steps": 100, "warmup_steps": 0.025 * 100},
        {0: 0.016, 1: 0.304, 2: 0.399974045098, 3: 0.399766446301, 50: 0.201611849288, 99: 1.6e-06},
    ),
    (
        {"peak": 0.2, "total_steps": 400, "warmup_steps": 0.025 * 400},
        {0: 0.008, 1: 0.013789508405, 8: 0.194210491595, 9: 0.2, 10: 0.199996755785, 200: 0.103221975903, 399: 8e-07},
    ),
]
TRIANGLE = {0: 0.0, 1: 0.026666666667, 7: 0.186666666667, 8: 0.186666666667, 12: 0.08, 14: 0.026666666667, 15: 0.0}


@pytest.mark.parametrize(("arguments", "expected"), ONE_CYCLE)
@pytest.mark.parametrize("changes", [1, 7])
def test_one_cycle_is_that_of_torch(arguments, expected, changes):
    """With a rate that changes once in each epoch, torch's scheduler takes one step in each epoch."""
    steps = {name: changes * arguments[name] for name in ("total_steps", "warmup_steps")}
    rate = OneCycle(arguments["peak"], **steps, steps_per_change=changes)
    for step, value in expected.items():
        for place in {changes * step, changes * step + changes - 1}:
            assert float(rate(tf.constant(place, tf.int64))) == pytest.approx(value, rel=2e-4 if value < 1e-5 else 2e-5)
    last = float(rate(changes * arguments["total_steps"] + 5))
    assert last == float(rate(changes * arguments["total_steps"] - 1))
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(rate))
    assert again.get_config() == rate.get_config()
    assert float(again(3)) == float(rate(3))


def test_triangle_is_that_of_torch():
    rate = Triangle(0.2, total_steps=15, top_step=7.5)
    for step, value in TRIANGLE.items():
        assert float(rate(tf.constant(step, tf.int64))) == pytest.approx(value, rel=1e-6)
    assert float(rate(16)) == 0
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(rate))
    assert float(again(8)) == float(rate(8))


# The momentum of torch 2.13 under the same schedulers, whose cycle_momentum is True by default.
MOMENTUM = [
    (
        OneCycle(0.2, 400, 0.025 * 400),
        (0.85, 0.95),
        {0: 0.95, 1: 0.946984631039, 8: 0.853015368961, 9: 0.85, 10: 0.850001622214, 200: 0.898389205605, 399: 0.95},
    ),
    (
        Triangle(0.2, total_steps=15, top_step=7.5),
        (0.8, 0.9),
        {0: 0.9, 1: 0.886666666667, 7: 0.806666666667, 8: 0.806666666667, 12: 0.86, 14: 0.886666666667, 15: 0.9},
    ),
]


@pytest.mark.parametrize(("schedule", "bounds", "expected"), MOMENTUM)
def test_the_momentum_cycles_as_that_of_torch(schedule, bounds, expected):
    momentum = CycledMomentum(schedule, *bounds)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(momentum))
    for step, value in expected.items():
        assert float(momentum(tf.constant(step, tf.int64))) == pytest.approx(value, rel=1e-6)
        assert float(again(step)) == float(momentum(step))


def test_phases_without_a_step():
    assert float(Triangle(0.2, 10, 0)(0)) == pytest.approx(0.2)
    assert float(Triangle(0.2, 10, 10)(9)) == pytest.approx(0.18)
    assert float(OneCycle(0.2, 10, 1)(0)) == pytest.approx(0.2)
    assert float(OneCycle(0.2, 10, 10)(9)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: Triangle(0.2, 15, 16), r"top_step must lie in 0..15, the total steps. Received: 16"),
        (lambda: Triangle(0, 15, 3), "peak must be positive"),
        (lambda: OneCycle(0.1, 0, 0), "total_steps must be an integer >= 1"),
        (lambda: OneCycle(0.1, 10, -1), "warmup_steps must lie in 0..10"),
        (lambda: CycledMomentum(StepDecay(0.1, [3]), 0.8, 0.9), "cycles with a OneCycle or Triangle"),
        (lambda: CycledMomentum(Triangle(0.1, 10, 2), 0.9, 0.8), "low <= high < 1. Received: 0.9 and 0.8"),
        (lambda: OneCycle(0.1, 10, 2, steps_per_change=3), "steps_per_change must divide total_steps, 10"),
    ],
)
def test_schedules_refuse(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule()


@pytest.mark.parametrize("objective", [None, Free(replays=1)], ids=str)
def test_the_scales_of_a_step_are_those_of_the_schedules(objective, tiny_model):
    options = {} if objective is None else {"objective": objective}
    schedules = {"epsilon_schedule": lambda step: 0.5, "step_size_schedule": lambda step: tf.constant(0.5)}
    trainer = AdversarialModel(tiny_model(), PGD(LinfBall(8), steps=2), **schedules, **options)
    trainer.compile("sgd", LOSS)
    trainer.step_size_factor.assign(0.5)
    for scales in (trainer._scales(), tf.function(trainer._scales)()):
        assert float(scales["epsilon_scale"]) == 0.5
        assert float(scales["step_size_scale"]) == 0.125
    with pytest.raises(ValueError, match="APGD-CE takes no schedules"):
        AdversarialModel(tiny_model(), APGD(LinfBall(8)), epsilon_schedule=lambda step: 0.5)


class Distance(AdversarialModel):
    """Records how far the images are moved: the largest change of a pixel in each step."""

    def build_record(self):
        self.moved = tf.Variable(tf.zeros([4]), trainable=False)

    def _adversarial(self, x, labels, seed):
        adversarial = super()._adversarial(x, labels, seed)
        moved = tf.reduce_max(tf.abs(adversarial - tf.cast(x, tf.float32)))
        self.moved.scatter_nd_update([[tf.cast(self.optimizer.iterations, tf.int32)]], [moved])
        return adversarial


def test_epsilon_and_step_size_change_in_a_traced_step(tiny_model, images, labels):
    images = np.clip(images, 20, 235)  # the bounds cut nothing off
    attack = PGD(LinfBall(8), steps=8, step_size=8.0, random_start=False)
    ramp = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 1.0)  # 0, 1/4, 2/4, 3/4
    trainer = Distance(tiny_model(), attack, epsilon_schedule=ramp)
    trainer.build_record()
    trainer.compile("sgd", LOSS)
    trainer.fit(images, labels, batch_size=8, epochs=4, verbose=0)
    np.testing.assert_allclose(trainer.moved, [0, 2, 4, 6], atol=1e-3)

    trainer = Distance(
        tiny_model(), PGD(LinfBall(8), steps=1, step_size=4.0, random_start=False), step_size_schedule=ramp
    )
    trainer.build_record()
    trainer.compile("sgd", LOSS)
    for _ in range(2):
        trainer.train_on_batch(images, labels)
    trainer.step_size_factor.assign(0.1)
    for _ in range(2):
        trainer.train_on_batch(images, labels)
    np.testing.assert_allclose(trainer.moved, [0, 1, 0.2, 0.3], atol=1e-3)


def test_cost_leaves_the_model_as_it_was(tiny_model, images, labels):
    model = tiny_model()
    before = model.get_weights()
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    estimate = cost(model, dataset, PGD(LinfBall(8), steps=1), steps=2)
    for one, other in zip(model.get_weights(), before):
        np.testing.assert_array_equal(one, other)
    assert estimate.images_per_second > 1
    assert estimate.seconds_per_epoch == pytest.approx(2 * 4 / estimate.images_per_second)
    assert estimate.memory > 50
    assert "images/s" in str(estimate)
    assert cost(model, dataset.repeat(), PGD(LinfBall(8), steps=1), steps=1).seconds_per_epoch is None


class Exhausted(keras.layers.Dropout):
    """Dropout that fails at its third call in training, as if the memory were full."""

    def build(self, input_shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs, training=False):
        if training:
            self.calls.assign_add(1.0)
            with tf.control_dependencies([tf.debugging.Assert(self.calls < 3, ["out of memory"])]):
                inputs = tf.identity(inputs)
        return super().call(inputs, training=training)


@pytest.mark.parametrize("layer", [keras.layers.Dropout, Exhausted])
def test_cost_gives_back_the_state_of_dropout_also_after_an_error(layer, tiny_model, images, labels):
    model = keras.Sequential([*tiny_model().layers[:-1], layer(0.5), keras.layers.Dense(4)])
    model.build((None, 8, 8, 3))
    before = [np.array(variable) for variable in model.variables]
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    fails = pytest.raises(tf.errors.InvalidArgumentError, match="out of memory")
    with fails if layer is Exhausted else contextlib.nullcontext():
        cost(model, dataset, PGD(LinfBall(8), steps=1))
    assert any("seed" in variable.path for variable in model.variables)
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)
