"""Gradients with respect to images and to weights. No other module opens a gradient tape."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_sat import losses
from keras_sat.typing import LogitsFunction, LossFunction


def inference(logits_fn: LogitsFunction) -> LogitsFunction:
    """Returns a new function that calls a network, in inference mode if it is a Keras model.

    A model whose `call` has `training=True` by default would otherwise use the statistics of the batch. The function is
    new because an attack is compiled once for each function. The compiled attack keeps what layers computed from their
    weights, and what the network had in its closure.

    Args:
        logits_fn: a Keras model or a function.
    """
    if isinstance(logits_fn, keras.layers.Layer):
        return functools.partial(logits_fn, training=False)
    return functools.partial(logits_fn)


def logits(logits_fn: LogitsFunction, images: tf.Tensor) -> tf.Tensor:
    """Returns logits_fn(images) as float32 [batch, classes]. A network with one logit z per image returns [-z, z].

    The network is called as in `inference`.

    Raises:
        ValueError: for outputs that are not one tensor of shape [batch, classes].
    """
    outputs = inference(logits_fn)(images)
    if not tf.is_tensor(outputs) or outputs.shape.rank != 2:
        shape = getattr(outputs, "shape", type(outputs).__name__)
        raise ValueError(f"logits_fn must return one tensor of shape [batch, classes]. Received: {shape}")
    return losses.two_classes(tf.cast(outputs, tf.float32))


def value_and_gradient(
    logits_fn: LogitsFunction, loss: LossFunction, images: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the loss of each example, the logits, and the gradient of each loss with respect to its own image.

    The losses are added, not averaged. So the gradient of an example does not depend on the rest of the batch, and does
    not underflow in float16. The tape watches only the images, so no gradient of a weight is computed.

    Args:
        logits_fn: maps images to logits [batch, classes].
        loss: maps labels and logits to losses [batch]. See `keras_sat.losses`.
        images: float32 [batch, height, width, channels].
        labels: int [batch].

    Returns:
        losses [batch], logits [batch, classes], gradients of the shape of `images`; all float32.

    Raises:
        ValueError: if the logits have no gradient with respect to the images, or do not have shape [batch, classes].
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        outputs = logits(logits_fn, images)
        losses = loss(labels, outputs)
        total = tf.reduce_sum(losses)
    gradients = tape.gradient(total, images)
    if gradients is None:
        raise ValueError(
            "The logits have no gradient with respect to the images: logits_fn must stay in TensorFlow (no NumPy, no "
            "rounding) from the images to the logits, or have a gradient by attacks.bpda."
        )
    return losses, outputs, gradients


def averaged(
    logits_fn: LogitsFunction, loss: LossFunction, images: tf.Tensor, labels: tf.Tensor, count: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Does the same as `value_and_gradient`, and averages losses and gradients over `count` evaluations.

    For networks with random output (expectation over transformation, arXiv:1707.07397). The logits are those of the
    last evaluation.
    """
    losses, outputs, gradients = _summed(lambda: value_and_gradient(logits_fn, loss, images, labels), count)
    return losses / count, outputs, gradients / count


def jacobian(logits_fn: LogitsFunction, images: tf.Tensor, count: int = 1) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the logits [batch, classes] and their gradients [batch, classes, height, width, channels].

    Both are averaged over `count` evaluations, as in `averaged`.
    """

    def once():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            outputs = logits(logits_fn, images)
        return outputs, outputs, tape.batch_jacobian(outputs, images)

    outputs, _, gradients = _summed(once, count)
    return outputs / count, gradients / count


def _summed(evaluation, count):
    """Returns the three results of `count` evaluations: the first and the last as sums, the second of the last one."""
    first = evaluation()
    if count == 1:
        return first

    def again(values, _, gradients):
        more_values, outputs, more_gradients = evaluation()
        return values + more_values, outputs, gradients + more_gradients

    return tf.while_loop(lambda *_: True, again, first, maximum_iterations=count - 1, parallel_iterations=1)


def training_gradient(
    forward: Callable[[], tuple[tf.Tensor, tf.Tensor]],
    sources: Sequence[Any],
    scale: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor | None]]:
    """Returns the loss of a training step, the logits, and the gradients with respect to `sources`.

    Args:
        forward: a function without arguments that returns a scalar loss and the logits.
        sources: variables and tensors, such as weights and images, on which the result of `forward` depends.
        scale: function applied to the loss before it is differentiated: the loss scaling of the optimizer.

    Returns:
        The loss, the logits, and the gradients of `scale(loss)`, one for each source.
    """
    with tf.GradientTape() as tape:
        tape.watch([source for source in sources if tf.is_tensor(source) and not hasattr(source, "assign")])
        loss, outputs = forward()
        scaled = scale(loss)
    return loss, outputs, tape.gradient(scaled, sources)
