"""Per-example losses that attacks ascend: the larger, the closer to misclassified.

Each takes integer labels of shape [batch] and logits of shape [batch, classes], and returns float32 [batch].
"""

import tensorflow as tf


def hard_labels(y):
    """Returns int32 labels [batch] from integer labels [batch] or [batch, 1], or one-hot ones [batch, classes]."""
    shape = getattr(y, "shape", None)
    if shape is None or len(shape) not in (1, 2):
        raise ValueError(
            "Adversarial examples need labels: integers [batch] or one-hot [batch, classes], as in fit(x, y) or a "
            f"dataset of (images, labels). Received: {shape or y}"
        )
    y = tf.convert_to_tensor(y)
    if y.shape.rank == 2:
        y = tf.argmax(y, axis=-1) if y.shape[-1] != 1 else y[:, 0]
    return tf.cast(y, tf.int32)


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
