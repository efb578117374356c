"""Gaussian noise, for training that randomised smoothing certifies."""

import dataclasses
import math
import numbers
from typing import Any, ClassVar

import tensorflow as tf

from keras_sat.attacks import randomness
from keras_sat.attacks.attack import Attack
from keras_sat.attacks.threats import PIXELS, plain_bounds
from keras_sat.typing import LogitsFunction


@dataclasses.dataclass(frozen=True)
class GaussianNoise(Attack):
    """Gaussian noise of standard deviation sigma in place of an attack: x' = x + sigma z, z ~ N(0, 1).

    `AdversarialModel(model, GaussianNoise(63.75))` trains a network on noisy images, for `evaluation.certify` with the
    same sigma (Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918). In `evaluate`, the accuracy counts all images, also
    those that are misclassified without noise. The noise depends neither on the network nor on the labels. It is not
    clipped to the bounds, as in the paper: a certificate holds for noise that is not clipped.

    Args:
        sigma: standard deviation, > 0, in the images' unit.
        bounds: (low, high), the smallest and largest valid value of a pixel of the images without noise; each a number,
            or one for each channel. Default: (0, 255).

    Raises:
        ValueError: for a sigma that is not positive, or invalid bounds.
    """

    ball: ClassVar[None] = None  # type: ignore[misc]  # replaces the field of the base class

    sigma: float
    bounds: tuple = PIXELS

    def __post_init__(self) -> None:
        if not (isinstance(self.sigma, numbers.Real) and 0 < self.sigma < math.inf):
            raise ValueError(f"sigma must be a positive number, in the images' unit. Received: {self.sigma!r}")
        bounds = plain_bounds(self.bounds)
        if bounds is None:
            raise ValueError(
                f"bounds must be two numbers, the smaller first, such as (0, 1). Received: {self.bounds!r}"
            )
        object.__setattr__(self, "sigma", float(self.sigma))
        object.__setattr__(self, "bounds", bounds)

    def __str__(self) -> str:
        return f"noise-{self.sigma:g}"

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example: none."""
        return 0

    @property
    def needs_gradients(self) -> bool:
        """Whether it uses gradients of the network: no."""
        return False

    @property
    def metrics_prefix(self) -> str:
        """The first part of the names of metrics on these images: `noisy_`."""
        return "noisy_"

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
        """Returns the noisy images. Uses neither the network nor the labels. See `Attack.perturb`."""
        return images + self.sigma * randomness.normal(seed, tf.shape(images))

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values, for a report."""
        return {"attack": type(self).__name__, "sigma": self.sigma, "bounds": self.bounds}
