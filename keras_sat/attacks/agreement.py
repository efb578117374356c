"""Does a copy of a network compute what the network computes? A copy is used only after this comparison."""

import warnings

import numpy as np
import tensorflow as tf

from keras_sat.attacks import gradients

IMAGES = 8  # of a batch, to compare on
# The largest difference of the logits, as a share of their range, and of input gradients, as a share of their length.
# Measured on ResNets, EfficientNets, MobileNetV2 and DenseNet: folding 1e-6 and 2e-5, bfloat16 0.01 and 0.02 to 0.6. An
# attack in low precision needs no more than gradients that point alike: the network itself judges what it finds.
EXACT, LOW = (1e-3, 0.02), (0.05, 0.8)


def difference(logits_fn, copy, images, tolerance=EXACT):
    """Compares two networks on a batch: their logits, and the gradients of one sum of their logits by the images.

    The gradient is that of a fixed random combination of the logits, not of a loss: it does not vanish where a loss is
    saturated. Of the examples' gradients the median counts: at a kink of ReLU, rounding alone may turn a single one.

    Args:
        logits_fn: the original, a function from images to logits.
        copy: what is to be used in its place.
        images: [batch, height, width, channels], real ones; the first `IMAGES` are taken.
        tolerance: `EXACT`, or `LOW` where one computes in low precision.

    Returns:
        None where they agree, or in words how they differ.
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


def holds(logits_fn, copy, images, tolerance, name, what):
    """Says whether a copy may take the place of the original; where not, warns that the original is attacked.

    Args:
        logits_fn, copy, images, tolerance: as of `difference`.
        name: of the network, for the warning.
        what: the copy is, "with folded batch norms", say.
    """
    if is_random(logits_fn, images):
        reason = "its output is random, which a copy cannot be compared with"
    elif is_constant(logits_fn, images):
        reason = "its logits do not change with the images yet, so that no copy can be compared with it"
    else:
        try:
            found = difference(logits_fn, copy, images, tolerance)
        except Exception as error:  # whatever a layer raises that was not copied whole
            found = f"an error: {str(error).strip().splitlines()[0]}"
        if found is None:
            return True
        reason = (
            f"its copy {what} has {found}. A layer whose get_config leaves out an argument, or that computes something "
            "when it is built, makes such a copy"
        )
        if tolerance is LOW:
            reason += "; or the network loses too much in low precision"
    warnings.warn(f"{name} is attacked itself, which takes longer: {reason}.", stacklevel=2)
    return False


def is_constant(logits_fn, images):
    """Says whether the logits have an input gradient that is 0: those of a last layer that begins with zeros, say."""
    _, gradient = _answer(logits_fn, tf.cast(images[:IMAGES], tf.float32))
    return gradient is not None and not np.any(gradient)


def comparable(logits_fn, images):
    """Returns the images for which a network has finite logits; None where there are none, or its output is random."""
    if is_random(logits_fn, images):
        return None
    kept = images[np.isfinite(np.array(gradients.logits(logits_fn, images))).all(axis=1)]
    return kept if len(kept) else None


def is_random(logits_fn, images):
    """Says whether a network answers the same images differently when it is asked again."""
    images = tf.cast(images[:IMAGES], tf.float32)
    one, other = (np.array(gradients.logits(logits_fn, images)) for _ in range(2))
    return not np.allclose(one, other, rtol=0, atol=1e-4 * _range(one), equal_nan=True)


def _answer(function, images):
    """Returns logits and input gradient, arrays; None for the gradient of a network that has none."""
    weights = np.random.default_rng(0).normal(size=10_000).astype(np.float32)

    def combination(_, logits):
        return tf.linalg.matvec(logits, np.resize(weights, logits.shape[-1]))

    try:
        labels = tf.zeros(len(images), tf.int32)
        _, logits, gradient = gradients.value_and_gradient(function, combination, images, labels)
    except (ValueError, LookupError):  # no gradient: an operation has none, or the logits do not depend on the images
        return np.array(gradients.logits(function, images)), None
    return np.array(logits), np.array(gradient)


def _range(logits):
    finite = logits[np.isfinite(logits)]
    return max(float(np.ptp(finite)) if finite.size else 0.0, 1e-6)


def _apart(one, other):
    """Returns how far the two gradients of each example are apart, as a share of the longer one, [batch]."""
    one, other = (np.nan_to_num(gradient.reshape(len(gradient), -1).astype(np.float64)) for gradient in (one, other))
    longer = np.maximum(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    return np.linalg.norm(one - other, axis=1) / np.where(longer > 0, longer, 1.0)
