import numpy as np
import tensorflow as tf

from keras_sat.attacks import judging


def test_a_judgement_by_hand():
    logits = tf.constant([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [float("nan"), 1.0, 0.0], [0.0, float("inf"), 1.0]])
    judgement = judging.judge(lambda _: logits, tf.zeros((4, 2, 2, 1)), tf.constant([1, 0, 1, 1]))
    np.testing.assert_array_equal(judgement.is_correct, [True, False, False, False])  # not finite: misclassified
    np.testing.assert_array_equal(judgement.margin, [-1, 2, np.nan, np.nan])
    np.testing.assert_array_equal(judgement.predicted[:2], [1, 1])


def test_one_logit_is_two_classes():
    judgement = judging.judge(lambda _: tf.constant([[2.0], [-1.0]]), tf.zeros((2, 2, 2, 1)), tf.constant([1, 1]))
    np.testing.assert_array_equal(judgement.is_correct, [True, False])
    np.testing.assert_array_equal(judgement.margin, [-4, 2])
