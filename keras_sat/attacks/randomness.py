"""Stateless random numbers, for a batch or for each of its examples.

A seed is an int32 tensor of shape [2], for the whole batch, or [batch, 2], one for each example. With seeds of their
own, the result for an example depends neither on the other examples of the batch nor on its place in the batch. So a
batch can drop finished examples, and an evaluation can be split into parts.
"""

from typing import Any

import tensorflow as tf

from keras_sat.typing import Array

RNG = "philox"  # named explicitly: XLA has another default generator, which draws other noise for the same seed


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
    return _draw(tf.random.stateless_uniform, seed, shape, minval=low, maxval=high)


def normal(seed: tf.Tensor, shape: Any) -> tf.Tensor:
    """Returns standard normal float32 numbers of `shape`, whose first axis is the batch."""
    return _draw(tf.random.stateless_normal, seed, shape)


def _draw(function, seed, shape, **limits):
    if seed.shape.rank == 1:
        return function(shape, seed, alg=RNG, **limits)
    shape = tf.convert_to_tensor(shape)
    one = tf.TensorSpec(None, tf.float32)
    return tf.reshape(
        tf.map_fn(lambda row: function(shape[1:], row, alg=RNG, **limits), seed, fn_output_signature=one), shape
    )
