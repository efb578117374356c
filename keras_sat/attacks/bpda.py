"""BPDA: a gradient for functions that have none, or one that misleads."""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

Function: TypeAlias = Callable[[tf.Tensor], Any]


def bpda(forward: Function, backward: Function | None = None) -> Function:
    """Returns a function that computes `forward(x)` and has the gradient of `backward(x)`.

        defence = bpda(lambda x: tf.round(x / 64) * 64)
        report = evaluate(lambda x: model(defence(x)), test, AutoAttack(LinfBall(8)))

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv:1802.00420): attacks by gradients cannot see
    through a step such as rounding, JPEG or a random choice. If a smooth function does nearly the same, its gradient
    shows the way. The values are exactly those of `forward`, so robust accuracy is that of the network with its
    defence.

    Args:
        forward: function of a float tensor, such as images [batch, height, width, channels] in pixels 0..255. It needs
            no gradient. It may leave TensorFlow by `tf.numpy_function`.
        backward: function of the same tensor, differentiable, whose results have the shape of those of `forward`. None
            (default): the identity. For a logits function as a whole, `bpda(lambda x: model(jpeg(x)), model)`.

    Raises:
        ValueError: when the returned function is called, if the results of `forward` and `backward` differ in shape.
    """

    def function(x):
        x = tf.convert_to_tensor(x)
        x = x if x.dtype.is_floating else tf.cast(x, tf.float32)
        smooth = x if backward is None else backward(x)
        values = tf.cast(tf.stop_gradient(forward(x)), smooth.dtype)
        if not values.shape.is_compatible_with(smooth.shape):
            raise ValueError(
                f"forward returns the shape {values.shape}, and backward (default: the identity) {smooth.shape}: both "
                "must return the same shape."
            )
        return _with_gradient_of(tf.ensure_shape(values, smooth.shape), smooth)

    return function


@tf.custom_gradient
def _with_gradient_of(values, smooth):
    return tf.identity(values), lambda upstream: (None, upstream)
