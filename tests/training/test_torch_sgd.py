import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat.training import CycledMomentum, OneCycle, TorchSGD, Triangle, with_ema_warmup

GRADIENTS = np.random.default_rng(0).normal(size=(8, 3))
RATES = [0.4, 0.4, 0.04, 0.04, 0.2, 0.3, 0.01, 0.01]


# RATES, as a function of the step
SCHEDULE = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3, 4, 5], [0.4, 0.04, 0.2, 0.3, 0.01])


def torchs(rates, momenta, nesterov):
    """torch.optim.SGD in float64: buffer = momentum buffer + g; w -= rate (g + momentum buffer | buffer)."""
    weights, buffer = np.zeros(3), np.zeros(3)
    for gradient, rate, momentum in zip(GRADIENTS, rates, momenta):
        buffer = momentum * buffer + gradient
        weights = weights - rate * (gradient + momentum * buffer if nesterov else buffer)
    return weights


def ours(optimizer):
    variable = keras.Variable(np.zeros(3, np.float32))
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
    for gradient in GRADIENTS:
        step(tf.constant(gradient, tf.float32))
    return variable.numpy()


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_torch_where_the_rate_changes(nesterov):
    expected = torchs(RATES, [0.9] * 8, nesterov)
    np.testing.assert_allclose(ours(TorchSGD(SCHEDULE, nesterov=nesterov)), expected, rtol=1e-5)
    kerass = ours(keras.optimizers.SGD(SCHEDULE, momentum=0.9, nesterov=nesterov))
    assert np.abs(kerass - expected).max() > 0.1


@pytest.mark.parametrize("schedule", [OneCycle(0.4, 8, 3), Triangle(0.4, 8, 3)], ids=["onecycle", "triangle"])
def test_a_momentum_that_cycles(schedule):
    optimizer = TorchSGD(schedule, nesterov=True, cycle=CycledMomentum(schedule, 0.5, 0.95))
    rates, momenta = ([float(function(step)) for step in range(8)] for function in (schedule, optimizer.cycle))
    assert (min(momenta), max(momenta)) == pytest.approx((0.5, 0.95), abs=0.06)
    expected = torchs(rates, momenta, nesterov=True)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    for one in (optimizer, again):
        np.testing.assert_allclose(ours(one), expected, rtol=1e-5)


def test_averaged_weights_begin_late():
    optimizer = with_ema_warmup(TorchSGD(SCHEDULE, use_ema=True, ema_momentum=0.9), 8)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    np.testing.assert_array_equal(ours(again), ours(TorchSGD(SCHEDULE)))


@pytest.mark.parametrize("momentum", [0.0, -0.5, 1.5, "x", None])
def test_momenta_that_there_are_not(momentum):
    with pytest.raises(ValueError, match="momentum must be a float in 0..1, not 0"):
        TorchSGD(0.1, momentum=momentum)
