"""Batches of the datasets that evaluation and callbacks accept: a tf.data.Dataset, a list of batches, or arrays."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_sat.typing import Array, Dataset


def batches(dataset: Dataset, batch_size: int) -> Iterator[tuple[Array, Array]]:
    """Yields the batches (images, labels) of a dataset. Images of sample weight 0, which fill up a batch, are left out.

    Args:
        dataset: a finite tf.data.Dataset of batches (images, labels) or (images, labels, weights); a list of such
            batches; or a pair of arrays, all images [n, height, width, channels] and all labels.
        batch_size: number of images in a batch, if `dataset` is a pair of arrays. Other datasets keep their batches.

    Raises:
        ValueError: for an infinite dataset, arrays of different lengths, sample weights other than 0 and 1, or any
            other object.
    """
    if isinstance(dataset, tf.data.Dataset):
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError("The dataset never ends (.repeat()): leave that out, or cut it, as in dataset.take(100).")
        parts = dataset
    elif isinstance(dataset, (tuple, list)) and all(map(_is_pair, dataset)):
        parts = dataset
    elif isinstance(dataset, (tuple, list)) and 2 <= len(dataset) <= 3:
        parts = _slices([array if hasattr(array, "shape") else np.asarray(array) for array in dataset], batch_size)
    else:
        raise ValueError(
            "A dataset is a tf.data.Dataset of batches (images, labels), a list of such batches, or a pair of arrays. "
            f"(A generator is not: it can be read only once.) Received: {type(dataset).__name__}"
        )
    for batch in parts:
        if not _is_pair(batch):
            raise ValueError(
                "A batch must be a pair of images [batch, height, width, channels] and labels. "
                f"Received: {_outline(batch)}"
            )
        images, labels, *weights = batch
        if weights and weights[0] is not None:
            images, labels = _weighted(images, labels, weights[0])
        if len(labels):  # else the whole batch has weight 0
            yield images, labels


def _weighted(images, labels, weights):
    """Returns the images and labels whose weight is 1."""
    weights = np.asarray(weights)
    if weights.shape != (len(images),) or not np.isin(weights, (0, 1)).all():
        raise ValueError(
            "Each image counts once, or, with sample weight 0, not at all: sample weights [batch] of 0 and 1 were "
            f"expected. Received weights of shape {weights.shape}, such as {weights.ravel()[:4].tolist()}"
        )
    is_kept = weights == 1
    return np.asarray(images)[is_kept], np.asarray(labels)[is_kept]


def _is_pair(batch):
    return isinstance(batch, (tuple, list)) and 2 <= len(batch) <= 3 and len(getattr(batch[0], "shape", ())) == 4


def _slices(arrays, batch_size):
    lengths = {len(array) for array in arrays if len(array.shape)}
    if len(lengths) != 1:
        raise ValueError(f"images and labels differ in number. Received shapes: {[tuple(a.shape) for a in arrays]}")
    return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size)


def _outline(batch):
    """Returns a short description of an object that should be a batch, for an error message."""
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"{len(batch)} parts, of shapes {', '.join(str(tuple(np.shape(part))) for part in batch)}"
    return f"{type(batch).__name__} of shape {tuple(getattr(batch, 'shape', ()))}"
