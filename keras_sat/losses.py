"""Labels, logits and correct answers, and the losses that attacks ascend.

A loss is a function of integer labels [batch] and float32 logits [batch, classes]. It returns float32 [batch]. A larger
loss means that the example is closer to being misclassified.
"""

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sat.typing import Array, LogitsFunction

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")  # reductions of Keras


def check_takes_logits(loss: Any) -> None:
    """Raises ValueError for a Keras loss with from_logits=False, whose values and gradients are wrong for logits.

    Args:
        loss: a loss as in `compile`: an object, a function or a name, or a list or dict of them.
    """
    for one in tf.nest.flatten(loss):
        _check_takes_logits(one)


def _check_takes_logits(loss):
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


def check_is_mean(loss: Any, added: Any) -> None:
    """Raises ValueError for a Keras loss that is no mean over the batch, and to which a mean is added.

    Args:
        loss: a loss as in `compile`: an object, a function or a name, or a list or dict of them.
        added: what is added to it, for the message.
    """
    for one in tf.nest.flatten(loss):
        if isinstance(one, keras.losses.Loss) and one.reduction not in _MEANS:
            raise ValueError(
                f"{added!r} adds a mean over the batch to the loss, which must be a mean too: "
                f'say reduction="sum_over_batch_size". Received: {type(one).__name__}(reduction={one.reduction!r})'
            )


def hard_labels(y: Any, classes: int | None = None) -> tf.Tensor:
    """Returns integer labels, int32 [batch].

    Args:
        y: labels [batch] or [batch, 1], which are whole numbers, or rows of probabilities [batch, classes]: one-hot,
            smoothed, or mixed by MixUp. The label of a row is its largest entry.
        classes: number of classes of the network, if known.

    Raises:
        ValueError: for labels of another shape or type; labels not in 0..classes - 1; numbers that are not whole; or
            rows that do not sum to 1, such as those of images with several labels. In a tf.function, the range is not
            checked, and the last two raise tf.errors.InvalidArgumentError. XLA drops the last two checks.
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


def check_range(labels: Array, classes: int) -> None:
    """Raises ValueError for integer labels [batch] that are not all in 0..classes - 1."""
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
    sums = tf.abs(tf.reduce_sum(rows, axis=-1) - 1) <= 1e-2  # rounding of float16, for a thousand classes
    return tf.reduce_all(sums) & tf.reduce_all(rows >= 0)


def _is_whole(y):
    return tf.reduce_all(y == tf.round(y)) if y.dtype.is_floating else tf.constant(True)


def _first_fault(y, is_row):
    good = np.array([bool(_sums_to_one(row[None]) if is_row else _is_whole(row)) for row in y])
    return np.array(y)[~good][0].tolist()


def label_rows(y: Any, classes: int) -> tf.Tensor:
    """Returns labels as probabilities, float32 [batch, classes]: the rows of `y`, or one-hot rows of integer labels.

    Args:
        y: labels as in `hard_labels`, which checks them.
        classes: number of classes.
    """
    y = tf.convert_to_tensor(y)
    is_row = y.shape.rank == 2 and y.shape[-1] != 1
    return tf.cast(y, tf.float32) if is_row else tf.one_hot(hard_labels(y), classes)


def is_finite(logits: Array) -> tf.Tensor:
    """Returns bool [batch]: whether all logits of an example are finite."""
    return tf.reduce_all(tf.math.is_finite(logits), axis=-1)


def is_correct(labels: Array, logits: Array) -> tf.Tensor:
    """Returns bool [batch]: whether the label has the largest logit, and all logits are finite.

    An output with NaN or infinity is not a correct answer. (argmax alone would return class 0 for NaN.)
    """
    return is_finite(logits) & (tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels)


def is_broken(labels: Array, logits: Array) -> tf.Tensor:
    """Returns bool [batch]: whether an attack has succeeded. The margin is > 0, or a logit is not finite."""
    return ~is_finite(logits) | (margin(labels, logits) > 0)


def two_classes(outputs: tf.Tensor) -> tf.Tensor:
    """Returns logits [batch, classes] of a network's outputs. One output z [batch, 1] becomes two logits [-z, z]."""
    return tf.concat([-outputs, outputs], axis=-1) if outputs.shape[-1] == 1 else outputs


def probabilities(function: LogitsFunction, images: Array) -> str | None:
    """Returns "softmax" or "sigmoid" if a network seems to return such probabilities, and None if it returns logits.

    The function looks at the outputs for some images. Outputs of a softmax are not negative, and sum to 1, or to
    another constant (to 100 for percent). Outputs of a sigmoid stay in 0..1, even for images with a contrast that is a
    hundred times as large.

    Args:
        function: the network, a function from images to outputs [batch, classes].
        images: float32 [batch, height, width, channels], on which the network is called.
    """
    outputs = tf.cast(function(images), tf.float32)
    if outputs.shape[-1] > 1 and bool(_sums_to_one(outputs) | _sums_alike(outputs)):
        return "softmax"
    if not bool(_in_unit_interval(outputs) & tf.reduce_any(outputs != 0)):  # 0: an initial head of zeros
        return None
    stretched = tf.cast(function(100 * (images - tf.reduce_mean(images))), tf.float32)
    stretched = tf.where(tf.math.is_finite(stretched), stretched, 0.0)  # float16 may overflow inside the network
    return "sigmoid" if bool(_in_unit_interval(stretched)) else None


def _sums_alike(outputs):
    """Returns whether the rows differ but have the same sum, and no entry is negative. An example is percent."""
    sums = tf.reduce_sum(outputs, axis=-1)
    alike = tf.reduce_max(sums) - tf.reduce_min(sums) <= 1e-3 * tf.reduce_max(sums)
    differ = tf.reduce_any(tf.abs(outputs - outputs[:1]) > 1e-2 * tf.reduce_max(sums))
    return tf.reduce_all(outputs >= 0) & alike & differ


def _in_unit_interval(outputs):
    return tf.reduce_all((outputs >= 0) & (outputs <= 1))


def cross_entropy(labels: Array, logits: Array) -> tf.Tensor:
    """Returns the cross entropy -log softmax(logits)[label], [batch]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def log_cross_entropy(labels: Array, logits: Array) -> tf.Tensor:
    """Returns the logarithm of the cross entropy, [batch]: what attacks ascend by default.

        u = log sum_{k != label} exp(logits_k) - logits_label,    log(softplus(u)), and u itself for u < -15

    For each example, its gradient is the gradient of the cross entropy, divided by the cross entropy. So an attack that
    uses the sign or the direction of the gradient makes the same steps. But where the label's logit leads by some tens,
    the gradient of the cross entropy rounds to 0, in float32 and sooner in float16, and the attack stands still. This
    gradient does not vanish.
    """
    u = tf.reduce_logsumexp(without_label(labels, logits), axis=-1) - tf.gather(logits, labels, axis=-1, batch_dims=1)
    # log(softplus(u)) = u - exp(u) / 2 + ...; at -15, the difference is below the rounding error of u.
    return tf.where(u < _LINEAR, u, tf.math.log(tf.math.softplus(tf.maximum(u, _LINEAR))))


_LINEAR = -15.0


def soft_cross_entropy(rows: Array, logits: Array) -> tf.Tensor:
    """Returns the cross entropy -sum_k rows_k log softmax(logits)_k, [batch].

    Args:
        rows: probabilities of the classes, float32 [batch, classes], see `label_rows`.
        logits: float32 [batch, classes].
    """
    return tf.nn.softmax_cross_entropy_with_logits(labels=rows, logits=logits)


def kl(reference: Array, logits: Array) -> tf.Tensor:
    """Returns the Kullback-Leibler divergence sum_k p_k (log p_k - log q_k), [batch].

    Here p = softmax(reference) and q = softmax(logits); both arguments have shape [batch, classes].
    """
    log_p, log_q = tf.nn.log_softmax(reference), tf.nn.log_softmax(logits)
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def margin(labels: Array, logits: Array) -> tf.Tensor:
    """Returns max_{k != label} logits[k] - logits[label], [batch]. It is > 0 where the example is misclassified."""
    others = tf.reduce_max(without_label(labels, logits), axis=-1)
    return others - tf.gather(logits, labels, axis=-1, batch_dims=1)


def without_label(labels: Array, logits: tf.Tensor) -> tf.Tensor:
    """Returns the logits [batch, classes] with the logit of the label replaced by the smallest number of the dtype."""
    is_label = tf.one_hot(labels, tf.shape(logits)[-1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.where(is_label, logits.dtype.min, logits)


def dlr(labels: Array, logits: Array) -> tf.Tensor:
    """Returns the difference of logits ratio, margin / (z_1 - z_3), [batch]; z_1 >= z_2 >= ... are the sorted logits.

    It does not change if all logits are shifted or multiplied by a positive number. Source: Croce and Hein 2020,
    arXiv:2003.01690, equation 6.

    Raises:
        ValueError: for fewer than 3 classes.
    """
    largest = _largest(logits, 3)
    return margin(labels, logits) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr(labels: Array, targets: Array, logits: Array) -> tf.Tensor:
    """Returns (logits[target] - logits[label]) / (z_1 - (z_3 + z_4) / 2), [batch], with z as in `dlr`.

    Source: Croce and Hein 2020, arXiv:2003.01690, equation 7.

    Args:
        labels, targets: integers [batch], the labels and the classes that the attack aims at.
        logits: [batch, classes].

    Raises:
        ValueError: for fewer than 4 classes.
    """
    largest = _largest(logits, 4)
    difference = targeted_margin(labels, targets, logits)
    return difference / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + _TINY)


def targeted_margin(labels: Array, targets: Array, logits: Array) -> tf.Tensor:
    """Returns logits[target] - logits[label], [batch]. See `targeted_dlr` for the arguments."""
    chosen = tf.gather(logits, tf.stack([targets, labels], axis=1), axis=-1, batch_dims=1)
    return chosen[:, 0] - chosen[:, 1]


_TINY = 1e-12  # avoids 0 / 0 where all logits are equal


def _largest(logits, count):
    if logits.shape[-1] < count:
        raise ValueError(f"This loss needs at least {count} classes. Received: {logits.shape[-1]}")
    return tf.math.top_k(logits, count).values
