"""Per-example losses that attacks ascend: the larger, the closer to misclassified.

Each takes integer labels of shape [batch] and logits of shape [batch, classes], and returns float32 [batch].
"""

import tensorflow as tf


def cross_entropy(labels, logits):
    """Returns -log softmax(logits)[label], with the hard label."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def margin(labels, logits):
    """Returns max_{k != label} logits[k] - logits[label]: positive exactly where the label is not the prediction."""
    is_label = tf.one_hot(labels, tf.shape(logits)[-1], on_value=True, off_value=False, dtype=tf.bool)
    others = tf.reduce_max(tf.where(is_label, logits.dtype.min, logits), axis=-1)
    return others - tf.gather(logits, labels, axis=-1, batch_dims=1)
