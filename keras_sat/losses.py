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


def margin(labels, logits):
    """Returns max_{k != label} logits[k] - logits[label]: positive exactly where the label is not the prediction."""
    is_label = tf.one_hot(labels, tf.shape(logits)[-1], on_value=True, off_value=False, dtype=tf.bool)
    others = tf.reduce_max(tf.where(is_label, logits.dtype.min, logits), axis=-1)
    return others - tf.gather(logits, labels, axis=-1, batch_dims=1)
