"""Threat models: what an attacker may do to an image. The norm belongs to the threat model, not to the attack."""

import abc
import dataclasses
import typing
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat.attacks import randomness

PIXELS = (0.0, 255.0)
Scale: typing.TypeAlias = float | tf.Tensor


@dataclasses.dataclass(frozen=True)
class Ball(abc.ABC):
    """Base class of `LinfBall`, `L2Ball` and `L1Ball`: all images within a distance of epsilon from an image.

    Images, points (images near them), gradients and perturbations (`delta`) are float32 tensors
    [batch, height, width, channels].

    With an epsilon per channel, each channel is divided by its share of the largest epsilon. In these units the ball
    has one radius for all channels. Lengths, step sizes and `radius` are in the unit of the channel with the largest
    epsilon.
    """

    epsilon: float | tuple
    bounds: tuple = PIXELS

    norm: typing.ClassVar[str]

    def __post_init__(self) -> None:
        _check(self)

    @abc.abstractmethod
    def default_step_size(self, steps: int) -> float:
        """Returns the default step size of an attack with `steps` steps, in the images' unit."""

    @abc.abstractmethod
    def sample(self, seed: tf.Tensor, images: tf.Tensor, scale: Scale = 1.0) -> tf.Tensor:
        """Returns images plus noise that is uniform in the ball. The result is not clipped to the bounds.

        Args:
            seed: int32 [2], or [batch, 2].
            images: float32 [batch, height, width, channels].
            scale: factor of epsilon: a number, or a scalar tensor in a graph.
        """

    @abc.abstractmethod
    def steepest(self, gradients: tf.Tensor) -> tf.Tensor:
        """Returns the direction of steepest ascent, of unit norm in the ball's norm."""

    @abc.abstractmethod
    def project(self, points: tf.Tensor, images: tf.Tensor, scale: Scale = 1.0) -> tf.Tensor:
        """Returns the points moved into the ball around `images` and into the bounds. For `scale`: see `sample`."""

    @abc.abstractmethod
    def length(self, delta: tf.Tensor) -> tf.Tensor:
        """Returns the norm of each perturbation, float32 [batch]; at most `radius` in the ball."""

    def distance(self, points: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns the distance of each point from its image, float32 [batch]; at most `radius` in the ball."""
        return self.length(points - images)

    def clip(self, points: tf.Tensor) -> tf.Tensor:
        """Returns the points clipped to the bounds."""
        return tf.clip_by_value(points, *self.bounds)

    @property
    def radius(self) -> float:
        """Epsilon in the images' unit. With an epsilon per channel: the largest one."""
        return max(self.epsilon) if isinstance(self.epsilon, tuple) else self.epsilon

    @property
    def shares(self) -> np.ndarray | None:
        """Epsilon of each channel as a share of the largest, float32 [channels]; None if all channels are equal."""
        return np.array(self.epsilon, np.float32) / (self.radius or 1.0) if isinstance(self.epsilon, tuple) else None

    @property
    def channels(self) -> int | None:
        """The number of channels that images must have; None for any."""
        return max((len(value) for value in (self.epsilon, *self.bounds) if isinstance(value, tuple)), default=None)

    def with_radius(self, radius: float) -> "Ball":
        """Returns the ball with another radius. Each channel keeps its share.

        Args:
            radius: >= 0, in the images' unit. With an epsilon per channel: the new largest one.

        Raises:
            ValueError: if the epsilon of every single channel is 0, so that the channels have no shares.
        """
        if self.shares is not None and not self.radius:
            raise ValueError(f"An epsilon of 0 for each channel cannot be scaled. Received: {self!r}")
        return dataclasses.replace(self, epsilon=_times(self.shares, radius))

    def without_fixed_channels(self, delta: tf.Tensor) -> tf.Tensor:
        """Returns a perturbation that is 0 in the channels whose epsilon is 0."""
        return delta if self.shares is None else delta * tf.cast(self.shares > 0, delta.dtype)

    def to_channels(self, delta: tf.Tensor) -> tf.Tensor:
        """Scales a perturbation from the ball with one radius for all channels to the channels' own radii."""
        return _times(self.shares, delta)

    def from_channels(self, delta: tf.Tensor) -> tf.Tensor:
        """Reverses `to_channels`. Channels whose epsilon is 0 become 0."""
        return delta if self.shares is None else tf.math.divide_no_nan(delta, self.shares)


@dataclasses.dataclass(frozen=True)
class LinfBall(Ball):
    """All images x' within the bounds with `max |x' - x| <= epsilon`.

    Args:
        epsilon: radius, >= 0, in the unit of the images: `LinfBall(4)` for pixels in 0..255. A sequence of numbers
            gives each channel its own.
        bounds: smallest and largest valid value of a pixel; each is a number, or a sequence with one per channel. For
            images in 0..1: `LinfBall(4 / 255, bounds=(0, 1))`. For images in 0..1 that were standardised by the mean
            and the standard deviation of each channel, two arrays [channels]:
            `LinfBall(4 / 255 / deviation, bounds=(-mean / deviation, (1 - mean) / deviation))`.

    Raises:
        ValueError: for an epsilon or bounds that are not valid.
    """

    norm = "linf"

    def default_step_size(self, steps: int) -> float:
        """Returns max(1 level, epsilon / steps), the rule of the SAT release. A level is 1 / 255 of the bounds."""
        low, high = map(np.asarray, self.bounds)
        levels = (high - low) / 255
        if self.shares is not None and self.radius:
            levels = (levels / np.where(self.shares > 0, self.shares, np.nan)).ravel()  # NaN: a fixed channel
        return max(float(np.nanmin(levels)), self.radius / steps)

    def sample(self, seed: tf.Tensor, images: tf.Tensor, scale: Scale = 1.0) -> tf.Tensor:
        """Returns images plus noise that is uniform in the ball. Like the release, it does not clip to the bounds."""
        radius = self.radius * scale
        return images + self.to_channels(randomness.uniform(seed, tf.shape(images), -radius, radius))

    def steepest(self, gradients: tf.Tensor) -> tf.Tensor:
        """Returns sign(g). With an epsilon per channel, each channel is multiplied by its share."""
        return self.to_channels(tf.sign(_finite(gradients)))

    def project(self, points: tf.Tensor, images: tf.Tensor, scale: Scale = 1.0) -> tf.Tensor:
        """Returns the nearest points in the ball around `images` and in the bounds."""
        epsilon = (np.array(self.epsilon) if isinstance(self.epsilon, tuple) else self.epsilon) * scale
        return self.clip(tf.clip_by_value(points, images - epsilon, images + epsilon))

    def length(self, delta: tf.Tensor) -> tf.Tensor:
        """Returns the largest change of a pixel value, float32 [batch]."""
        return tf.reduce_max(tf.abs(self.from_channels(delta)), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class L2Ball(Ball):
    """All images x' within the bounds with `||x' - x||_2 <= epsilon`, over the pixels and channels of an image.

    With an epsilon for each channel, `||(x' - x) / epsilon||_2 <= 1`.

    Args:
        epsilon: See `LinfBall`. For images in 0..255, `L2Ball(127.5)` is the epsilon of 0.5 that is usual for images in
            0..1.
        bounds: See `LinfBall`.

    Raises:
        ValueError: for an epsilon or bounds that are not valid.
    """

    norm = "l2"

    def default_step_size(self, steps: int) -> float:
        """Returns 2.5 epsilon / steps (Madry et al., arXiv:1706.06083).

        So the steps suffice to reach any point of the ball from any other one.
        """
        return 2.5 * self.radius / steps

    def sample(self, seed: tf.Tensor, images: tf.Tensor, scale: Scale = 1.0) -> tf.Tensor:
        """Returns images plus noise that is uniform in the ball. The result is not clipped to the bounds."""
        noise = randomness.normal(randomness.fold(seed, 0), tf.shape(images))
        direction = normalized(self.without_fixed_channels(noise))
        size = tf.cast(tf.reduce_prod(tf.shape(images)[1:]), images.dtype)
        length = randomness.uniform(randomness.fold(seed, 1), [tf.shape(images)[0], 1, 1, 1]) ** (1 / size)
        return images + self.to_channels(self.radius * scale * length * direction)

    def steepest(self, gradients: tf.Tensor) -> tf.Tensor:
        """Returns g / ||g||, and 0 for g = 0. With an epsilon per channel: in the units of one radius, see `Ball`."""
        return self.to_channels(normalized(self.to_channels(gradients)))

    def project(self, points: tf.Tensor, images: tf.Tensor, scale: Scale = 1.0) -> tf.Tensor:
        """Returns the points moved radially into the ball around `images`, then clipped to the bounds."""
        # Clipping moves no point away from an image within the bounds, so the point stays in the ball.
        radius = self.radius * scale
        delta = self.from_channels(points - images)
        norm = _norm(delta)
        shrink = tf.where(norm > radius, tf.math.divide_no_nan(radius, norm), 1.0)
        return self.clip(images + self.to_channels(shrink * delta))

    def length(self, delta: tf.Tensor) -> tf.Tensor:
        """Returns the Euclidean norm of each perturbation, float32 [batch]."""
        return _norm(self.from_channels(delta))[:, 0, 0, 0]


@dataclasses.dataclass(frozen=True)
class L1Ball(Ball):
    """All images x' within the bounds with `||x' - x||_1 <= epsilon`: the sum of all changes of an image's values.

    With an epsilon for each channel, `||(x' - x) / epsilon||_1 <= 1`.

    Args:
        epsilon: See `LinfBall`. For images in 0..255, `L1Ball(3060)` is the epsilon of 12 that is usual for images in
            0..1.
        bounds: See `LinfBall`.

    Raises:
        ValueError: for an epsilon or bounds that are not valid.
    """

    norm = "l1"

    def default_step_size(self, steps: int) -> float:
        """Returns 2.5 epsilon / steps, as `L2Ball` does."""
        return 2.5 * self.radius / steps

    def sample(self, seed: tf.Tensor, images: tf.Tensor, scale: Scale = 1.0) -> tf.Tensor:
        """Returns images plus noise that is uniform in the ball. The result is not clipped to the bounds.

        Exponential numbers, divided by the sum of them and of one more, are uniform in the simplex.
        """
        numbers, signs = (randomness.uniform(randomness.fold(seed, k), tf.shape(images)) for k in (0, 1))
        rest = randomness.uniform(randomness.fold(seed, 2), [tf.shape(images)[0], 1, 1, 1])
        sizes = self.without_fixed_channels(-tf.math.log1p(-numbers))
        share = sizes / (tf.reduce_sum(sizes, axis=(1, 2, 3), keepdims=True) - tf.math.log1p(-rest))
        return images + self.to_channels(self.radius * scale * share * tf.where(signs < 0.5, -1.0, 1.0))

    def steepest(self, gradients: tf.Tensor) -> tf.Tensor:
        """Returns a sparse direction of norm 1: the signs of the largest percent of the gradient's values.

        The steepest direction of all changes a single value, which soon reaches its bound. A percent of the values is
        the step of Tramer and Boneh (2019, arXiv:1904.13000).
        """
        return self.sparse(gradients, 0.01)

    def sparse(self, gradients: tf.Tensor, share: float | tf.Tensor) -> tf.Tensor:
        """Returns the signs of the largest values of each gradient, divided by their number.

        Args:
            gradients: float32 [batch, height, width, channels].
            share: how many of the values, a number in 0..1, or float32 [batch]; at least one value is taken.
        """
        ascent = self.to_channels(_finite(gradients))
        sizes = tf.sort(tf.reshape(tf.abs(ascent), [tf.shape(ascent)[0], -1]), axis=1)
        number = tf.shape(sizes)[1]
        place = tf.cast((1.0 - share) * tf.cast(number, tf.float32), tf.int32) + tf.zeros_like(sizes[:, 0], tf.int32)
        smallest = tf.gather(sizes, tf.clip_by_value(place, 0, number - 1), axis=1, batch_dims=1)[:, None, None, None]
        signs = tf.where(tf.abs(ascent) >= smallest, tf.sign(ascent), 0.0)
        return self.to_channels(tf.math.divide_no_nan(signs, _sum(tf.abs(signs))))

    def project(self, points: tf.Tensor, images: tf.Tensor, scale: Scale = 1.0) -> tf.Tensor:
        """Returns the nearest points that are both in the ball around `images` and in the bounds.

            x'_i = clip(x_i + sign(d_i) max(|d_i| - t, 0)),    d = point - image

        with the smallest t >= 0 for which x' is in the ball (Croce and Hein 2021, arXiv:2103.01208, section 2.2), to a
        millionth of epsilon. The length is piecewise linear in t and falls, so Newton's method finds t in a few passes,
        with bisection where it leaves the interval that holds t.
        """
        delta, radius = self.from_channels(points - images), self.radius * scale
        low, high = (self.from_channels(bound - images) for bound in self.bounds)
        sizes, room = tf.abs(delta), tf.where(delta > 0, high, -low)

        def search(t, below, above, _):
            left = sizes - t
            excess = _sum(tf.clip_by_value(left, 0.0, room)) - radius
            below, above = tf.where(excess > 0, t, below), tf.where(excess > 0, above, t)
            newton = t + tf.math.divide_no_nan(excess, _sum(tf.cast((left > 0) & (left < room), tf.float32)))
            following = tf.where((newton > below) & (newton < above), newton, (below + above) / 2)
            is_found = tf.abs(excess) <= _PRECISION * radius
            is_found |= (excess <= 0) & (t == 0)  # in the ball as it is
            found = tf.where(is_found, t, following)
            return found, below, tf.where(is_found, t, above), tf.reduce_any(found != t)

        zero = tf.zeros_like(delta[:, :1, :1, :1])
        largest = tf.reduce_max(sizes, axis=(1, 2, 3), keepdims=True)
        _, _, t, _ = tf.while_loop(  # `above`, for there the points are in the ball
            lambda *state: state[-1],
            search,
            (zero, zero, largest, tf.constant(True)),
            maximum_iterations=_PASSES,
            parallel_iterations=1,
        )
        moved = tf.sign(delta) * tf.clip_by_value(sizes - t, 0.0, room)
        return self.clip(images + self.to_channels(moved))

    def length(self, delta: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the changes of all values, float32 [batch]."""
        return _sum(tf.abs(self.from_channels(delta)))[:, 0, 0, 0]


_PRECISION = 1e-6  # of epsilon: the rounding error of a sum over an image
_PASSES = 50  # at most


def normalized(x: tf.Tensor) -> tf.Tensor:
    """Returns each example of x divided by its Euclidean norm. Zeros stay 0; values that are not finite become 0."""
    # Scaled by the largest element first, so that the squares of tiny gradients do not underflow.
    x = _finite(x)
    scaled = tf.math.divide_no_nan(x, tf.reduce_max(tf.abs(x), axis=(1, 2, 3), keepdims=True))
    return tf.math.divide_no_nan(scaled, _norm(scaled))


def _finite(gradients):
    """Returns the gradients with 0 in place of values that are not finite: a step by NaN would leave the ball."""
    return tf.where(tf.math.is_finite(gradients), gradients, 0.0)


def _sum(x):
    return tf.reduce_sum(x, axis=(1, 2, 3), keepdims=True)


def _norm(x):
    return tf.sqrt(tf.reduce_sum(tf.square(x), axis=(1, 2, 3), keepdims=True))


def _times(shares, x):
    return x if shares is None else shares * x


def _check(ball):
    # Converts NumPy numbers and lists to floats and tuples: attacks are hashed, compared and written as JSON.
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
            f"epsilon {np.max(epsilon):g} is less than one level of an image in 0..255. For pixels 0..255 say "
            f"{255 * np.max(epsilon):g}; for images in 0..1, in Python, {name}({np.max(epsilon):g}, bounds=(0, 1)).",
            stacklevel=4,
        )


def _plain(value):
    """Returns a float; a tuple of floats for a sequence of numbers; None for anything else."""
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if array.ndim == 0:
        return float(array)
    return tuple(array.tolist()) if array.ndim == 1 and array.size else None


def plain_bounds(bounds: Any) -> tuple | None:
    """Returns (low, high), each a float or a tuple with one per channel; None if `bounds` are not valid."""
    try:
        low, high = map(_plain, bounds)
        if low is None or high is None:
            return None
        in_order = np.all(np.asarray(low, np.float64) < np.asarray(high, np.float64))
    except (TypeError, ValueError):  # not two values, or of different numbers of channels
        return None
    is_finite = all(np.isfinite(value).all() for value in (low, high))
    return (low, high) if in_order and is_finite else None
