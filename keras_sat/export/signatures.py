"""What an exported classifier can be asked, as TensorFlow functions."""

import tensorflow as tf

from keras_sat import losses, preprocessing
from keras_sat.attacks import gradients
from keras_sat.models import classifier

NO_IMAGE = "image_bytes holds no JPEG, PNG, GIF, BMP or WebP image at index"


def trace(network, shape, names, how=None):
    """Returns the object to save, and the signatures: {name: concrete function}.

    Args:
        network: the Keras classifier, in the precision to export.
        shape: (height, width, channels) of its images; None for any.
        names: of the signatures, out of `SIGNATURES`.
        how: the `Preprocessing` of `serving_bytes`.

    Raises:
        ValueError: if the network takes no images of this shape.
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
    root = tf.train.Checkpoint()  # the interface of a reusable SavedModel
    root.__call__ = call
    root.variables = [variable.value for variable in network.variables]
    root.trainable_variables = [variable.value for variable in network.trainable_variables]
    root.weights = [variable.value for variable in network.weights]  # in the order of get_weights
    return root, traced


def classified(logits):
    """Returns the probabilities [batch, classes] and the likeliest classes int64 [batch] of logits.

    One logit z, of a network for two classes, stands for the probabilities 1 - sigmoid(z) and sigmoid(z).
    """
    logits = tf.concat([tf.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits
    return {"probabilities": tf.nn.softmax(logits), "classes": tf.argmax(logits, -1)}


def of_sigmoid(logits):
    """Returns half of a single logit z: the softmax of [-z / 2, z / 2] is sigmoid(z). Others stay as they are."""
    return logits / 2 if logits.shape[-1] == 1 else logits


def _logits(network, images, training=False):
    return tf.cast(network(tf.cast(images, tf.float32), training=training), tf.float32)


def _endpoints(network, shape, how):
    """Yields (name, function, specs of what it takes)."""

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
    """Returns pixels [batch, height, width, channels] of encoded images; names the indices of those that are none.

    They are those of evaluation: the `Preprocessing` makes them.
    """
    pixels, missing = preprocessing.apply_to_each(how, (image_bytes,), how.shape, tf.data.AUTOTUNE)
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(tf.size(missing), 0), [NO_IMAGE, missing], 1000)]):
        return tf.identity(pixels)
