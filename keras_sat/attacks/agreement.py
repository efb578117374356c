"""Compares a copy of a network with the network itself. A copy is used only after this comparison."""

import warnings

import numpy as np
import tensorflow as tf

from keras_sat.attacks import gradients
from keras_sat.typing import LogitsFunction

IMAGES = 8  # number of images of a batch on which networks are compared
# The largest allowed difference of logits, as a share of their range, and of input gradients, as a share of their
# length. Measured on ResNets, EfficientNets, MobileNetV2 and DenseNet: folding 1e-6 and 2e-5, bfloat16 0.01 and 0.02 to
# 0.6. For an attack in low precision, similar directions of gradients suffice: the network itself judges its results.
EXACT, LOW = (1e-3, 0.02), (0.05, 0.8)


def difference(
    logits_fn: LogitsFunction, copy: LogitsFunction, images: tf.Tensor, tolerance: tuple[float, float] = EXACT
) -> str | None:
    """Compares the logits and the input gradients of two networks on a batch.

    The gradient is taken of a fixed random combination of the logits. Unlike the gradient of a loss, it does not vanish
    where the loss is saturated. The median over the examples is compared, because at a kink of ReLU rounding alone may
    change the gradient of a single example.

    Args:
        logits_fn: the original, a function from images to logits.
        copy: the function that is to replace it.
        images: real images [batch, height, width, channels]; the first `IMAGES` are used.
        tolerance: `EXACT`, or `LOW` if one of the two computes in low precision.

    Returns:
        None if they agree, otherwise a description of the difference.
    """
    images = tf.cast(images[:IMAGES], tf.float32)
    (own, own_gradient), (theirs, gradient) = (_answer(function, images) for function in (logits_fn, copy))
    if own.shape != theirs.shape:
        return f"logits of shape {theirs.shape} in place of {own.shape}"
    if not np.array_equal(np.isfinite(own), np.isfinite(theirs)):
        return "logits that are NaN or infinite for other images than the network's"
    apart = np.nanmax(np.abs(np.where(np.isfinite(own), own - theirs, 0.0)), initial=0.0) / _range(own)
    if apart > tolerance[0]:
        return f"logits that differ by {apart:.2g} of their range"
    if (own_gradient is None) != (gradient is None):
        return "no input gradient" if gradient is None else "an input gradient where there is none"
    turned = 0.0 if gradient is None else float(np.median(_apart(own_gradient, gradient)))
    return None if turned <= tolerance[1] else f"input gradients that differ by {turned:.2g} of their length"


def holds(
    logits_fn: LogitsFunction,
    copy: LogitsFunction,
    images: tf.Tensor,
    tolerance: tuple[float, float],
    name: str,
    what: str,
) -> bool:
    """Returns whether a copy may replace the original. If not, warns that the original is attacked.

    Args:
        logits_fn: See `difference`.
        copy: See `difference`.
        images: See `difference`.
        tolerance: See `difference`.
        name: name of the network, for the warning.
        what: description of the copy, for the warning, such as "with folded batch norms".
    """
    if is_random(logits_fn, images):
        reason = "its output is random, which a copy cannot be compared with"
    elif is_constant(logits_fn, images):
        reason = "its logits do not change with the images yet, so that no copy can be compared with it"
    else:
        try:
            fault = difference(logits_fn, copy, images, tolerance)
        except Exception as error:  # an incomplete copy of a layer may raise anything
            fault = f"an error: {str(error).strip().splitlines()[0]}"
        if fault is None:
            return True
        reason = (
            f"its copy {what} has {fault}. A layer whose get_config leaves out an argument, or that computes something "
            "when it is built, makes such a copy"
        )
        if tolerance is LOW:
            reason += "; or the network loses too much in low precision"
    warnings.warn(f"{name} is attacked itself, not a faster copy of it: {reason}.", stacklevel=2)
    return False


def is_constant(logits_fn: LogitsFunction, images: tf.Tensor) -> bool:
    """Returns whether the input gradient of the logits is 0, for example because the last layer starts with zeros."""
    _, gradient = _answer(logits_fn, tf.cast(images[:IMAGES], tf.float32))
    return gradient is not None and not np.any(gradient)


def comparable(logits_fn: LogitsFunction, images: tf.Tensor) -> tf.Tensor | None:
    """Returns the images with finite logits; None if there are none, or if the output of the network is random."""
    if is_random(logits_fn, images):
        return None
    kept = images[np.isfinite(np.array(gradients.logits(logits_fn, images))).all(axis=1)]
    return kept if len(kept) else None


def is_random(logits_fn: LogitsFunction, images: tf.Tensor) -> bool:
    """Returns whether two calls with the same images return different logits."""
    images = tf.cast(images[:IMAGES], tf.float32)
    one, other = (np.array(gradients.logits(logits_fn, images)) for _ in range(2))
    return not np.allclose(one, other, rtol=0, atol=1e-4 * _range(one), equal_nan=True)


def _answer(function, images):
    """Returns logits and input gradient as arrays; None in place of the gradient if there is none."""
    weights = np.random.default_rng(0).normal(size=10_000).astype(np.float32)

    def combination(_, logits):
        return tf.linalg.matvec(logits, np.resize(weights, logits.shape[-1]))

    try:
        labels = tf.zeros(len(images), tf.int32)
        _, logits, gradient = gradients.value_and_gradient(function, combination, images, labels)
    except (ValueError, LookupError):  # an operation has no gradient, or the logits do not depend on the images
        return np.array(gradients.logits(function, images)), None
    return np.array(logits), np.array(gradient)


def _range(logits):
    finite = logits[np.isfinite(logits)]
    return max(float(np.ptp(finite)) if finite.size else 0.0, 1e-6)


def _apart(one, other):
    """Returns the distance of the two gradients of each example, as a share of the longer one, [batch]."""
    one, other = (np.nan_to_num(gradient.reshape(len(gradient), -1).astype(np.float64)) for gradient in (one, other))
    longer = np.maximum(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    return np.linalg.norm(one - other, axis=1) / np.where(longer > 0, longer, 1.0)
