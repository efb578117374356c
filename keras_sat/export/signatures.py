"""The signatures of an exported classifier, as TensorFlow functions."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sat import losses, preprocessing
from keras_sat.attacks import gradients
from keras_sat.models import classifier
from keras_sat.preprocessing import Preprocessing

NO_IMAGE = "image_bytes holds no JPEG, PNG, GIF, BMP or WebP image at index"


def trace(
    network: keras.Model,
    shape: tuple[int | None, int | None, int],
    names: Sequence[str],
    how: Preprocessing | None = None,
) -> tuple[tf.train.Checkpoint, dict[str, Any]]:
    """Returns the object to save, and the signatures as {name: concrete function}.

    Args:
        network: the Keras classifier, in the precision to export.
        shape: (height, width, channels) of its images; None for any height or width.
        names: names of the signatures to trace, from `SIGNATURES`.
        how: the `Preprocessing` of `serving_bytes`.

    Raises:
        ValueError: if the network does not accept images of this shape.
    """
    functions = {name: (function, specs) for name, function, specs in _endpoints(network, shape, how) if name in names}
    images = tf.TensorSpec((None, *shape), tf.float32, name="images")
    call = tf.function(lambda images, training=False: _logits(network, images, training), autograph=False)
    try:
        for training in (False, True):
            call.get_concrete_function(images, training)
        traced = {
            name: tf.function(function, autograph=False).get_concrete_function(*specs)
            for name, (function, specs) in functions.items()
        }
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        size = " x ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{network.name} takes no images of {size}: {str(error).splitlines()[0]}") from error
    root = tf.train.Checkpoint()  # with the attributes of a reusable SavedModel
    root.__call__ = call
    root.variables = [variable.value for variable in network.variables]
    root.trainable_variables = [variable.value for variable in network.trainable_variables]
    root.weights = [variable.value for variable in network.weights]  # in the order of get_weights
    return root, traced


def classified(logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns {"probabilities": float32 [batch, classes], "classes": the most likely class, int64 [batch]}.

    Args:
        logits: float32 [batch, classes]; or [batch, 1], one logit z for two classes. Then the probabilities are
            1 - sigmoid(z) and sigmoid(z).
    """
    logits = tf.concat([tf.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits
    return {"probabilities": tf.nn.softmax(logits), "classes": tf.argmax(logits, -1)}


def of_sigmoid(logits: tf.Tensor) -> tf.Tensor:
    """Returns z / 2 for a single logit z, and other logits unchanged.

    The losses of attacks interpret one logit z as the two logits [-z, z]. With z / 2, these are [-z / 2, z / 2], whose
    softmax is sigmoid(z), as in training.
    """
    return logits / 2 if logits.shape[-1] == 1 else logits


def _logits(network, images, training=False):
    return tf.cast(network(tf.cast(images, tf.float32), training=training), tf.float32)


def _endpoints(network, shape, how):
    """Yields (name, function, specs of its inputs)."""

    def classify(images):
        logits = _logits(network, images)
        return {"logits": logits, **classified(logits)}

    def classify_bytes(image_bytes):
        return classify(_decode(image_bytes, how))

    def features(images):
        return {"features": _logits(classifier.features(network), images)}

    def input_gradient(images, labels):
        loss, _, gradient = gradients.value_and_gradient(
            lambda images: of_sigmoid(_logits(network, images)), losses.cross_entropy, images, labels
        )
        return {"loss": loss, "gradient": gradient}

    images = tf.TensorSpec((None, *shape), tf.float32, name="images")
    yield "serving_default", classify, [images]
    yield "serving_uint8", classify, [tf.TensorSpec(images.shape, tf.uint8, name="images")]
    yield "serving_bytes", classify_bytes, [tf.TensorSpec((None,), tf.string, name="image_bytes")]
    yield "features", features, [images]
    yield "input_gradient", input_gradient, [images, tf.TensorSpec((None,), tf.int64, name="labels")]


def _decode(image_bytes, how):
    """Returns the pixels [batch, height, width, channels] of encoded images, the same as in an evaluation.

    The operation fails with InvalidArgumentError, which names the indices of the files that are not images.
    """
    pixels, missing = preprocessing.apply_to_each(how, (image_bytes,), how.shape, tf.data.AUTOTUNE)
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(tf.size(missing), 0), [NO_IMAGE, missing], 1000)]):
        return tf.identity(pixels)
