import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat.training import with_ema_warmup

MOMENTUM, START, STEPS = 0.4, 3, 9
OPTIMIZERS = {
    "sgd": lambda **options: keras.optimizers.SGD(0.1, momentum=0.9, **options),
    "adamw": lambda **options: keras.optimizers.AdamW(0.1, **options),
}


def momentum_at(iterations):
    """The rule of DeepMind's and Wang et al.'s ema_update; Keras begins with the weights after the first step."""
    since = iterations - START
    return min(MOMENTUM, (1 + since) / (10 + since)) if since >= 0 and iterations else 0.0


def averaging(name):
    return with_ema_warmup(OPTIMIZERS[name](use_ema=True, ema_momentum=MOMENTUM, ema_overwrite_frequency=None), START)


def run(optimizer, weights, first, steps):
    """Takes steps with a compiled function; yields the weights after each, in float64."""
    apply = tf.function(lambda gradient: optimizer.apply([optimizer.scale_loss(gradient)], [weights]))
    optimizer.build([weights])
    for step in range(first, first + steps):
        apply(tf.constant(np.random.default_rng(step).normal(size=3), tf.float32))
        yield np.float64(weights)


def average(optimizer):
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return next(np.array(variable) for variable in inner.variables if "average" in variable.path)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("scaled", [False, True], ids=["", "loss scale"])
def test_the_average_is_that_of_the_formula(name, scaled):
    optimizer = averaging(name)
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    weights, expected = keras.Variable([1.0, -2.0, 3.0], name="kernel"), np.zeros(3)
    assert len({momentum_at(step) for step in range(STEPS)}) > 4
    for step, value in enumerate(run(optimizer, weights, 0, STEPS)):
        expected = momentum_at(step) * expected + (1 - momentum_at(step)) * value
        np.testing.assert_allclose(average(optimizer), expected, rtol=1e-5)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    optimizer.finalize_variable_values([weights])
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_there_is_no_further_state_and_a_run_can_be_taken_up(name):
    whole, weights = averaging(name), keras.Variable([1.0, -2.0, 3.0], name="kernel")
    *_, last = run(whole, weights, 0, STEPS)
    first, same = averaging(name), keras.Variable([1.0, -2.0, 3.0], name="kernel")
    list(run(first, same, 0, 5))
    again = keras.optimizers.deserialize(keras.optimizers.serialize(first))
    plain = OPTIMIZERS[name](use_ema=True)
    for optimizer in (again, plain):
        optimizer.build([same])
    assert len(plain.variables) == len(again.variables)
    for variable, value in zip(again.variables, first.variables):
        variable.assign(value)
    *_, taken_up = run(again, same, 5, STEPS - 5)
    np.testing.assert_array_equal(taken_up, last)
    np.testing.assert_array_equal(average(again), average(whole))


def test_refusals():
    with pytest.raises(ValueError, match="averages no weights: say use_ema=True"):
        with_ema_warmup(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="start_step must be >= 0. Received: -1"):
        with_ema_warmup(keras.optimizers.SGD(use_ema=True), -1)
    built = keras.optimizers.SGD(use_ema=True)
    built.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="was built before"):
        with_ema_warmup(built)
