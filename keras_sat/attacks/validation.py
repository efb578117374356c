"""Checks of an attack's fields, images, labels and network."""

import numbers
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, threats
from keras_sat.typing import LogitsFunction

if TYPE_CHECKING:
    from keras_sat.attacks.attack import Attack

_SOME = 4  # images of a batch on which a network is checked
_SIGNS = {"softmax": "not negative, one sum", "sigmoid": "all in 0..1"}
_SLACK = 1e-5  # share of the bounds' range: float32 rounding error of standardised images


def check_ball(ball: Any) -> None:
    """Raises ValueError unless `ball` is a `LinfBall`, an `L2Ball` or an `L1Ball`."""
    if not isinstance(ball, threats.Ball):
        raise ValueError(f"ball must be a LinfBall, an L2Ball or an L1Ball, such as LinfBall(4). Received: {ball!r}")


def check_integers(attack: "Attack", positive: tuple = (), not_negative: tuple = ()) -> None:
    """Checks integer fields of an attack, and stores NumPy integers as int, which JSON can represent.

    Args:
        attack: the attack.
        positive: names of the fields that must be at least 1.
        not_negative: names of the fields that must be at least 0.

    Raises:
        ValueError: for another value.
    """
    for least, names in ((1, positive), (0, not_negative)):
        for name in names:
            value = getattr(attack, name)
            if not (isinstance(value, numbers.Integral) and int(value) >= least):
                raise ValueError(f"{name} must be an integer >= {least}. Received: {value!r}")
            object.__setattr__(attack, name, int(value))


def too_short(steps: int, step_size: float, epsilon: float) -> str:
    """Returns the warning for an attack whose steps together are shorter than epsilon, in the images' unit."""
    return (
        f"{steps} x step_size {step_size:g} is less than epsilon {epsilon:g}: the attack cannot reach all of the "
        "ball, and robust accuracy may be too high. step_size is in the images' unit, as epsilon is."
    )


def check_shapes(images: tf.Tensor, labels: tf.Tensor, ball: threats.Ball | None) -> None:
    """Raises ValueError unless images and labels have the shapes and types that attacks need.

    Args:
        images: must have shape [batch, height, width, channels], with the channels of the ball.
        labels: must be integers [batch].
        ball: the threat model, or None.
    """
    if images.shape.rank != 4 or images.shape[0] == 0:
        raise ValueError(f"images must have shape [batch, height, width, channels]. Received shape: {images.shape}")
    if ball is not None and ball.channels not in (None, images.shape[-1]):
        raise ValueError(
            f"epsilon and bounds of the ball are of {ball.channels} channels, the images have {images.shape[-1]}. "
            f"Received: {ball!r}"
        )
    if labels.shape.rank != 1 or not labels.dtype.is_integer:
        raise ValueError(
            f"labels must be integers of shape [batch]; {_flattened(labels)}. "
            f"Received: {labels.dtype.name} of shape {labels.shape}"
        )
    if not images.shape[:1].is_compatible_with(labels.shape):
        raise ValueError(f"images and labels differ in number. Received: {images.shape[0]} and {labels.shape[0]}")


def check_channels_last(images: tf.Tensor) -> None:
    """Raises ValueError for images that seem to be [batch, channels, height, width].

    For algorithms that treat the axes of an image in different ways.
    """
    _, height, width, channels = images.shape
    if height in (1, 3) and width == channels and channels > 4:
        raise ValueError(
            "images must have shape [batch, height, width, channels]. These look like channels first: transpose them, "
            "and give the network a transposition back, as in lambda x: model(tf.transpose(x, [0, 3, 1, 2])). "
            f"Received: {tuple(images.shape)}"
        )


def _flattened(labels):
    """Returns a hint how to convert labels to integers [batch]."""
    if labels.shape.rank == 2 and labels.shape[-1] == 1:
        return "of a column [batch, 1] pass tf.cast(labels[:, 0], tf.int32)"
    if labels.shape.rank == 2:
        return "for one-hot labels pass tf.argmax(labels, -1)"
    return "for whole numbers of another type pass tf.cast(labels, tf.int32)"


def check_values(images: tf.Tensor, bounds: tuple[Any, Any], are_levels: bool = False) -> None:
    """Raises ValueError for images outside the bounds; warns of images in 0..1 if the bounds are much larger.

    Args:
        images: float32 [batch, height, width, channels], eager.
        bounds: smallest and largest valid value of a pixel.
        are_levels: whether the images came as integers. For integers there is no warning: they are levels in 0..255.
    """
    fault = _range_fault(images, bounds)
    if fault:
        raise ValueError(fault)
    if not are_levels and looks_scaled(images, bounds):
        warnings.warn(_scaled_text(images, bounds), stacklevel=3)


def _range_fault(images, bounds):
    """Returns what is wrong with the values of the images, or None."""
    if not bool(tf.reduce_all(tf.math.is_finite(images))):
        return "images must be finite. Received: NaN or infinite values"
    if not bool(_in_bounds(images, bounds)):
        return (
            f"images must lie within the bounds of the attack, {bounds}; another range is said by the ball, "
            f"as in LinfBall(4 / 255, bounds=(0, 1)). Received values in {_reach(images)}"
        )
    return None


def check_logits(logits_fn: LogitsFunction, images: tf.Tensor, labels: tf.Tensor) -> None:
    """Checks a network on a few images.

    Args:
        logits_fn: maps images to logits [batch, classes].
        images: [batch, height, width, channels]; the first four are used.
        labels: int [batch].

    Raises:
        ValueError: if the network returns another shape than [batch, classes], or probabilities instead of logits, or
            if a label is not one of its classes.
    """
    if images.shape[0] == 0:
        return
    some = tf.cast(images[:_SOME], tf.float32)
    losses.check_range(labels, gradients.logits(logits_fn, some).shape[-1])
    kind = losses.probabilities(gradients.inference(logits_fn), some)
    if kind:
        raise ValueError(
            f"logits_fn returns probabilities ({_SIGNS[kind]}): a {kind} hides the gradient from an attack and makes "
            "any network look robust. Pass a model that ends in logits: build it with classifier_activation=None, or "
            "take keras_sat.models.without_softmax(model)."
        )


def check_batch(images: tf.Tensor, labels: tf.Tensor, ball: threats.Ball | None, bounds: tuple[Any, Any]) -> None:
    """Checks the first batch of a training or an evaluation, outside any graph: XLA drops the checks inside a graph.

    Args:
        images: eager [batch, height, width, channels]. Images of an integer type are never treated as images in 0..1.
        labels: eager int [batch].
        ball: threat model of the attack; None for noise.
        bounds: smallest and largest valid value of a pixel.

    Raises:
        BadBatch: for images that are not finite, outside the bounds, or in 0..1 although the bounds are 0..255. (If
            all values are 0 or 1, the images may be nearly black. Then there is only a warning.)
        ValueError: for another shape.
    """
    check_shapes(tf.cast(images, tf.float32), labels, ball)
    try:
        check_range(images, bounds)
    except ValueError as error:
        raise BadBatch(None, None, f"keras_sat: {error}") from None


def check_range(images: tf.Tensor, bounds: tuple[Any, Any]) -> None:
    """Raises ValueError for the values for which `check_batch` raises BadBatch; warns where it warns."""
    pixels = tf.cast(images, tf.float32)
    fault = _range_fault(pixels, bounds)
    if fault is None and images.dtype.is_floating and looks_scaled(pixels, bounds):
        if bool(tf.reduce_any(pixels != tf.round(pixels))):
            fault = _scaled_text(pixels, bounds)
        else:  # images of the two values 0 and 1, or nearly black images
            warnings.warn(f"Unless these images are nearly black: {_scaled_text(pixels, bounds)}", stacklevel=3)
    if fault:
        raise ValueError(fault)


def assert_labels(labels: tf.Tensor, logits: tf.Tensor) -> tf.Operation:
    """Returns an operation that fails for labels outside the classes. XLA drops it."""
    classes = logits.shape[-1]
    message = f"keras_sat: labels must lie in 0..{classes - 1}. Received values from, to:"
    return tf.debugging.Assert(
        tf.reduce_all((labels >= 0) & (labels < classes)), [message, tf.reduce_min(labels), tf.reduce_max(labels)]
    )


def check_untargeted(attack: "Attack") -> None:
    """Raises ValueError for a targeted attack, which would lead the images to their own labels here."""
    if attack.targeted:
        raise ValueError(
            f"{attack} is targeted: it leads images to the labels it is given. Here they are the images' own, and "
            "every network would look robust. Take targeted=False; or name other classes: evaluate(..., targets=...)."
        )


class BadBatch(tf.errors.InvalidArgumentError, ValueError):
    """The error for images that do not fit the attack.

    It has two base classes. For the first batch, callers expect a ValueError. For later batches, the graph raises
    InvalidArgumentError.
    """


def _scaled_text(images, bounds):
    return (
        f"The images reach from 0 to 1, the bounds of the attack are {bounds}. For such images give the ball "
        f"their range: LinfBall(4 / 255, bounds=(0, 1)). Received values in {_reach(images)}"
    )


def _reach(images):
    return f"[{float(tf.reduce_min(images)):g}, {float(tf.reduce_max(images)):g}]"


def looks_scaled(images: tf.Tensor, bounds: tuple[Any, Any]) -> bool:
    """Returns whether images seem to be in 0..1 although the bounds are 0..255 or similar.

    False for images that are all black (0), and for a lower bound other than 0: then the user chose the bounds for
    standardised images.
    """
    low, high = (np.broadcast_to(bound, np.shape(bound) or (1,)) for bound in bounds)
    if np.min(low) != 0 or np.max(low) != 0 or np.min(high) <= 2:
        return False
    return 0 < float(tf.reduce_max(images)) <= 1


def _in_bounds(images, bounds):
    low, high = map(np.asarray, bounds)
    slack = _SLACK * (high - low)
    return tf.reduce_all((images >= low - slack) & (images <= high + slack))


def assert_in_bounds(images: tf.Tensor, bounds: tuple[Any, Any]) -> tf.Operation:
    """Returns an operation that fails for images outside the bounds or NaN. XLA drops it."""
    message = f"keras_sat: images must lie within the bounds of the attack, {bounds}. Received values from, to:"
    return tf.debugging.Assert(_in_bounds(images, bounds), [message, tf.reduce_min(images), tf.reduce_max(images)])
