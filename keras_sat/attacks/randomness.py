"""Stateless random numbers, for a batch or for each of its examples.

A seed is an int32 tensor: of shape [2], one for the whole batch, or [batch, 2], one for each example. With a seed of
its own, what an attack does to an example depends neither on the batch that the example is in nor on its place there:
a batch can lose those that are done, and an evaluation can be cut into pieces.
"""

import tensorflow as tf

RNG = "philox"  # by name: the default is another generator under XLA, so the same seed would give other noise


def fold(seed, k):
    """Returns the k-th of the seeds derived from `seed`; k is an int or an int32 tensor, >= 0.

    It is a step of a linear congruential generator with an increment of k's own: one-to-one, and folds of folds differ
    by their order. Philox does the mixing.
    """
    key = seed[..., 0] * 1664525 + (tf.cast(k, tf.int32) + 1) * -1640531527
    return tf.stack([key, seed[..., 1]], axis=-1)


def per_example(seed, batch):
    """Returns seeds [batch, 2]: `seed` if it has that shape, or derived from it and the example's place."""
    if seed.shape.rank == 2:
        return seed
    return tf.stack([tf.fill([batch], fold(seed, seed[1])[0]), tf.range(batch)], axis=1)


def uniform(seed, shape, low=0.0, high=1.0):
    """Returns uniform float32 in [low, high) of `shape`, whose first axis is the batch."""
    return _draw(tf.random.stateless_uniform, seed, shape, minval=low, maxval=high)


def normal(seed, shape):
    """Returns standard normal float32 of `shape`, whose first axis is the batch."""
    return _draw(tf.random.stateless_normal, seed, shape)


def _draw(function, seed, shape, **limits):
    if seed.shape.rank == 1:
        return function(shape, seed, alg=RNG, **limits)
    shape = tf.convert_to_tensor(shape)
    one = tf.TensorSpec(None, tf.float32)
    return tf.reshape(
        tf.map_fn(lambda row: function(shape[1:], row, alg=RNG, **limits), seed, fn_output_signature=one), shape
    )
