"""Stateless random numbers, for a batch or for each of its examples.

A seed is an int32 tensor of shape [2], for the whole batch, or [batch, 2], one for each example. With seeds of their
own, the result for an example depends neither on the other examples of the batch nor on its place in the batch. So a
batch can drop finished examples, and an evaluation can be split into parts.

The same seed gives the same numbers with and without XLA: only random bits are drawn, which agree. TensorFlow and XLA
make different floats of them, so this module makes the floats itself, as TensorFlow does without XLA.
"""

import math
from typing import Any

import tensorflow as tf

from keras_sat.typing import Array

RNG = "philox"  # named explicitly: XLA has another default generator
_MANTISSA = 2**23 - 1  # the bits of a float32 after its exponent


def as_seed(seed: int | Array, batch: int | None) -> tf.Tensor:
    """Returns an int32 seed of shape [2] or [batch, 2].

    Args:
        seed: an integer, or a tensor [2] or [batch, 2].
        batch: number of examples; None if it is not known.

    Raises:
        ValueError: for another shape.
    """
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    if seed.shape.rank == 0:
        return tf.stack([seed, 0])
    if not (seed.shape.is_compatible_with((2,)) or seed.shape.is_compatible_with((batch, 2))):
        raise ValueError(f"seed must be an integer, or have shape [2] or [batch, 2]. Received shape: {seed.shape}")
    return seed


def fold(seed: tf.Tensor, k: int | tf.Tensor) -> tf.Tensor:
    """Returns the k-th seed that is derived from `seed`.

    It is a step of a linear congruential generator whose increment depends on k. The step is one-to-one, and folds of
    folds differ by their order. The generator Philox does the mixing.

    Args:
        seed: int32 [2] or [batch, 2].
        k: an int or an int32 tensor, >= 0.
    """
    key = seed[..., 0] * 1664525 + (tf.cast(k, tf.int32) + 1) * -1640531527
    return tf.stack([key, seed[..., 1]], axis=-1)


def per_example(seed: tf.Tensor, batch: int | tf.Tensor) -> tf.Tensor:
    """Returns a seed for each example, int32 [batch, 2]: `seed` itself if it has that shape."""
    return seed if seed.shape.rank == 2 else at_places(seed, tf.range(batch))


def at_places(seed: tf.Tensor, places: Array) -> tf.Tensor:
    """Returns the seeds of examples, int32 [n, 2], derived from one seed [2] and their places in the dataset [n]."""
    places = tf.cast(places, tf.int32)
    return tf.stack([tf.fill(tf.shape(places), fold(seed, seed[1])[0]), places], axis=1)


def uniform(seed: tf.Tensor, shape: Any, low: Any = 0.0, high: Any = 1.0) -> tf.Tensor:
    """Returns uniform float32 numbers in [low, high) of `shape`, whose first axis is the batch."""
    return _draw(_uniform, seed, shape) * (high - low) + low


def normal(seed: tf.Tensor, shape: Any) -> tf.Tensor:
    """Returns standard normal float32 numbers of `shape`, whose first axis is the batch."""
    return _draw(_normal, seed, shape)


def _draw(function, seed, shape):
    """Returns function(shape, seed), for seeds [batch, 2] row by row."""
    shape = tf.convert_to_tensor(shape)
    if seed.shape.rank == 1:
        return function(shape, seed)
    one = tf.TensorSpec(None, tf.float32)
    return tf.reshape(tf.map_fn(lambda row: function(shape[1:], row), seed, fn_output_signature=one), shape)


def _uniform(shape, seed):
    """Returns numbers in [0, 1): the last 23 of 32 random bits are the mantissa of a number in [1, 2), minus 1."""
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg=RNG)
    return tf.bitcast(tf.bitwise.bitwise_or(tf.bitwise.bitwise_and(bits, _MANTISSA), 127 << 23), tf.float32) - 1.0


def _normal(shape, seed):
    """Returns normal numbers, two of each two uniform ones (Box and Muller 1958)."""
    size = tf.reduce_prod(shape)
    pairs = tf.reshape(_uniform([(size + 1) // 2 * 2], seed), (-1, 2))
    length = tf.sqrt(-2.0 * tf.math.log(tf.maximum(pairs[:, 0], 1e-7)))
    angle = 2 * math.pi * pairs[:, 1]
    numbers = tf.stack([tf.sin(angle), tf.cos(angle)], 1) * length[:, None]
    return tf.reshape(tf.reshape(numbers, [-1])[:size], shape)
