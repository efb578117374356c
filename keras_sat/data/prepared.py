"""Datasets that TFDS has prepared, and the embedded dataset, as sources of stored images and labels."""

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import preprocessing
from keras_sat.data import reading, slices
from keras_sat.typing import Path

EMBEDDED = os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets")
SHUFFLE_BYTES = 2**29  # limit of the shuffle buffer
LOOKED_AT = 100  # number of images that determine the range of the pixels, if these are not uint8
STRATIFIED_BYTES = 2**30  # in splits larger than this, labels are not read to draw a stratified sample
AUTOTUNE = tf.data.AUTOTUNE


def names() -> list[str]:
    """Returns the names of the embedded datasets."""
    return sorted(entry.name for entry in os.scandir(EMBEDDED) if entry.is_dir())


def info(name: str, data_dir: Path | None = None) -> Any:
    """Returns TFDS' DatasetInfo of a dataset: `.features["label"].names`, `.splits["test"].num_examples`, ...

    Args:
        name: name of a dataset of TFDS, or of an embedded one.
        data_dir: TFDS' folder of prepared datasets. Default: TFDS' own default.

    Raises:
        ValueError: if the dataset is unknown or not prepared. See `Prepared`.
    """
    return Prepared(name, data_dir).info


class Prepared:
    """A classification dataset of TFDS.

    Pixels in 0..255 are used unchanged. Pixels of uint16 in 0..65535, of floats in 0..1 and of booleans are scaled to
    0..255, with a warning.

    Args:
        name: name of a dataset of TFDS, or of an embedded one.
        data_dir: TFDS' folder of prepared datasets. Default: TFDS' own default.
        classes: names of the classes that a network knows, in the order of its outputs. The dataset's classes are
            matched with them by name. Default: the dataset's classes.

    Attributes:
        name: name of the dataset.
        info: TFDS' DatasetInfo.
        classes: names of the classes, in the order of the labels.
        splits: {split: number of images}.

    Raises:
        ValueError: for an unknown dataset; one that is not prepared (the message has the command that prepares it); one
            without (image, label) pairs; or one with a class that is not in `classes`.
    """

    def __init__(self, name: str, data_dir: Path | None = None, classes: list[str] | None = None) -> None:
        data_dir = None if data_dir is None else os.path.expanduser(os.fspath(data_dir))
        self._builder = _builder(name, data_dir)
        self.name, self.info = name, self._builder.info
        self._image, self._label = _keys(self.info)
        own = list(self.info.features[self._label].names)
        unknown = [repr(name) for name in own if classes is not None and name not in classes]
        if unknown:
            raise ValueError(
                f"{name} has classes that the network does not know: {', '.join(unknown[:5])}. The names must be the "
                "same."
            )
        self.classes = list(classes or own)
        self._numbers = None if self.classes == own else [self.classes.index(name) for name in own]
        self.splits = {split: about.num_examples for split, about in self.info.splits.items()}
        self._labels: dict[str, np.ndarray] = {}

    @property
    def feature(self) -> Any:
        """TFDS' feature connector of the images."""
        return self.info.features[self._image]

    @property
    def size_and_channels(self) -> tuple[tuple[int, int] | None, int]:
        """((height, width) of the images, or None if they may differ in size; channels, 1 or 3).

        Raises:
            ValueError: if the images are neither grey nor RGB.
        """
        shape = (*self.feature.shape, 1) if len(self.feature.shape) == 2 else self.feature.shape
        if len(shape) != 3 or (not self._is_file and shape[-1] not in (1, 3)):
            raise ValueError(f"The images of {self.name} must be grey or RGB. Their shape is {self.feature.shape}")
        return None if None in shape[:2] else tuple(shape[:2]), 1 if shape[-1] == 1 else 3

    def readings(self) -> Iterator[reading.Reading]:
        """Decodes all images, and yields the `Reading` of each one. The path of a reading is SPLIT/CLASS/NUMBER."""
        for split in self.splits:
            images = self.map_images(self.read(split), lambda image: preprocessing.pixels(image, 3), None)
            for number, (pixels, label) in enumerate(images.as_numpy_iterator()):
                path = os.path.join(split, self.classes[label].replace(os.sep, "_"), str(number))
                yield reading.Reading(path, pixels.shape, reading.digest(pixels))

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Returns values that change if the images of a whole split change.

        Returns:
            A dict of "images" (their number) and "sha256": a digest of the version and of the sizes of the stored
            split.
        """
        about = self.info.splits[split]
        stored = [str(self.info.version), about.num_bytes, list(about.shard_lengths)]
        return {"images": about.num_examples, "sha256": hashlib.sha256(json.dumps(stored).encode()).hexdigest()}

    def number_of_images(self, split: str) -> int:
        """Returns the number of images in a split or slice, such as "test[:500]"."""
        return sum(end - begin for _, begin, end in slices.absolute(self.name, split, self.splits))

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split or slice, in the order of its files: int array [n].

        If the split is larger than `STRATIFIED_BYTES`, it would take minutes to read its labels. All labels returned
        are then 0, so that a stratified sample is a uniform one.
        """
        total = self.number_of_images(split)
        if self._bytes_of_an_image() * total > STRATIFIED_BYTES:
            return np.zeros(total, np.int64)
        if split not in self._labels:
            stored = self._stored(split, interleave_cycle_length=1).map(
                lambda example: self._numbered(example[self._label]), AUTOTUNE
            )
            self._labels[split] = np.fromiter(stored.as_numpy_iterator(), np.int64, total)
        return self._labels[split]

    def file_names(self, split: str) -> list[str]:
        """Returns the names of the files of a split or slice, in the order of `labels`. The whole split is read.

        Raises:
            ValueError: if the dataset does not store the names, as "file_name".
        """
        if "file_name" not in self.info.features:
            raise ValueError(
                f"{self.name} does not store the names of its files; its features are {[*self.info.features]}"
            )
        stored = self._stored(split, interleave_cycle_length=1).map(lambda example: example["file_name"], AUTOTUNE)
        return [name.decode() for name in stored.as_numpy_iterator()]

    def _bytes_of_an_image(self):
        return max(1, self.info.dataset_size // max(1, sum(self.splits.values())))

    def read(
        self,
        split: str,
        input_context: tf.distribute.InputContext | None = None,
        key: tf.Tensor | None = None,
        places: np.ndarray | None = None,
    ) -> tf.data.Dataset:
        """Returns a dataset of (stored image, int64 label).

        Args:
            split: a split or slice, such as "train[:500]".
            input_context: if given, the dataset is the share of this worker.
            key: int64 seed of a shuffle. Default: no shuffle.
            places: sorted indices of the images to read, in the order of `labels`. Default: all images.
        """
        workers = input_context.num_input_pipelines if input_context else 1
        by_files = len(self.info.splits[split].file_instructions) >= workers
        dataset = self._stored(
            split,
            key is not None,
            shuffle_seed=key,
            input_context=input_context if by_files else None,
            add_tfds_id=places is not None,
        )
        if places is not None:
            dataset = dataset.filter(self._is_at(split, places))
            if not input_context:
                dataset = dataset.take(len(places))  # stops reading after the last one
                dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(places)))
        if input_context and not by_files:
            dataset = dataset.shard(workers, input_context.input_pipeline_id)
        dataset = dataset.map(lambda example: (example[self._image], self._numbered(example[self._label])), AUTOTUNE)
        number = self.number_of_images(split) if places is None else len(places)
        buffer = max(1, min(number, SHUFFLE_BYTES // self._bytes_of_an_image()))  # all images, if they fit
        return dataset if key is None else dataset.shuffle(buffer, key, reshuffle_each_iteration=False)

    def _stored(self, split, shuffle=False, **options):
        """Returns TFDS' dataset of a split: dicts with stored images. `options` are those of tfds.ReadConfig."""
        import tensorflow_datasets as tfds

        return self._builder.as_dataset(
            split=split,
            shuffle_files=shuffle and not self.info.disable_shuffling,
            decoders={self._image: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False, **options),
        )

    def _is_at(self, split, places):
        """Returns a function that says whether a stored example is at one of these indices, in the order of `labels`.

        Files are read in any order, and many at once. But TFDS names each example by its file and its place in it.
        """
        total = self.number_of_images(split)
        is_inverted = 2 * len(places) > total  # the smaller set is looked up
        listed = np.delete(np.arange(total), places) if is_inverted else places
        with tf.init_scope():
            hashes = np.sort(_hash(self._ids(split, listed)).numpy())
        hashes = np.append(hashes, np.iinfo(np.int64).max)  # larger than any: there is a next one to compare with

        def is_at(example):
            hashed = _hash(example["tfds_id"])
            is_listed = tf.equal(tf.gather(hashes, tf.searchsorted(hashes, hashed[None])[0]), hashed)
            return tf.not_equal(is_listed, is_inverted)

        return is_at

    def _ids(self, split, places):
        """Returns TFDS' names (`tfds_id`) of the examples at sorted indices, in the order of `labels`."""
        ids, begin = [], 0
        for file in self.info.splits[split].file_instructions:
            first, last = np.searchsorted(places, (begin, begin + file.take))
            ids += [f"{file.basename()}__{file.skip + place - begin}" for place in places[first:last]]
            begin += file.take
        return ids

    def _numbered(self, label):
        return label if self._numbers is None else tf.gather(tf.constant(self._numbers, tf.int64), label)

    def map_images(
        self, dataset: tf.data.Dataset, function: Callable[..., tf.Tensor], shape: tuple[int, int, int] | None
    ) -> tf.data.Dataset:
        """Applies a function to each image: (stored image, label, ...) -> (function(image, ...), label, ...).

        Args:
            dataset: a dataset from `read`, which may have additional tensors in each element.
            function: called with an image and the additional tensors, returns uint8 pixels. The image is the bytes of a
                file as a string tensor, or uint8 pixels, depending on what the dataset stores.
            shape: not used. See `Folder.map_images`.
        """

        def one(stored, label, *more):
            return function(self._given(stored), *more), label, *more

        return dataset.map(tf.autograph.experimental.do_not_convert(one), AUTOTUNE)

    def _given(self, stored):
        """Returns the image with which `map_images` calls its function: the bytes of a file, or uint8 pixels."""
        return stored if self._is_file else self._bytes(self._decoded(stored))

    @functools.cached_property
    def _is_file(self):
        """Whether the dataset stores encoded images that `preprocessing.pixels` decodes."""
        import tensorflow_datasets as tfds

        return isinstance(self.feature, tfds.features.Image) and tf.as_dtype(self.feature.np_dtype).is_integer

    def _decoded(self, stored):
        image = self.feature.decode_example(stored)
        return image[..., None] if len(self.feature.shape) == 2 else image

    def _bytes(self, image):
        """Returns decoded pixels as uint8 0..255."""
        if image.dtype == tf.uint8:
            return image
        scaled = tf.cast(image, tf.float32) * self._factor
        is_in_range = (tf.reduce_min(scaled) >= 0) & (tf.reduce_max(scaled) <= 255)
        message = [f"The pixels of {self.name} must all be in the range of its first {LOOKED_AT} images: one is not."]
        with tf.control_dependencies([tf.debugging.Assert(is_in_range, message)]):
            return preprocessing.to_uint8(scaled)

    @functools.cached_property
    def _factor(self):
        """The factor that scales the pixels to 0..255. It is computed once, and a warning is given if it is not 1."""
        dtype = tf.as_dtype(self.feature.np_dtype)
        if dtype == tf.uint16:
            return self._warned(255 / 65535, "0..65535 (uint16)")
        if dtype == tf.bool:
            return self._warned(255, "False and True")
        with tf.init_scope():
            stored = self.read(next(iter(self.splits))).take(LOOKED_AT)
            images = [self._decoded(image).numpy() for image, _ in stored]
        least, most = min(map(np.min, images)), max(map(np.max, images))
        if not (least >= 0 and most <= 255):
            raise ValueError(
                f"The pixels of {self.name} are in {least:g}..{most:g}: 0..255, or 0..1 for floats, was expected."
            )
        return self._warned(255, "0..1") if 0 < most <= 1 else 1

    def _warned(self, factor, what):
        """Returns the factor, and warns that the pixels are scaled."""
        warnings.warn(f"The pixels of {self.name}, {what}, are scaled to 0..255.", stacklevel=6)
        return factor

    def check_range(self) -> None:
        """Determines the range of the pixels, before `map_images` needs it. Warns if they are scaled to 0..255.

        Raises:
            ValueError: if the pixels are neither in 0..255 nor in 0..1.
        """
        if tf.as_dtype(self.feature.np_dtype) != tf.uint8:
            self._factor  # noqa: B018 (a cached property: it is computed here)


def _hash(ids):
    """Returns an int64 hash of each text. Of a million texts, any two have the same hash with probability 1e-7."""
    return tf.strings.to_hash_bucket_fast(ids, np.iinfo(np.int64).max)


def _builder(name, data_dir):
    import tensorflow_datasets as tfds  # takes a second to import

    try:
        builder = tfds.builder(name, data_dir=EMBEDDED if name in names() else data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"There is no dataset {name!r}: neither embedded ({', '.join(names())}) nor in TFDS, and no folder."
        ) from error
    if not builder.info.splits:
        folder = f" --data_dir={data_dir}" if data_dir else ""
        raise ValueError(
            f"The dataset {name!r} is not prepared in {builder.data_dir}. Prepare it, where there is a network, with: "
            f"tfds build {name}{folder}"
        )
    return builder


def _keys(info):
    """Returns the keys of the image and of the label in a dataset's features."""
    keys = info.supervised_keys or ("image", "label")
    if len(keys) != 2 or not set(keys) <= set(info.features) or not hasattr(info.features[keys[1]], "names"):
        raise ValueError(
            f"{info.name} has no (image, label) pairs to classify; its features are {list(info.features)}."
        )
    return keys
