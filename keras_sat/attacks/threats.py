"""Threat models: what an attacker may do to an image. The norm is a value, not a class of attacks."""

import dataclasses
import math
import warnings

import tensorflow as tf

from keras_sat.attacks import randomness

PIXELS = (0.0, 255.0)


@dataclasses.dataclass(frozen=True)
class LinfBall:
    """All images x' within the bounds with `max |x' - x| <= epsilon`.

    Args:
        epsilon: radius, >= 0, in the unit of the images: `LinfBall(4)` for pixels in 0..255.
        bounds: smallest and largest valid value of a pixel. Another range is explicit:
            `LinfBall(4 / 255, bounds=(0, 1))`.
    """

    epsilon: float
    bounds: tuple = PIXELS
    norm = "linf"

    def __post_init__(self):
        _check(self)

    def default_step_size(self, steps):
        """Returns max(1 pixel, epsilon / steps), the rule of the SAT release."""
        low, high = self.bounds
        return max((high - low) / 255, self.epsilon / steps)

    def sample(self, seed, images):
        """Returns images + noise, uniform in the ball; like the release's, not clipped to the bounds."""
        return images + randomness.uniform(seed, tf.shape(images), -self.epsilon, self.epsilon)

    def steepest(self, gradients):
        """Returns the direction of steepest ascent of unit norm: sign(g)."""
        return tf.sign(gradients)

    def project(self, points, images):
        """Returns the points nearest to `points` in the ball around `images` and in the bounds."""
        points = tf.clip_by_value(points, images - self.epsilon, images + self.epsilon)
        return tf.clip_by_value(points, *self.bounds)

    def distance(self, points, images):
        """Returns the distance of each example, [batch]."""
        return tf.reduce_max(tf.abs(points - images), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class L2Ball:
    """All images x' within the bounds with `||x' - x||_2 <= epsilon`, over the pixels and channels of an image.

    Args: as of `LinfBall`. In pixels of 0..255, 0.5 of the usual [0, 1] scale is `L2Ball(127.5)`.
    """

    epsilon: float
    bounds: tuple = PIXELS
    norm = "l2"

    def __post_init__(self):
        _check(self)

    def default_step_size(self, steps):
        """Returns 2.5 epsilon / steps, so that the border is reached from anywhere (Madry et al., arXiv:1706.06083)."""
        return 2.5 * self.epsilon / steps

    def sample(self, seed, images):
        """Returns images + noise, uniform in the ball, not clipped to the bounds."""
        direction = self.steepest(randomness.normal(randomness.fold(seed, 0), tf.shape(images)))
        size = tf.cast(tf.reduce_prod(tf.shape(images)[1:]), images.dtype)
        radius = randomness.uniform(randomness.fold(seed, 1), [tf.shape(images)[0], 1, 1, 1]) ** (1 / size)
        return images + self.epsilon * radius * direction

    def steepest(self, gradients):
        """Returns the direction of steepest ascent of unit norm: g / ||g||, and 0 for g = 0."""
        # Scaled by the largest element first, so that the squares of tiny gradients do not underflow.
        largest = tf.reduce_max(tf.abs(gradients), axis=(1, 2, 3), keepdims=True)
        scaled = tf.math.divide_no_nan(gradients, largest)
        return tf.math.divide_no_nan(scaled, _norm(scaled))

    def project(self, points, images):
        """Returns `points` moved radially into the ball around `images`, then clipped to the bounds."""
        # Clipping moves a point no farther from an image within the bounds, so it stays in the ball.
        delta = points - images
        norm = _norm(delta)
        shrink = tf.where(norm > self.epsilon, tf.math.divide_no_nan(self.epsilon, norm), 1.0)
        return tf.clip_by_value(images + shrink * delta, *self.bounds)

    def distance(self, points, images):
        """Returns the distance of each example, [batch]."""
        return _norm(points - images)[:, 0, 0, 0]


def _norm(x):
    return tf.sqrt(tf.reduce_sum(tf.square(x), axis=(1, 2, 3), keepdims=True))


def _check(ball):
    # NumPy's numbers and lists become plain floats and a tuple: an attack is hashed, compared and written as JSON.
    object.__setattr__(ball, "epsilon", float(ball.epsilon))
    object.__setattr__(ball, "bounds", tuple(float(bound) for bound in ball.bounds))
    if len(ball.bounds) != 2:
        raise ValueError(f"bounds must be two finite numbers, the smaller first. Received: {ball.bounds!r}")
    low, high = ball.bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bounds must be two finite numbers, the smaller first. Received: {ball.bounds!r}")
    if not (math.isfinite(ball.epsilon) and ball.epsilon >= 0):
        raise ValueError(f"epsilon must be a finite number >= 0. Received: {ball.epsilon!r}")
    if 0 < ball.epsilon < 1 and ball.bounds == PIXELS:
        warnings.warn(
            f"epsilon {ball.epsilon:g} is less than one level of an image in 0..255. For images in 0..1 say "
            f"{type(ball).__name__}({ball.epsilon:g}, bounds=(0, 1)).",
            stacklevel=4,
        )
