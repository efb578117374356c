"""Per-example losses that attacks ascend: the larger, the closer to misclassified. And what is right or wrong.

A loss takes integer labels of shape [batch] and logits of shape [batch, classes], and returns float32 [batch].
"""

import inspect

import keras
import numpy as np
import tensorflow as tf


def check_takes_logits(loss) -> None:
    """Raises ValueError for a Keras loss with from_logits=False: of logits its values and gradients would be wrong."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        takes = loss.get_config().get("from_logits", True)
    else:
        parameters = inspect.signature(loss).parameters if callable(loss) else {}
        takes = parameters["from_logits"].default if "from_logits" in parameters else True
    if takes is False:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ValueError(
            f"The model returns logits, and the loss {name} takes probabilities: say from_logits=True, as in "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )


def hard_labels(y, classes=None):
    """Returns int32 labels [batch] from integer labels [batch] or [batch, 1], or from rows [batch, classes].

    A row holds the probabilities of the classes: one-hot, smoothed, or mixed by MixUp. Its largest is the label.

    Args:
        y: the labels.
        classes: how many the network has, where that is known.

    Raises:
        ValueError: for labels of another shape or type, or of other classes, numbers that are not whole, or rows that
            do not sum to 1, as those of an image with several labels. (Inside a tf.function, for the last two:
            tf.errors.InvalidArgumentError. XLA leaves these checks out.)
    """
    shape = getattr(y, "shape", None)
    if shape is None or len(shape) not in (1, 2):
        raise ValueError(
            "Adversarial examples need labels: integers [batch] or one-hot [batch, classes], as in fit(x, y) or a "
            f"dataset of (images, labels). Received: {shape or y}"
        )
    y = tf.convert_to_tensor(y)
    if not (y.dtype.is_integer or y.dtype.is_floating):
        raise ValueError(
            "Labels must be integers, the numbers of the classes 0, 1, 2, ...; turn names to numbers, by their place "
            f"in the sorted list of names, say. Received labels of type {y.dtype.name}"
        )
    is_row = y.shape.rank == 2 and y.shape[-1] != 1
    if is_row and classes is not None and y.shape[-1] != classes:
        raise ValueError(f"One-hot labels must have {classes} columns, one for each class. Received: {y.shape[-1]}")
    y = y if is_row or y.shape.rank == 1 else y[:, 0]
    is_good = _sums_to_one(y) if is_row else _is_whole(y)
    expected = _ROWS if is_row else _WHOLE
    if not tf.executing_eagerly():
        with tf.control_dependencies([tf.debugging.Assert(is_good, [f"keras_sat: {expected}"])]):
            y = tf.identity(y)
    elif not bool(is_good):
        raise ValueError(f"{expected} Received, among others: {_first_fault(y, is_row)}")
    elif not is_row and classes is not None:
        check_range(y, classes)
    return tf.argmax(y, axis=-1, output_type=tf.int32) if is_row else tf.cast(y, tf.int32)


def check_range(labels, classes):
    """Raises ValueError for integer labels [batch] outside of 0..classes - 1."""
    low, high = (int(reduce(labels)) if len(labels) else 0 for reduce in (tf.reduce_min, tf.reduce_max))
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}. Received values in [{low}, {high}]")


_ROWS = (
    "Labels of shape [batch, classes] must be one-hot, or probabilities that sum to 1: an image has one label here. "
    "Images with several labels (multi-hot) are not supported."
)
_WHOLE = "Labels of shape [batch] must be whole numbers, those of the classes 0, 1, 2, ..."


def _sums_to_one(rows):
    rows = tf.cast(rows, tf.float32)
    sums = tf.abs(tf.reduce_sum(rows, axis=-1) - 1) <= 1e-2  # float16's rounding, over a thousand classes
    return tf.reduce_all(sums) & tf.reduce_all(rows >= 0)


def _is_whole(y):
    return tf.reduce_all(y == tf.round(y)) if y.dtype.is_floating else tf.constant(True)


def _first_fault(y, is_row):
    good = np.array([bool(_sums_to_one(row[None]) if is_row else _is_whole(row)) for row in y])
    return np.array(y)[~good][0].tolist()


def is_finite(logits):
    """Says for each example, bool [batch], whether all of its logits are finite numbers."""
    return tf.reduce_all(tf.math.is_finite(logits), axis=-1)


def is_correct(labels, logits):
    """Says for each example, bool [batch], whether the label has the largest logit, and all logits are finite.

    A network that answers NaN or infinity has not classified the image. (argmax would take NaN for class 0.)
    """
    return is_finite(logits) & (tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels)


def is_broken(labels, logits):
    """Says for each example, bool [batch], whether an attack is done: margin > 0, or a logit that is not finite."""
    return ~is_finite(logits) | (margin(labels, logits) > 0)


def two_classes(outputs):
    """Returns logits [batch, classes]; of a network with one logit z, for classes 0 and 1, the logits [-z, z]."""
    return tf.concat([-outputs, outputs], axis=-1) if outputs.shape[-1] == 1 else outputs


def probabilities(function, images):
    """Says whether a network returns probabilities in place of logits: "softmax", "sigmoid", or None.

    It is judged by what it returns. Outputs that are not negative and sum to 1, or to another number that is the same
    for different images, are those of a softmax. Outputs that stay in 0..1, also for images a hundred times as bright
    and dark, are those of a sigmoid.

    Args:
        function: maps images to outputs [batch, classes].
        images: float32 [batch, ...], some.
    """
    outputs = tf.cast(function(images), tf.float32)
    if outputs.shape[-1] > 1 and bool(_sums_to_one(outputs) | _sums_alike(outputs)):
        return "softmax"
    if not bool(_in_unit_interval(outputs) & tf.reduce_any(outputs != 0)):  # all 0: a head that begins with zeros
        return None
    stretched = tf.cast(function(100 * (images - tf.reduce_mean(images))), tf.float32)
    stretched = tf.where(tf.math.is_finite(stretched), stretched, 0.0)  # float16 may overflow on the way
    return "sigmoid" if bool(_in_unit_interval(stretched)) else None


def _sums_alike(outputs):
    """Says whether different rows, none of them negative, have one sum: percents, say."""
    sums = tf.reduce_sum(outputs, axis=-1)
    alike = tf.reduce_max(sums) - tf.reduce_min(sums) <= 1e-3 * tf.reduce_max(sums)
    differ = tf.reduce_any(tf.abs(outputs - outputs[:1]) > 1e-2 * tf.reduce_max(sums))
    return tf.reduce_all(outputs >= 0) & alike & differ


def _in_unit_interval(outputs):
    return tf.reduce_all((outputs >= 0) & (outputs <= 1))


def cross_entropy(labels, logits):
    """Returns -log softmax(logits)[label], with the hard label."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def kl(reference, logits):
    """Returns KL(p || q) = sum_k p_k (log p_k - log q_k) of p = softmax(reference) and q = softmax(logits), [batch]."""
    log_p, log_q = tf.nn.log_softmax(reference), tf.nn.log_softmax(logits)
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def margin(labels, logits):
    """Returns max_{k != label} logits[k] - logits[label]: positive exactly where the label is not the prediction."""
    others = tf.reduce_max(without_label(labels, logits), axis=-1)
    return others - tf.gather(logits, labels, axis=-1, batch_dims=1)


def without_label(labels, logits):
    """Returns the logits with that of the label replaced by the smallest number there is."""
    is_label = tf.one_hot(labels, tf.shape(logits)[-1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.where(is_label, logits.dtype.min, logits)


def dlr(labels, logits):
    """Returns the difference of logits ratio, margin / (z_1 - z_3), where z_1 >= z_2 >= ... are the sorted logits.

    It does not change when the logits are shifted or scaled. Croce and Hein 2020, arXiv:2003.01690, equation 6.

    Raises:
        ValueError: for fewer than 3 classes.
    """
    largest = _largest(logits, 3)
    return margin(labels, logits) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr(labels, targets, logits):
    """Returns (logits[target] - logits[label]) / (z_1 - (z_3 + z_4) / 2), z as in `dlr`; equation 7 of the same paper.

    Raises:
        ValueError: for fewer than 4 classes.
    """
    largest = _largest(logits, 4)
    difference = targeted_margin(labels, targets, logits)
    return difference / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + _TINY)


def targeted_margin(labels, targets, logits):
    """Returns logits[target] - logits[label]: positive where the target is preferred to the label."""
    chosen = tf.gather(logits, tf.stack([targets, labels], axis=1), axis=-1, batch_dims=1)
    return chosen[:, 0] - chosen[:, 1]


_TINY = 1e-12  # for logits that are all equal


def _largest(logits, count):
    if logits.shape[-1] < count:
        raise ValueError(f"This loss needs at least {count} classes. Received: {logits.shape[-1]}")
    return tf.math.top_k(logits, count).values
