import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import agreement


def network(images, gain=1.0, offset=0.0):
    x = tf.reshape(images / 255 - 0.5, (-1, 192)) @ np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32)
    return gain * tf.nn.silu(x) + offset


@tf.custom_gradient
def backwards(x):
    return x, lambda upstream: -upstream


DIFFERENT = {
    "logits": (lambda x: network(x, gain=1.1), "logits that differ by 0.0[0-9]+ of their range"),
    "shape": (lambda x: network(x)[:, :3], r"logits of shape \(8, 3\) in place of \(8, 4\)"),
    "gradient": (lambda x: network(backwards(x)), "input gradients that differ by 2 of their length"),
    "no gradient": (lambda x: network(tf.stop_gradient(x)), "no input gradient"),
    "one NaN": (lambda x: network(x, offset=tf.constant([0.0, 0, 0, np.nan])), "logits that are NaN or infinite for"),
}


def test_the_same_network_agrees(images):
    assert agreement.difference(network, lambda x: network(x, gain=1 + 1e-6), images) is None
    nothing = {"logits_fn": lambda x: network(x) * np.nan, "copy": lambda x: network(x) * np.nan}
    assert agreement.difference(**nothing, images=images) is None  # other checks reject such a network


@pytest.mark.parametrize(("copy", "message"), DIFFERENT.values(), ids=DIFFERENT)
def test_another_network_does_not(copy, message, images):
    with pytest.warns(UserWarning, match=f"it is attacked itself.*its copy on paper has {message}"):
        assert not agreement.holds(network, copy, images, agreement.EXACT, "it", "on paper")


def test_saturated_logits_have_a_gradient_to_compare(images):
    """With logits a hundred times as large, the gradient of cross entropy is 0, so it could not show a wrong copy."""
    fault = agreement.difference(lambda x: network(x, 100.0), lambda x: network(backwards(x), 100.0), images)
    assert fault.startswith("input gradients")


def test_a_random_network_cannot_be_compared(images):
    def noisy(x):
        return network(x + tf.random.normal(tf.shape(x)))

    assert agreement.is_random(noisy, images)
    assert not agreement.is_random(network, images)
    with pytest.warns(UserWarning, match="its output is random"):
        assert not agreement.holds(noisy, noisy, images, agreement.EXACT, "it", "on paper")


def test_a_network_whose_logits_are_constant_says_nothing_of_its_copy(images):
    """If the last layer starts with zeros, every copy agrees at first, and may differ after the first step."""
    with pytest.warns(UserWarning, match="its logits do not change with the images yet"):
        assert not agreement.holds(lambda x: 0 * network(x), lambda x: 0 * x[:, 0, 0], images, agreement.LOW, "it", "")


def test_a_copy_that_fails_is_not_used(images):
    def fails(x):
        raise KeyError("mask")

    with pytest.warns(UserWarning, match="its copy on paper has an error: 'mask'"):
        assert not agreement.holds(network, fails, images, agreement.EXACT, "it", "on paper")


def test_one_logit_is_compared(images):
    """The logits are [-z, z]: with equal weights, their sum would always be 0."""
    fault = agreement.difference(lambda x: network(x)[:, :1], lambda x: network(backwards(x))[:, :1], images)
    assert fault.startswith("input gradients")
