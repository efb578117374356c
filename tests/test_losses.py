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


def test_dlr_by_hand():
    logits = tf.constant([[3.0, 1, 0, -5], [1, 3, 0, -5], [2, 2, 2, 2]])
    # (z_max of the others - z_label) / (z_1 - z_3)
    np.testing.assert_allclose(losses.dlr([0, 0, 1], logits), [-2 / 3, 2 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(losses.dlr([0, 0, 1], 7 * logits + 100), [-2 / 3, 2 / 3, 0], atol=1e-5)


def test_targeted_dlr_by_hand():
    logits = tf.constant([[3.0, 1, 0, -5], [1, 3, 0, -5]])
    # (z_target - z_label) / (z_1 - (z_3 + z_4) / 2) = (1 - 3) / (3 + 2.5) and (0 - 1) / 5.5
    np.testing.assert_allclose(losses.targeted_dlr([0, 0], [1, 2], logits), [-2 / 5.5, -1 / 5.5], rtol=1e-6)
    np.testing.assert_allclose(losses.targeted_margin([0, 0], [1, 2], logits), [-2, -1])


def test_dlr_needs_classes():
    with pytest.raises(ValueError, match="at least 3 classes. Received: 2"):
        losses.dlr([0], tf.constant([[1.0, 2]]))
    with pytest.raises(ValueError, match="at least 4 classes. Received: 3"):
        losses.targeted_dlr([0], [1], tf.constant([[1.0, 2, 3]]))
