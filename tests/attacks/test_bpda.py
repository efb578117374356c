import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_sat import evaluation
from keras_sat.attacks import PGD, LinfBall, bpda, value_and_gradient
from keras_sat.losses import margin

BALL = LinfBall(20)


def rounded(images):
    return tf.round(tf.cast(images, tf.float32) / 32) * 32


def jpeg(images):
    """Compresses and decompresses each image, outside TensorFlow."""

    def of_arrays(batch):
        files = [io.BytesIO() for _ in batch]
        for file, image in zip(files, batch):
            Image.fromarray(np.clip(image.round(), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=50)
        return np.stack([np.asarray(Image.open(file), np.float32) for file in files])

    return tf.ensure_shape(tf.numpy_function(of_arrays, [images], tf.float32), images.shape)


def test_values_are_those_of_forward_and_the_gradient_that_of_backward():
    x = tf.constant([[-1.3, 0.2, 5.6]])
    function = bpda(tf.round, lambda x: 0.1 * x**2)
    values, _, gradient = value_and_gradient(function, lambda _, z: tf.reduce_sum(z, -1), x, [0])
    np.testing.assert_array_equal(function(x), [[-1, 0, 6]])
    np.testing.assert_allclose(values, [5])
    np.testing.assert_allclose(gradient, 0.2 * x)
    np.testing.assert_array_equal(value_and_gradient(bpda(tf.round), lambda _, z: z[:, 2], x, [0])[2], [[0, 0, 1]])
    np.testing.assert_array_equal(bpda(tf.round)(np.array([[3]], np.uint8)), [[3.0]])


@pytest.mark.parametrize("defence", [rounded, jpeg])
def test_an_attack_sees_through_a_defence(defence, shared_model, images):
    labels = np.argmax(shared_model(defence(tf.cast(images, tf.float32))), -1)
    approximated = bpda(defence)
    for logits_fn in (
        lambda x: shared_model(approximated(x)),
        bpda(lambda x: shared_model(defence(tf.cast(x, tf.float32))), shared_model),  # of the network as a whole
    ):
        adversarial = PGD(BALL, steps=10, keep="worst")(logits_fn, images, labels)
        assert np.mean(margin(labels, logits_fn(adversarial))) > np.mean(margin(labels, logits_fn(images))) + 1e-3


def test_evaluate_and_audit_take_it(shared_model, images):
    labels = np.argmax(shared_model(rounded(images)), -1)
    with pytest.raises(ValueError, match=r"no gradient .* attacks.bpda"):
        PGD(BALL)(lambda x: shared_model(rounded(x)), images, labels)
    approximated = bpda(rounded)
    report = evaluation.evaluate(lambda x: shared_model(approximated(x)), (images, labels), PGD(BALL, steps=3))
    assert report["clean"].accuracy == 1
    audit = evaluation.audit(lambda x: shared_model(approximated(x)), (images, labels), BALL, steps=2, queries=5)
    assert audit["gradients"].outcome == "pass"


def test_shapes_that_differ_are_refused(images):
    with pytest.raises(ValueError, match=r"forward returns the shape \(8, 4, 4, 3\), and backward"):
        bpda(lambda x: x[:, ::2, ::2])(images)
