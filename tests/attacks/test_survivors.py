import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import survivors


def count_down(static_shapes, starts, iterations):
    """Each example breaks when its count reaches 0; the result holds the iteration at which it did."""
    sizes = []

    def step(number, state):
        tf.py_function(lambda x: sizes.append(len(x)), [state["count"]], [])
        count = state["count"] - 1
        result = tf.ones_like(state["result"]) * tf.cast(number, tf.float32)
        return {**state, "count": count, "result": result, "broken": count <= 0}

    starts = tf.constant(starts)
    state = {"count": starts, "result": -tf.ones([len(starts), 1, 1, 1]), "broken": tf.zeros_like(starts, tf.bool)}
    result, broken = tf.function(lambda: survivors.loop(step, state, iterations, static_shapes), autograph=False)()
    return result.numpy().ravel(), broken.numpy(), sizes


@pytest.mark.parametrize("static_shapes", [False, True])
def test_results_stay_where_they_broke(static_shapes):
    result, broken, _ = count_down(static_shapes, [3, 1, 9, 2, 1], 5)
    np.testing.assert_array_equal(broken, [True, True, False, True, True])
    np.testing.assert_array_equal(result, [2, 0, 4, 1, 0])


def test_compact_shrinks_the_batch_and_ends_early():
    assert count_down(False, [1, 1, 3, 2], 10)[2] == [4, 2, 1]
    assert count_down(True, [1, 1, 3, 2], 10)[2] == [4, 4, 4]


def test_a_large_batch_is_not_cut_for_a_single_example():
    assert count_down(False, [1, *[5] * 19], 4)[2] == [20, 20, 20, 20]
