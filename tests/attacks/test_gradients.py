import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import value_and_gradient
from keras_sat.attacks.gradients import averaged


def test_gradient_of_an_example_is_its_own(tiny_model, images, labels):
    model = tiny_model()
    images, labels = tf.cast(images, tf.float32), tf.constant(labels, tf.int32)
    values, outputs, gradients = value_and_gradient(model, losses.cross_entropy, images, labels)
    np.testing.assert_allclose(outputs, model(images), atol=1e-5)
    np.testing.assert_allclose(values, losses.cross_entropy(labels, outputs), rtol=1e-6)
    _, _, alone = value_and_gradient(model, losses.cross_entropy, images[2:3], labels[2:3])
    np.testing.assert_allclose(gradients[2], alone[0], rtol=1e-4, atol=1e-8)


def test_gradient_agrees_with_finite_differences(tiny_model, images, labels):
    model = tiny_model()
    images, labels = tf.cast(images[:1], tf.float32), tf.constant(labels[:1], tf.int32)
    _, _, gradients = value_and_gradient(model, losses.cross_entropy, images, labels)
    direction = np.random.default_rng(0).choice([-1.0, 1.0], images.shape).astype(np.float32)
    up, down = (losses.cross_entropy(labels, model(images + s * direction)) for s in (1, -1))
    np.testing.assert_allclose(np.sum(gradients * direction), (up - down)[0] / 2, rtol=1e-2)


def test_no_gradient_of_a_weight_is_computed(images, labels):
    weights, asked = tf.Variable(tf.random.normal((192, 4))), []

    @tf.custom_gradient
    def watched(x):
        return tf.identity(x), lambda upstream: asked.append("weights") or upstream

    def logits_fn(x):
        return tf.reshape(x, (8, 192)) @ watched(weights)

    gradients = value_and_gradient(logits_fn, losses.cross_entropy, tf.cast(images, tf.float32), labels)[2]
    assert np.any(gradients != 0)
    assert asked == []


@pytest.mark.parametrize("layer", [keras.layers.GaussianNoise(1.0, seed=0), lambda x, **_: x + random_like(x)])
def test_each_of_the_averaged_gradients_draws_anew(layer, images, labels):
    """So the standard deviation of their mean falls with the square root of their number."""
    weights = tf.random.stateless_normal([192, 4], (0, 0)) / 1000
    images = tf.cast(images, tf.float32)

    def logits_fn(x):
        return tf.reshape(layer(x, training=True), (-1, 192)) ** 2 @ weights

    @tf.function(autograph=False)
    def gradient(count):
        return averaged(logits_fn, losses.margin, images, labels, count)[2]

    one, many = (np.std([gradient(count) for _ in range(50)], axis=0).mean() for count in (1, 25))
    assert one > 0
    assert many / one == pytest.approx(1 / 5, rel=0.1)


def random_like(x):
    return tf.random.normal(tf.shape(x))


def test_refusals(images, labels):
    images = tf.cast(images, tf.float32)
    with pytest.raises(ValueError, match="no gradient"):
        value_and_gradient(lambda x: tf.ones((8, 4)), losses.cross_entropy, images, labels)
    with pytest.raises(ValueError, match=r"\[batch, classes\]"):
        value_and_gradient(lambda x: x, losses.cross_entropy, images, labels)
