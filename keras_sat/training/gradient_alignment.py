"""Gradient alignment, a regularizer against catastrophic overfitting."""

import dataclasses

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients
from keras_sat.typing import LogitsFunction


@dataclasses.dataclass(frozen=True)
class GradAlign:
    """Gradient alignment (Andriushchenko and Flammarion, arXiv:2007.02617), for training with one-step attacks.

        weight (1 - mean cos(g(x), g(x + u))),    g = gradient of the cross entropy with respect to the image

    u is uniform in the ball of the attack. The labels are those of the batch, smoothed or mixed ones included. Where
    the gradient turns within the ball, an attack of one step fails, and the network may learn to be robust to this
    attack alone. The network runs in training mode and updates no moving statistics. Images at which a gradient is 0
    are left out of the mean.

    The weights get the derivative of both gradients, so that a step costs about twice as much as one of FGSM alone. The
    authors' code takes g(x) as a constant, which they found to make no substantial difference.

    Args:
        weight: weight of the regularizer, > 0. Default: 0.2, the authors' for CIFAR-10 at an epsilon of 8.

    Raises:
        ValueError: if weight is not positive.
    """

    weight: float = 0.2

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight must be positive. Received: {self.weight!r}")

    def penalty(self, logits_fn: LogitsFunction, rows: tf.Tensor, images: tf.Tensor, near: tf.Tensor) -> tf.Tensor:
        """Returns what is added to the objective, float32 [batch]. Its mean is the regularizer.

        Args:
            logits_fn: maps images to logits [batch, classes], differentiable twice.
            rows: labels as probabilities, float32 [batch, classes].
            images: [batch, height, width, channels].
            near: float32, of the shape of `images`: a point of the ball around each image.
        """
        points = (tf.cast(images, tf.float32), near)
        ascents = [gradients.value_and_gradient(logits_fn, losses.soft_cross_entropy, x, rows)[2] for x in points]
        cosines, is_defined = _cosines(*ascents)
        defined = tf.cast(is_defined, tf.float32)
        share = tf.math.divide_no_nan(tf.cast(tf.size(defined), tf.float32), tf.reduce_sum(defined))
        return self.weight * share * defined * (1 - cosines)


def _cosines(a, b):
    """Returns the cosine of each example, 0 where a gradient is 0; and whether no gradient is 0. Both are [batch]."""
    (a, a_is_defined), (b, b_is_defined) = _normalized(a), _normalized(b)
    return tf.reduce_sum(a * b, axis=(1, 2, 3)), a_is_defined & b_is_defined


def _normalized(gradients):
    """Returns each example divided by its Euclidean norm, 0 for 0; and whether the norm is not 0, bool [batch]."""
    # Scaled by the largest element first, so that the squares of tiny gradients do not underflow. The result does not
    # depend on this scale, so the scale needs no derivative.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(gradients), axis=(1, 2, 3), keepdims=True))
    scaled = tf.math.divide_no_nan(gradients, largest)
    square = tf.reduce_sum(tf.square(scaled), axis=(1, 2, 3), keepdims=True)
    is_defined = tf.not_equal(largest, 0.0)
    return scaled * tf.math.rsqrt(tf.where(is_defined, square, 1.0)), is_defined[:, 0, 0, 0]
