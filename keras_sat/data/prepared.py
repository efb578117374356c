"""Datasets that TFDS prepared, and the embedded one."""

import functools
import hashlib
import json
import os
import warnings

import numpy as np
import tensorflow as tf

from keras_sat import preprocessing
from keras_sat.data import reading, slices

EMBEDDED = os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets")
SHUFFLE_BYTES = 2**29
LOOKED_AT = 100  # images, where the range of the pixels is not that of bytes
STRATIFIED_BYTES = 2**30  # of a split whose labels are read for a sample
AUTOTUNE = tf.data.AUTOTUNE


def names() -> list[str]:
    """Returns the names of the embedded datasets."""
    return sorted(entry.name for entry in os.scandir(EMBEDDED) if entry.is_dir())


def info(name: str, data_dir: str | os.PathLike | None = None):
    """Returns TFDS' DatasetInfo of a dataset: `.features["label"].names`, `.splits["test"].num_examples`, ..."""
    return Prepared(name, data_dir).info


class Prepared:
    """A classification dataset of TFDS.

    Images of bytes are pixels 0..255. Of 16 bits, 0..65535 become 0..255; of floats, 0..1 do; a warning says it.

    Args:
        name: TFDS' or an embedded one.
        data_dir: TFDS' folder of prepared datasets; None is TFDS' own.
        classes: names of the classes that a network knows, in its order; the dataset's are matched with them by name.
            Default: the dataset's own.

    Raises:
        ValueError: for a dataset that is not there, which names the command that prepares it; one without (image,
            label) pairs; or of other classes.
    """

    def __init__(self, name: str, data_dir: str | os.PathLike | None = None, classes: list[str] | None = None):
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

    @property
    def feature(self):
        """TFDS' feature of the images."""
        return self.info.features[self._image]

    @property
    def looked(self) -> tuple[tuple[int, int] | None, int]:
        """(height, width) of all images, or None where they may differ; and channels, 1 or 3.

        Raises:
            ValueError: for images that are neither grey nor RGB.
        """
        shape = (*self.feature.shape, 1) if len(self.feature.shape) == 2 else self.feature.shape
        if len(shape) != 3 or (not self._is_file and shape[-1] not in (1, 3)):
            raise ValueError(f"The images of {self.name} must be grey or RGB. Their shape is {self.feature.shape}")
        return None if None in shape[:2] else tuple(shape[:2]), 1 if shape[-1] == 1 else 3

    def readings(self):
        """Yields the `reading.Reading` of each image, by its split, its class and its number."""
        for split in self.splits:
            images = self.mapped(self.read(split), lambda image: preprocessing.pixels(image, 3), None)
            for number, (pixels, label) in enumerate(images.as_numpy_iterator()):
                path = os.path.join(split, self.classes[label].replace(os.sep, "_"), str(number))
                yield reading.Reading(path, pixels.shape, reading.digest(pixels))

    def fingerprint(self, split: str) -> dict:
        """Returns what tells a whole split from a changed one: images, a digest of how they are stored."""
        about = self.info.splits[split]
        stored = [str(self.info.version), about.num_bytes, list(about.shard_lengths)]
        return {"images": about.num_examples, "sha256": hashlib.sha256(json.dumps(stored).encode()).hexdigest()}

    def number_of_images(self, split: str) -> int:
        """Returns how many images a split, or a slice of it, has."""
        return sum(end - begin for _, begin, end in slices.absolute(self.name, split, self.splits))

    def sample(self, split: str, number: int, seed: int) -> np.ndarray:
        """Returns the places of `number` images of a split, of all classes in proportion.

        Of a very large split, whose labels would take minutes to read, places are drawn without looking at classes.
        """
        total = self.number_of_images(split)
        random = np.random.default_rng(seed)
        if number >= total:
            return np.arange(total)
        if self._bytes_of_an_image() * total > STRATIFIED_BYTES:
            return np.sort(random.choice(total, number, replace=False))
        labels = np.fromiter((label for _, label in self.read(split).as_numpy_iterator()), np.int64, total)
        return slices.stratified(labels, number, random)

    def _bytes_of_an_image(self):
        return max(1, self.info.dataset_size // max(1, sum(self.splits.values())))

    def read(self, split: str, input_context=None, key=None) -> tf.data.Dataset:
        """Returns a dataset of images as they are stored and labels, shuffled by an int64 `key` if there is one."""
        import tensorflow_datasets as tfds

        number = self.number_of_images(split)
        workers = input_context.num_input_pipelines if input_context else 1
        by_files = len(self.info.splits[split].file_instructions) >= workers
        dataset = self._builder.as_dataset(
            split=split,
            shuffle_files=key is not None and not self.info.disable_shuffling,
            decoders={self._image: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(
                shuffle_seed=key, try_autocache=False, input_context=input_context if by_files else None
            ),
        )
        if not by_files:
            dataset = dataset.shard(workers, input_context.input_pipeline_id)
        dataset = dataset.map(lambda example: (example[self._image], self._numbered(example[self._label])), AUTOTUNE)
        buffer = max(1, min(number, SHUFFLE_BYTES // self._bytes_of_an_image()))  # all images, where they fit
        return dataset if key is None else dataset.shuffle(buffer, key, reshuffle_each_iteration=False)

    def _numbered(self, label):
        return label if self._numbers is None else tf.gather(tf.constant(self._numbers, tf.int64), label)

    def mapped(self, dataset: tf.data.Dataset, function, shape) -> tf.data.Dataset:
        """Returns a dataset of (stored image, label, ...) as (function(image, ...), label, ...).

        Args:
            dataset: as `read` returns it, perhaps with more tensors in each element.
            function: makes uint8 pixels of `shape` of a file's bytes, or of uint8 pixels, and these tensors.
        """

        def one(stored, label, *more):
            return function(self._given(stored), *more), label, *more

        return dataset.map(tf.autograph.experimental.do_not_convert(one), AUTOTUNE)

    def _given(self, stored):
        return stored if self._is_file else self._bytes(self._decoded(stored))

    @functools.cached_property
    def _is_file(self):
        import tensorflow_datasets as tfds

        return isinstance(self.feature, tfds.features.Image) and tf.as_dtype(self.feature.np_dtype).is_integer

    def _decoded(self, stored):
        image = self.feature.decode_example(stored)
        return image[..., None] if len(self.feature.shape) == 2 else image

    def _bytes(self, image):
        if image.dtype == tf.uint8:
            return image
        scaled = tf.cast(image, tf.float32) * self._factor
        is_in_range = (tf.reduce_min(scaled) >= 0) & (tf.reduce_max(scaled) <= 255)
        said = [f"The pixels of {self.name} must all be in the range of its first {LOOKED_AT} images: one is not."]
        with tf.control_dependencies([tf.debugging.Assert(is_in_range, said)]):
            return preprocessing.to_uint8(scaled)

    @functools.cached_property
    def _factor(self):
        """What the pixels are multiplied by, to be 0..255."""
        dtype = tf.as_dtype(self.feature.np_dtype)
        if dtype == tf.uint16:
            return self._said(255 / 65535, "0..65535 (uint16)")
        if dtype == tf.bool:
            return self._said(255, "False and True")
        with tf.init_scope():
            stored = self.read(next(iter(self.splits))).take(LOOKED_AT)
            images = [self._decoded(image).numpy() for image, _ in stored]
        least, most = min(map(np.min, images)), max(map(np.max, images))
        if not (least >= 0 and most <= 255):
            raise ValueError(
                f"The pixels of {self.name} are in {least:g}..{most:g}: 0..255, or 0..1 for floats, was expected."
            )
        return self._said(255, "0..1") if 0 < most <= 1 else 1

    def _said(self, factor, what):
        warnings.warn(f"The pixels of {self.name}, {what}, are scaled to 0..255.", stacklevel=6)
        return factor

    def check_range(self):
        """Looks at the range of the pixels, which `mapped` needs; warns where they are scaled to 0..255.

        Raises:
            ValueError: for pixels of another range than 0..255 and 0..1.
        """
        if tf.as_dtype(self.feature.np_dtype) != tf.uint8:
            self._factor  # noqa: B018 (it is computed once, here)


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
    """Returns the names of the image and of the label among a dataset's features."""
    keys = info.supervised_keys or ("image", "label")
    if len(keys) != 2 or not set(keys) <= set(info.features) or not hasattr(info.features[keys[1]], "names"):
        raise ValueError(
            f"{info.name} has no (image, label) pairs to classify; its features are {list(info.features)}."
        )
    return keys
