"""Common corruptions of images (noise, blur, ...), computed during an evaluation. They need no attacker."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from keras_sat.attacks import randomness
from keras_sat.attacks.attack import Attack
from keras_sat.attacks.threats import PIXELS, plain_bounds
from keras_sat.typing import LogitsFunction

# Severities 1..5 of ImageNet-C, for images in 0..1 (Hendrycks and Dietterich 2019, arXiv:1903.12261, and its code).
SEVERITIES = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # share of the values that become black or white
    "gaussian_blur": (1, 2, 3, 4, 6),  # standard deviation in pixels for an image of 224 pixels; scaled for other sizes
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added to the value (V) of HSV
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # factor of the distance to the mean
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # factor of the size
    "jpeg_compression": (25, 18, 15, 10, 7),  # quality
}


@dataclasses.dataclass(frozen=True)
class Corruption(Attack):
    """A corruption of ImageNet-C, in place of an attack: `evaluate(model, data, Corruption("contrast", 3))`.

    It does not depend on the model. Its accuracy counts all images, also those that are misclassified without the
    corruption.

    Args:
        name: a key of `SEVERITIES`, such as "contrast".
        severity: 1..5, as in ImageNet-C. Default: 3.
        bounds: (low, high), the smallest and largest valid value of a pixel; each a number, or one for each channel.
            Default: (0, 255).

    Raises:
        ValueError: for another name or severity, or invalid bounds.
    """

    ball: ClassVar[None] = None  # type: ignore[misc]  # replaces the field of the base class

    name: str
    severity: int = 3
    bounds: tuple = PIXELS

    def __post_init__(self) -> None:
        if self.name not in SEVERITIES:
            raise ValueError(f"A corruption is one of {', '.join(SEVERITIES)}. Received: {self.name!r}")
        if self.severity not in (1, 2, 3, 4, 5):
            raise ValueError(f"severity must be 1..5. Received: {self.severity!r}")
        bounds = plain_bounds(self.bounds)
        if bounds is None:
            raise ValueError(
                f"bounds must be two numbers, the smaller first, such as (0, 1). Received: {self.bounds!r}"
            )
        object.__setattr__(self, "bounds", bounds)

    def __str__(self) -> str:
        return f"{self.name}-{self.severity}"

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values, for a report."""
        return {"corruption": self.name, "severity": self.severity, "bounds": self.bounds}

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example: none."""
        return 0

    @property
    def needs_gradients(self) -> bool:
        """Whether the corruption uses gradients of the network: no."""
        return False

    def perturb(
        self,
        logits_fn: LogitsFunction,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        start: tf.Tensor | None = None,
        *,
        static_shapes: bool = False,
    ) -> tf.Tensor:
        """Returns the corrupted images. Uses neither the network nor the labels. See `Attack.perturb`."""
        low, high = map(np.float32, self.bounds)
        amount = SEVERITIES[self.name][self.severity - 1]
        corrupted = FUNCTIONS[self.name]((images - low) / (high - low), amount, seed)
        return low + (high - low) * tf.clip_by_value(corrupted, 0.0, 1.0)


def _gaussian_noise(images, deviation, seed):
    return images + deviation * randomness.normal(seed, tf.shape(images))


def _impulse_noise(images, share, seed):
    draw = randomness.uniform(seed, tf.shape(images))
    return tf.where(draw < share / 2, 0.0, tf.where(draw > 1 - share / 2, 1.0, images))


def _gaussian_blur(images, deviation, _):
    deviation = deviation * tf.cast(tf.reduce_min(tf.shape(images)[1:3]), tf.float32) / 224
    radius = tf.cast(tf.math.ceil(4 * deviation), tf.int32)
    places = tf.cast(tf.range(-radius, radius + 1), tf.float32)
    kernel = tf.nn.softmax(-(places**2) / (2 * deviation**2))
    channels = images.shape[-1]
    padding = [[0, 0], [radius, radius], [radius, radius], [0, 0]]
    down = tf.tile(kernel[:, None, None, None], [1, 1, channels, 1])
    across = tf.tile(kernel[None, :, None, None], [1, 1, channels, 1])
    padded = tf.pad(images, padding, "SYMMETRIC")
    return tf.nn.depthwise_conv2d(tf.nn.depthwise_conv2d(padded, down, [1] * 4, "VALID"), across, [1] * 4, "VALID")


def _brightness(images, amount, _):
    if images.shape[-1] != 3:
        return images + amount
    hue, saturation, value = tf.unstack(tf.image.rgb_to_hsv(images), axis=-1)
    return tf.image.hsv_to_rgb(tf.stack([hue, saturation, tf.clip_by_value(value + amount, 0.0, 1.0)], axis=-1))


def _contrast(images, factor, _):
    mean = tf.reduce_mean(images, axis=(1, 2), keepdims=True)
    return mean + factor * (images - mean)


def _pixelate(images, factor, _):
    size = tf.shape(images)[1:3]
    small = tf.cast(tf.cast(size, tf.float32) * factor, tf.int32)
    return tf.image.resize(tf.image.resize(images, small, "area"), size, "nearest")


def _jpeg_compression(images, quality, _):
    def compress(image):
        encoded = tf.io.encode_jpeg(tf.cast(tf.round(image * 255), tf.uint8), quality=quality)
        return tf.cast(tf.io.decode_jpeg(encoded), tf.float32) / 255

    return tf.map_fn(compress, images)


FUNCTIONS = {
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
