"""Reads the examples of an evaluation from its dataset, once for each stage, and packs them into full batches."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_sat import data, losses
from keras_sat.typing import Dataset

Batch = tuple[Any, np.ndarray, np.ndarray]  # (indices of the examples, images, labels)


class Examples:
    """The examples of a shard of a dataset. Each pass reads the dataset from its beginning; no image stays in memory.

    Args:
        dataset: see `evaluate`.
        batch_size: number of images in a batch.
        shard: (k, n): the examples whose index is k modulo n, 0 <= k < n.

    Raises:
        ValueError: for an invalid shard.

    Attributes:
        classes: the number of classes, for the check of labels; None while it is unknown.
        checksum: of all images and labels of the dataset, also those of other shards. None before `read` has ended, and
            if there is one shard.
    """

    def __init__(self, dataset: Dataset, batch_size: int, shard: tuple[int, int]) -> None:
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard must be (k, n) with 0 <= k < n. Received: {shard!r}")
        self._dataset, self._batch_size, self._shard = dataset, batch_size, shard
        self.classes: int | None = None
        self.checksum: str | None = None

    def read(self) -> Iterator[Batch]:
        """Yields (indices in the dataset, images, labels) of all examples of the shard, in batches."""
        return self._batches(lambda index: index % self._shard[1] == self._shard[0])

    def read_again(self, index: np.ndarray, labels: np.ndarray, digests: np.ndarray) -> Iterator[Batch]:
        """Yields (slice of `index`, images, labels) of some examples, in batches.

        Args:
            index: indices of these examples in the dataset, int [n], ascending.
            labels: the labels that the first pass read for them, int [n].
            digests: the `digests_of` the images that it read, [n].

        Raises:
            ValueError: if the dataset has changed.
        """
        end = 0
        for places, images, read in self._batches(lambda every: np.isin(every, index), len(index)):
            part = slice(end, end + len(places))
            end += len(places)
            if not (np.array_equal(labels[part], read) and np.array_equal(digests[part], digests_of(images))):
                raise ValueError("The dataset has changed since its first pass: it must not shuffle, nor augment.")
            yield part, images, read
        if end < len(index):
            raise ValueError("The dataset has become shorter since its first pass: it must be the same each time.")

    def are(self, index: np.ndarray, labels: np.ndarray, digests: np.ndarray) -> bool:
        """Returns whether these are the examples of the shard, in their order. See `read_again`."""
        end = 0
        for places, images, read in self.read():
            part = slice(end, end + len(places))
            end += len(places)
            found = zip((index, labels, digests), (places, read, digests_of(images)))
            if not all(np.array_equal(before[part], now) for before, now in found):
                return False
        return end == len(index)

    def _batches(self, is_wanted: Callable[[np.ndarray], np.ndarray], count: int | None = None) -> Iterator[Batch]:
        """Yields indices, images and labels of the wanted examples; `count` of them, if it is given."""
        kept: list[Any] = []
        is_summed = count is None and self._shard[1] > 1  # a pass over the whole dataset
        end = wanted = of_images = of_labels = 0
        for images, labels in data.batches(self._dataset, self._batch_size):
            labels = losses.hard_labels(labels, self.classes).numpy()
            if is_summed:
                of_images = zlib.crc32(np.asarray(images, np.float32).tobytes(), of_images)
                of_labels = zlib.crc32(labels.tobytes(), of_labels)
            index = np.arange(end, end + len(labels))
            end += len(labels)
            pick = is_wanted(index)
            kept.append(tuple(np.asarray(column)[pick] for column in (index, images, labels)))
            wanted += np.count_nonzero(pick)
            while sum(len(part[0]) for part in kept) >= self._batch_size:
                joined = _joined(kept)
                yield tuple(column[: self._batch_size] for column in joined)
                kept = [tuple(column[self._batch_size :] for column in joined)]
            if wanted == count:
                break  # the rest of the dataset need not be read
        if kept and sum(len(part[0]) for part in kept):
            yield tuple(_joined(kept))
        if is_summed:
            self.checksum = f"{of_images:08x}-{of_labels:08x}"


def digests_of(images: np.ndarray) -> np.ndarray:
    """Returns a checksum (CRC-32) of each image's values as float32, uint32 [batch]."""
    return np.array([zlib.crc32(np.asarray(image, np.float32).tobytes()) for image in images], np.uint32)


def _joined(parts):
    return [np.concatenate(column) for column in zip(*parts)]
