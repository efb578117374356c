"""The first layer of a network: pixels 0..255 -> (pixels / 255 - mean) / std, with fixed values."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

Statistics: TypeAlias = float | Sequence[float]  # one value, or one for each channel
Normalization: TypeAlias = str | tuple[Statistics, Statistics] | None

PUBLISHED = "published"
SYMMETRIC: Normalization = (0.5, 0.5)  # pixels 0..255 become -1..1
# Mean and standard deviation of images in 0..1. Most of RobustBench's networks use these digits.
NAMED: dict[str, tuple[Statistics, Statistics]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@keras.saving.register_keras_serializable("keras_sat")
class Normalize(keras.layers.Layer):
    """Computes (pixels / 255 - mean) / std. A file of weights stores mean and std, and fits no other values.

    (0.5, 0.5) is a plain Rescaling: see `apply`.

    The operations are those of PyTorch, in their order. So the first convolution gets the same float32 values: a ReLU
    whose input is nearly 0 can turn a difference of 1e-7 into another gradient.

    Args:
        mean: mean of the images in 0..1: one value, or a list with a value for each channel.
        std: standard deviation, likewise.
        kwargs: arguments of keras.layers.Layer.
    """

    def __init__(self, mean: Statistics, std: Statistics, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean, self.std = _plain(mean), _plain(std)

    def call(self, inputs: Any) -> Any:
        x = keras.ops.cast(inputs, self.compute_dtype) / 255
        if (self.mean, self.std) == (0.0, 1.0):
            return x
        return (x - keras.ops.cast(self.mean, x.dtype)) / keras.ops.cast(self.std, x.dtype)

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, self.compute_dtype)

    def save_own_variables(self, store: Any) -> None:
        store["mean"], store["std"] = np.asarray(self.mean), np.asarray(self.std)

    def load_own_variables(self, store: Any) -> None:
        for name, own in (("mean", self.mean), ("std", self.std)):
            stored = np.asarray(store[name]) if name in store.keys() else None  # noqa: SIM118 - not a dict
            if stored is None:
                raise ValueError(f"it does not hold the {name} of its images; the network's is {own}")
            if not same(stored, own):
                raise ValueError(f"it normalizes images with another {name}: {stored}, not {own}")

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"mean": self.mean, "std": self.std}


def apply(x: keras.KerasTensor, normalization: Normalization) -> keras.KerasTensor:
    """Normalizes pixels 0..255, always in float32: bfloat16 would round pixels to whole levels.

    Args:
        x: Keras tensor of pixels [batch, height, width, 1 or 3].
        normalization: None for pixels / 255; "cifar10", "cifar100" or "imagenet" for (pixels / 255 - mean) / std; or
            (mean, std) of images in 0..1, each of which is a number or has a value for each channel. For grey images,
            the three values of a name are averaged.

    Raises:
        ValueError: for another name, another number of values, values outside 0..1, or a std of 0.
    """
    mean, std = statistics(normalization, x.shape[-1])
    if (mean, std) == SYMMETRIC:  # the SAT release's own; a plain layer, for files of weights that were written so
        return keras.layers.Rescaling(2 / 255, -1.0, dtype="float32", name="rescaling")(x)
    return Normalize(mean, std, dtype="float32", name="normalization")(x)


def statistics(normalization: Normalization, channels: int) -> tuple[Statistics, Statistics]:
    """Returns (mean, std) of a normalization, for images in 0..1. See `apply`."""
    if normalization is None:
        return 0.0, 1.0
    if isinstance(normalization, str):
        if normalization not in NAMED:
            raise _error(normalization)
        mean, std = NAMED[normalization]
        return (mean, std) if channels == 3 else (_plain(np.mean(mean)), _plain(np.mean(std)))
    try:
        mean, std = (_plain(np.asarray(values, np.float64)) for values in normalization)
    except (ValueError, TypeError) as error:
        raise _error(normalization) from error
    if not {np.shape(mean), np.shape(std)} <= {(), (channels,)}:
        raise _error(normalization, f" The images have {channels} channels.")
    if not (np.min(mean) >= 0 and np.max(mean) <= 1 and np.min(std) > 0 and np.max(std) <= 1):  # NaN is refused, too
        raise _error(normalization, " Divide values for pixels 0..255 by 255.")
    return mean, std


def of_model(model: keras.Model) -> tuple[Statistics, Statistics] | None:
    """Returns (mean, std) of a network of this package; None if it has no layer that normalizes."""
    for layer in model.layers:
        if isinstance(layer, Normalize):
            return layer.mean, layer.std
        if type(layer) is keras.layers.Rescaling and layer.name == "rescaling":
            return 0.5, 0.5
    return None


def shortest(mean: Any, std: Any) -> Normalization:
    """Returns a mean and a standard deviation as a short value of the argument `normalization`.

    Equal values of all channels become one number; mean 0 and std 1 become None.
    """
    pair = _short(mean), _short(std)
    return None if pair == (0.0, 1.0) else pair


def _short(values):
    """Returns a number if all values are equal, else a tuple, with the fewest digits that are exact in float32."""
    numbers = tuple(float(str(value)) for value in np.ravel(np.asarray(values, np.float32)))
    return numbers[0] if len(set(numbers)) == 1 else numbers


def same(one: Any, other: Any) -> bool:
    """Returns whether two means, or two standard deviations, are equal up to float32 rounding."""
    first, second = (np.ravel(np.asarray(values, np.float64)) for values in (one, other))
    fits = len(first) == len(second) or 1 in (len(first), len(second))
    return fits and np.allclose(first, second, rtol=1e-6, atol=1e-6)


def _plain(values):
    """Returns a number, or a tuple of numbers, as Python floats, which a configuration can store."""
    values = np.asarray(values, np.float64)
    return float(values) if values.ndim == 0 else tuple(values.tolist())


def _error(normalization, more=""):
    return ValueError(
        f'normalization must be None, "{PUBLISHED}", one of {", ".join(NAMED)}, or (mean, std) of images in 0..1: '
        f"two numbers in 0..1, std above 0, or a value for each channel.{more} Received: {normalization!r}"
    )
