"""Random numbers are TensorFlow's own, and the same with and without XLA."""

import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import randomness

SHAPE = (5, 3, 3, 1)  # an odd number of values
DRAWS = {
    "uniform": lambda seed: randomness.uniform(seed, SHAPE, -8.0, 8.0),
    "normal": lambda seed: randomness.normal(seed, SHAPE),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_gives_the_same_numbers_with_and_without_xla(name):
    draw, seeds = DRAWS[name], (tf.Variable([3, 5]), tf.Variable([[k, 7] for k in range(5)]))
    for seed in seeds:  # of the batch, and of each example; variables, which XLA does not fold into constants
        eager, compiled = (
            tf.function(lambda seed=seed: draw(tf.identity(seed)), autograph=False, jit_compile=jit)().numpy()
            for jit in (False, True)
        )
        np.testing.assert_allclose(compiled, eager, rtol=1e-6, atol=1e-6)


def test_they_are_those_of_tensorflow():
    seed = tf.constant([3, 5])
    theirs = tf.random.stateless_uniform(SHAPE, seed, -8.0, 8.0, alg="philox")
    np.testing.assert_array_equal(randomness.uniform(seed, SHAPE, -8.0, 8.0), theirs)
    theirs = tf.random.stateless_normal(SHAPE, seed, alg="philox")
    np.testing.assert_allclose(randomness.normal(seed, SHAPE), theirs, atol=1e-5)
