"""Threat models: what an attacker may do to an image. The norm is a value, not a class of attacks."""

import abc
import copy
import dataclasses
import warnings

import numpy as np
import tensorflow as tf

from keras_sat.attacks import randomness

PIXELS = (0.0, 255.0)


@dataclasses.dataclass(frozen=True)
class Ball(abc.ABC):
    """What balls have in common: `LinfBall` and `L2Ball`, which see.

    With an epsilon for each channel, the ball is that of one epsilon after each channel was divided by its share of the
    largest. Lengths, step sizes and `radius` are in this unit: that of the channel with the largest epsilon.
    """

    epsilon: float | tuple
    bounds: tuple = PIXELS

    def __post_init__(self):
        _check(self)

    @abc.abstractmethod
    def length(self, delta):
        """Returns the norm of each perturbation, [batch]; in the ball it is at most `radius`."""

    def distance(self, points, images):
        """Returns the distance of each example, [batch]; in the ball it is at most `radius`."""
        return self.length(points - images)

    def clip(self, points):
        """Returns the points nearest to `points` in the bounds."""
        return tf.clip_by_value(points, *self.bounds)

    @property
    def radius(self):
        """Epsilon; of several channels the largest."""
        return _split(self.epsilon)[0]

    @property
    def shares(self):
        """Epsilon of each channel as a share of the largest, [channels]; None where all have the same."""
        return _split(self.epsilon)[1]

    @property
    def channels(self):
        """The number of channels that images must have, or None for any."""
        return max((len(value) for value in (self.epsilon, *self.bounds) if isinstance(value, tuple)), default=None)

    def scaled(self, factor):
        """Returns the ball of factor * epsilon; the factor may be a tensor in a graph."""
        if tf.is_tensor(factor) and not tf.executing_eagerly():  # there is no value yet that could be checked
            changed = copy.copy(self)
            object.__setattr__(changed, "epsilon", tf.convert_to_tensor(self.epsilon) * factor)
            return changed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a schedule begins with a small epsilon
            return dataclasses.replace(self, epsilon=np.asarray(self.epsilon) * float(factor))

    def with_radius(self, radius):
        """Returns the ball of another radius, in which each channel keeps its share.

        Raises:
            ValueError: if all channels have an epsilon of 0, and so no share.
        """
        if self.shares is not None and not self.radius:
            raise ValueError(f"An epsilon of 0 for each channel cannot be scaled. Received: {self!r}")
        return dataclasses.replace(self, epsilon=_times(self.shares, radius))

    def without_still(self, delta):
        """Returns a perturbation without that of channels whose epsilon is 0."""
        return delta if self.shares is None else delta * tf.cast(self.shares > 0, delta.dtype)

    def widened(self, delta):
        """Returns a perturbation within the ball from one of the same length that treats all channels alike."""
        return _times(self.shares, delta)

    def narrowed(self, delta):
        """Returns what `widened` was given. What moves a channel whose epsilon is 0 is lost."""
        return delta if self.shares is None else tf.math.divide_no_nan(delta, self.shares)


@dataclasses.dataclass(frozen=True)
class LinfBall(Ball):
    """All images x' within the bounds with `max |x' - x| <= epsilon`.

    Args:
        epsilon: radius, >= 0, in the unit of the images: `LinfBall(4)` for pixels in 0..255. A sequence of numbers
            gives each channel its own.
        bounds: smallest and largest valid value of a pixel; each is a number, or one for each channel. Another range is
            explicit: `LinfBall(4 / 255, bounds=(0, 1))`. For images standardised by the mean and the deviation of each
            channel, two arrays [channels] for images in 0..1:
            `LinfBall(4 / 255 / deviation, bounds=(-mean / deviation, (1 - mean) / deviation))`.

    Raises:
        ValueError: for an epsilon or bounds that no ball can have.
    """

    norm = "linf"

    def default_step_size(self, steps):
        """Returns max(1 pixel, epsilon / steps), the rule of the SAT release. A pixel is 1 / 255 of the bounds."""
        low, high = map(np.asarray, self.bounds)
        pixels = (high - low) / 255
        if self.shares is not None and self.radius:
            pixels = (pixels / np.where(self.shares > 0, self.shares, np.nan)).ravel()  # NaN: a channel that stays
        return max(float(np.nanmin(pixels)), self.radius / steps)

    def sample(self, seed, images):
        """Returns images + noise, uniform in the ball; like the release's, not clipped to the bounds."""
        return images + self.widened(randomness.uniform(seed, tf.shape(images), -self.radius, self.radius))

    def steepest(self, gradients):
        """Returns the direction of steepest ascent of unit norm: sign(g)."""
        return self.widened(tf.sign(_finite(gradients)))

    def project(self, points, images):
        """Returns the points nearest to `points` in the ball around `images` and in the bounds."""
        return self.clip(tf.clip_by_value(points, images - self.epsilon, images + self.epsilon))

    def length(self, delta):
        """Returns the largest change of a pixel, [batch]."""
        return tf.reduce_max(tf.abs(self.narrowed(delta)), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class L2Ball(Ball):
    """All images x' within the bounds with `||x' - x||_2 <= epsilon`, over the pixels and channels of an image.

    With an epsilon for each channel, `||(x' - x) / epsilon||_2 <= 1`.

    Args: as of `LinfBall`. In pixels of 0..255, 0.5 of the usual [0, 1] scale is `L2Ball(127.5)`.
    """

    norm = "l2"

    def default_step_size(self, steps):
        """Returns 2.5 epsilon / steps, so that the border is reached from anywhere (Madry et al., arXiv:1706.06083)."""
        return 2.5 * self.radius / steps

    def sample(self, seed, images):
        """Returns images + noise, uniform in the ball, not clipped to the bounds."""
        noise = randomness.normal(randomness.fold(seed, 0), tf.shape(images))
        direction = normalized(self.without_still(noise))
        size = tf.cast(tf.reduce_prod(tf.shape(images)[1:]), images.dtype)
        length = randomness.uniform(randomness.fold(seed, 1), [tf.shape(images)[0], 1, 1, 1]) ** (1 / size)
        return images + self.widened(self.radius * length * direction)

    def steepest(self, gradients):
        """Returns the direction of steepest ascent of unit norm: g / ||g||, and 0 for g = 0."""
        return self.widened(normalized(self.widened(gradients)))

    def project(self, points, images):
        """Returns `points` moved radially into the ball around `images`, then clipped to the bounds."""
        # Clipping moves a point no farther from an image within the bounds, so it stays in the ball.
        delta = self.narrowed(points - images)
        norm = _norm(delta)
        shrink = tf.where(norm > self.radius, tf.math.divide_no_nan(self.radius, norm), 1.0)
        return self.clip(images + self.widened(shrink * delta))

    def length(self, delta):
        """Returns the Euclidean norm of each perturbation, [batch]."""
        return _norm(self.narrowed(delta))[:, 0, 0, 0]


def normalized(x):
    """Returns each example of x divided by its Euclidean norm; 0 for 0, and for a number that is not finite."""
    # Scaled by the largest element first, so that the squares of tiny gradients do not underflow.
    x = _finite(x)
    scaled = tf.math.divide_no_nan(x, tf.reduce_max(tf.abs(x), axis=(1, 2, 3), keepdims=True))
    return tf.math.divide_no_nan(scaled, _norm(scaled))


def _finite(gradients):
    """Returns gradients with 0 for what is not finite: a step by NaN would leave the ball."""
    return tf.where(tf.math.is_finite(gradients), gradients, 0.0)


def _norm(x):
    return tf.sqrt(tf.reduce_sum(tf.square(x), axis=(1, 2, 3), keepdims=True))


def _times(shares, x):
    return x if shares is None else shares * x


def _split(epsilon):
    """Returns the radius, and each channel's share of it; None where all channels have the same epsilon."""
    if isinstance(epsilon, tuple):
        radius = max(epsilon)
        return radius, np.array(epsilon, np.float32) / (radius or 1.0)
    if tf.is_tensor(epsilon) and epsilon.shape.rank == 1:
        radius = tf.reduce_max(epsilon)
        return radius, tf.math.divide_no_nan(epsilon, radius)
    return epsilon, None


def _check(ball):
    # NumPy's numbers and lists become plain floats and tuples: an attack is hashed, compared and written as JSON.
    name, epsilon, bounds = type(ball).__name__, _plain(ball.epsilon), plain_bounds(ball.bounds)
    if epsilon is None or not (np.isfinite(epsilon).all() and np.min(epsilon) >= 0):
        raise ValueError(
            f"epsilon must be a finite number >= 0, such as {name}(8), or one for each channel. "
            f"Received: {ball.epsilon!r}"
        )
    if bounds is None:
        raise ValueError(
            "bounds must be two finite numbers, the smaller first, such as (0, 1); each may be one for each channel. "
            f"Received: {ball.bounds!r}"
        )
    if len({len(value) for value in (epsilon, *bounds) if isinstance(value, tuple)}) > 1:
        raise ValueError(
            f"epsilon and bounds must be of the same channels. Received: epsilon {epsilon}, bounds {bounds}"
        )
    object.__setattr__(ball, "epsilon", epsilon)
    object.__setattr__(ball, "bounds", bounds)
    if 0 < np.max(epsilon) < 1 and bounds == PIXELS:
        warnings.warn(
            f"epsilon {np.max(epsilon):g} is less than one level of an image in 0..255. For images in 0..1 say "
            f"{name}({np.max(epsilon):g}, bounds=(0, 1)).",
            stacklevel=4,
        )


def _plain(value):
    """Returns a float, or a tuple of floats for a sequence of numbers; None for anything else."""
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if array.ndim == 0:
        return float(array)
    return tuple(array.tolist()) if array.ndim == 1 and array.size else None


def plain_bounds(bounds):
    """Returns (low, high), each a float or a tuple of one for each channel; None for what are no bounds."""
    try:
        low, high = map(_plain, bounds)
        if low is None or high is None:
            return None
        in_order = np.all(np.asarray(low, np.float64) < np.asarray(high, np.float64))
    except (TypeError, ValueError):  # of another number, or of other channels
        return None
    is_finite = all(np.isfinite(value).all() for value in (low, high))
    return (low, high) if in_order and is_finite else None
