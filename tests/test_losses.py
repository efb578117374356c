import numpy as np
import pytest
import tensorflow as tf

from keras_sat import losses

LOGITS = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]], np.float32)
LABELS = np.array([0, 1])


def test_hard_labels():
    for labels in ([1, 0], [[1], [0]], [[0, 1, 0], [0.9, 0.05, 0.05]]):
        np.testing.assert_array_equal(losses.hard_labels(np.array(labels)), [1, 0])
    for wrong in (None, 3, np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="need labels"):
            losses.hard_labels(wrong)


def test_cross_entropy():
    expected = np.log(np.exp(LOGITS).sum(1)) - LOGITS[[0, 1], LABELS]
    np.testing.assert_allclose(losses.cross_entropy(LABELS, LOGITS), expected, rtol=1e-6)


def test_margin_is_positive_where_misclassified():
    np.testing.assert_allclose(losses.margin(LABELS, tf.constant(LOGITS)), [-2.0, 3.0])
