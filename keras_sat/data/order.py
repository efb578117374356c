"""The order of training: shuffled epochs, and the seed of each image's augmentation, as functions of seed and place."""

from collections.abc import Callable

import tensorflow as tf

EPOCHS = 1_000_003  # a shuffle's key is seed * EPOCHS + epoch, so that no two runs of small seeds share an order
SEED_OF_GRAPH = 1  # any number: with it, the order does not depend on the program's seed


def epoch_key(seed: int | tf.Tensor, epoch: int | tf.Tensor) -> tf.Tensor:
    """Returns the int64 key of an epoch's shuffle."""
    return tf.cast(seed, tf.int64) * EPOCHS + tf.cast(epoch, tf.int64)


def seed_at(key: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """Returns the seed, int32 [2], of what is drawn at a place of the epoch with this key."""
    return tf.stack([tf.bitcast(key, tf.int32)[0], tf.cast(place, tf.int32)])


def shuffled(
    read: Callable[[tf.Tensor], tf.data.Dataset], key: tf.Tensor, size: int, done: int | tf.Tensor, workers: int
) -> tf.data.Dataset:
    """Returns one epoch as a dataset of (stored image, label, seed).

    Args:
        read: returns the shuffled (stored image, label) of this worker for a key.
        key: int64 key of the shuffle.
        size: number of images in the epoch, of this worker.
        done: number of images at the beginning to skip.
        workers: number of workers that share the images.
    """
    tf.random.set_seed(SEED_OF_GRAPH)
    examples = read(key)
    if workers > 1:
        examples = examples.repeat()  # a worker's files may hold slightly fewer images than its share
    examples = examples.take(size).enumerate().skip(tf.cast(done, tf.int64))
    return examples.map(lambda place, example: (*example, seed_at(key, place)))


def epochs(
    read: Callable[[tf.Tensor], tf.data.Dataset],
    seed: int,
    steps: int,
    images: int,
    number: int | None,
    first_step: int,
    workers: int,
) -> tf.data.Dataset:
    """Returns epochs, one after the other, as a dataset of (stored image, label, seed).

    Args:
        read: see `shuffled`.
        seed: seed of the order.
        steps: number of steps in an epoch.
        images: number of images in a step, of this worker.
        number: number of epochs, or None for one epoch with a different order each time the dataset is iterated.
        first_step: index of the first step, counted over all epochs, if `number` is given.
        workers: see `shuffled`.
    """

    def one(epoch):
        done = tf.where(epoch == first_step // steps, first_step % steps, 0) if number else 0
        return shuffled(read, epoch_key(seed, epoch), steps * images, done * images, workers)

    if number:
        numbers = tf.data.Dataset.range(first_step // steps, number)
    else:
        numbers = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
    return numbers.flat_map(tf.autograph.experimental.do_not_convert(one))
