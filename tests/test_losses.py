import keras
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


def test_labels_that_are_none():
    several = np.array([[0, 1, 0], [0, 1, 1]])
    for wrong, message in (
        (several, r"Images with several labels.*Received, among others: \[0, 1, 1\]"),
        (np.zeros((2, 3)), "must be one-hot"),
        (np.array([[0.5, 0.2, 0.1]]), "sum to 1"),
        (np.array([[1.5, -0.5, 0.0]]), "sum to 1"),
        (np.array([0.5, 1.0]), "whole numbers.*Received, among others: 0.5"),
        (np.array([np.nan]), "whole numbers"),
        (np.array(["cat", "dog"]), "turn names to numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.hard_labels(wrong)
    with pytest.raises(ValueError, match="must have 4 columns.*Received: 3"):
        losses.hard_labels(np.eye(3), classes=4)
    in_graph = tf.function(losses.hard_labels)
    with pytest.raises(tf.errors.InvalidArgumentError, match="several labels"):
        in_graph(several)
    np.testing.assert_array_equal(in_graph(np.array([[1.0], [0.0]])), [1, 0])
    np.testing.assert_array_equal(losses.hard_labels(np.eye(3, dtype=np.float16)), [0, 1, 2])


def test_what_is_not_finite_is_never_correct():
    logits = tf.constant([[3.0, 1, 0], [np.nan, 1, 0], [np.inf, 1, 0], [3, -np.inf, 0], [np.nan] * 3])
    labels = tf.zeros(5, tf.int32)
    np.testing.assert_array_equal(losses.is_correct(labels, logits), [True, False, False, False, False])
    np.testing.assert_array_equal(losses.is_broken(labels, logits), [False, True, True, True, True])


def test_probabilities_are_told_from_logits_by_what_is_returned():
    x = tf.random.stateless_normal((6, 5), (0, 1))
    weights = tf.random.stateless_normal((5, 3), (0, 2))
    heads = {
        None: (
            lambda x: x @ weights,
            lambda x: tf.nn.log_softmax(x @ weights),
            lambda x: 0.4 + 1e-2 * tf.tanh(x @ weights) * tf.abs(x @ weights),  # in 0..1 for these inputs alone
            lambda x: tf.zeros((len(x), 3)),  # a head that begins with zeros
            lambda x: tf.nn.relu(x @ weights) / 10,
        ),
        "softmax": (
            lambda x: tf.nn.softmax(x @ weights),
            lambda x: 100 * tf.nn.softmax(x @ weights),
            lambda x: tf.cast(tf.nn.softmax(tf.cast(x @ weights, tf.bfloat16)), tf.float32),
        ),
        "sigmoid": (
            lambda x: tf.sigmoid(x @ weights),
            lambda x: tf.sigmoid(x @ weights[:, :1]),
            lambda x: tf.sigmoid(0 * x @ weights),
            lambda x: tf.sigmoid(100 + 0 * x @ weights),  # saturated
        ),
    }
    for kind, functions in heads.items():
        for function in functions:
            assert losses.probabilities(function, x) == kind


def test_one_logit_stands_for_two():
    np.testing.assert_array_equal(losses.two_classes(tf.constant([[2.0], [-1.0]])), [[-2, 2], [1, -1]])
    assert losses.two_classes(LOGITS) is LOGITS


def test_cross_entropy():
    expected = np.log(np.exp(LOGITS).sum(1)) - LOGITS[[0, 1], LABELS]
    np.testing.assert_allclose(losses.cross_entropy(LABELS, LOGITS), expected, rtol=1e-6)


def test_log_cross_entropy_and_its_gradient_in_float64():
    """With logits [0, u], u runs over what float32 cross entropy can and cannot tell from 0."""
    u = np.concatenate([-np.logspace(3, -3, 40), [0.0], np.logspace(-3, 3, 40), [-15.01, -15.0, -14.99]])
    logits = tf.constant(np.stack([np.zeros_like(u), u], axis=1), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = losses.log_cross_entropy(np.zeros(len(u), np.int32), logits)
    gradient = tape.gradient(values, logits)
    softplus = np.maximum(np.logaddexp(0, u), 1e-305)  # float64 too rounds it to 0 below -745
    np.testing.assert_allclose(values, np.where(u < -700, u, np.log(softplus)), rtol=2e-6, atol=1e-6)
    sigmoid = np.exp(np.minimum(u, 0)) / (1 + np.exp(-np.abs(u)))
    expected = np.where(u < -700, 1.0, sigmoid / softplus)
    np.testing.assert_allclose(gradient[:, 1], expected, rtol=2e-5)
    np.testing.assert_allclose(gradient[:, 0], -expected, rtol=2e-5)
    plain = losses.cross_entropy(np.zeros(len(u), np.int32), logits)
    assert np.any(plain.numpy() == 0)  # which the logarithm of the plain cross entropy would turn to -inf


def test_log_cross_entropy_of_several_classes():
    expected = np.log(losses.cross_entropy(LABELS, LOGITS))
    np.testing.assert_allclose(losses.log_cross_entropy(LABELS, tf.constant(LOGITS, tf.float32)), expected, rtol=1e-5)


def test_log_cross_entropy_of_extreme_logits():
    """Its gradient is finite wherever that of the cross entropy is, and not 0 where the label leads."""
    inf = np.inf
    rows = [[-inf, 0, 0], [0, -inf, -inf], [0, -inf, 1], [3e38, -3e38, 0], [-3e38, 3e38, 0], [1e30, 0, 0]]
    logits = tf.constant([*rows, [-1e30, 0, 0], [inf, 0, 0]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = losses.log_cross_entropy(np.zeros(len(logits), np.int32), logits)
    gradient = tape.gradient(values, logits).numpy()
    assert np.all(np.isfinite(gradient))
    assert not np.any(np.isnan(values))
    np.testing.assert_allclose(gradient[[1, 3, 5, 7], 0], -1)


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


def test_a_loss_of_probabilities_is_refused_in_every_structure():
    good, bad = (keras.losses.SparseCategoricalCrossentropy(from_logits=logits) for logits in (True, False))
    for structure in (
        lambda x: x,
        lambda x: [x],
        lambda x: (x,),
        lambda x: {"logits": x},
        lambda x: {"heads": [good, x]},
    ):
        losses.check_takes_logits(structure(good))
        for loss in (bad, "sparse_categorical_crossentropy"):
            with pytest.raises(ValueError, match="takes probabilities: say from_logits=True"):
                losses.check_takes_logits(structure(loss))
    losses.check_takes_logits(None)
