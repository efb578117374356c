"""Extra images, such as those of a generative model, for a share of every training batch."""

import abc
import contextlib
import functools
import hashlib
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import preprocessing as preprocessing_lib
from keras_sat.data import order
from keras_sat.data.pipeline import Source, overlap, source
from keras_sat.preprocessing import Preprocessing
from keras_sat.typing import Path

AUTOTUNE = tf.data.AUTOTUNE
SPLIT = "train"  # the split of a dataset that is used
KEYS = ("image", "label")  # of an .npz file, as DeepMind and wzekai99/DM-Improves-AT publish generated images
_ENDLESS = np.iinfo(np.int64).max
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a file in a zip archive: ends with the lengths of its name and extra field


class Extra(abc.ABC):
    """Extra images for a share of every training batch; see `extra`, which returns one.

    Attributes:
        name: absolute path of the .npz file, or name of the dataset.
        number: number of images.
        classes: names of the classes, in the order of the labels.
        preprocessing: how images are converted to pixels.
    """

    def __init__(self, name: str, number: int, classes: list[str], preprocessing: Preprocessing) -> None:
        self.name, self.number, self.classes, self.preprocessing = name, number, list(classes), preprocessing

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Returns values that change if the images change: "images" (their number) and "sha256", for a JSON file.

        It takes no longer for large files: the digest is of the checksums in an .npz file, or `fingerprint` of the
        dataset's split.
        """

    def line(self) -> str:
        """Returns a summary in one line: the name, the number of images, and the shape of the pixels."""
        shape = " x ".join(map(str, self.preprocessing.shape))
        return f"Extra images: {self.number} of {self.name}, {shape}."

    def shared(self, opened: Source, split: str) -> int:
        """Returns the number of images of a split or slice of a dataset that are among the extra images.

        Only a dataset with the same images in its split "train" is known to have some.
        """
        return 0

    def stream(
        self, seed: int, images: int, first_step: int | None, context: tf.distribute.InputContext
    ) -> tf.data.Dataset:
        """Returns an endless dataset of (stored image, label, seed), for `map_images`.

        Args:
            seed: seed of the order.
            images: number of images in a step, of this worker.
            first_step: index of the first step. None begins at 0, with other images each time the dataset is iterated.
            context: the number of workers, and which this one is. The dataset is its share.
        """
        if first_step is None:
            seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
        else:
            seeds = tf.data.Dataset.from_tensors(tf.constant(seed, tf.int64))
        one = functools.partial(self._stream, images, first_step or 0, context)
        return seeds.flat_map(tf.autograph.experimental.do_not_convert(one))

    @abc.abstractmethod
    def _stream(self, images, first_step, context, seed):
        """Returns the dataset of `stream` for an int64 seed, from a step on."""

    @abc.abstractmethod
    def map_images(
        self, dataset: tf.data.Dataset, function: Callable[..., tf.Tensor], shape: tuple[int, int, int]
    ) -> tf.data.Dataset:
        """Applies a function to each image: (stored image, label, seed) -> (function(image, seed), label, seed).

        See `Folder.map_images` for the arguments.
        """


def extra(
    name: Path | Source,
    data_dir: Path | None = None,
    *,
    classes: list[str],
    preprocessing: Preprocessing,
) -> Extra:
    """Opens extra images, for `load(..., extra=)`.

    An .npz file has the arrays "image", uint8 [n, height, width, 1 or 3] in 0..255, and "label", integers [n] in
    0..classes - 1; others in the file are ignored. DeepMind and Wang et al. (wzekai99/DM-Improves-AT on GitHub) publish
    generated images in this form. Images are drawn from it with replacement, as Wang et al. do. An array that is
    stored without compression (`numpy.savez`) stays on the disk: only the images that are drawn are read. A compressed
    one (`numpy.savez_compressed`) is read into memory once.

    Of a dataset, the split "train" is used, in shuffled epochs one after the other.

    Images of another size or number of channels than the preprocessing's are converted by it, as stored images of a
    dataset are; with the crop "stretch", images of its size remain as they are.

    Args:
        name: path of an .npz file; or a dataset as for `source`, whose classes are matched by name.
        data_dir: TFDS' folder of prepared datasets. Default: TFDS' own default.
        classes: names of the classes of the network, in the order of its outputs.
        preprocessing: how images are converted to pixels: that of the training images.

    Raises:
        ValueError: if the file is damaged, has no such arrays, needs pickle, or has labels out of range; or if the
            dataset cannot be opened, has no split "train", or has other classes.
    """
    path = None if isinstance(name, Source) else os.path.expanduser(os.fspath(name))
    if path is not None and (path.endswith(".npz") or os.path.isfile(path)):
        return _File(path, classes, preprocessing)
    return _Dataset(source(name, data_dir, classes=classes), classes, preprocessing)


class _Dataset(Extra):
    """Extra images from the split "train" of an opened dataset."""

    def __init__(self, opened: Source, classes: list[str], preprocessing: Preprocessing) -> None:
        if SPLIT not in opened.splits:
            raise ValueError(
                f"{opened.name} has no split {SPLIT!r}, which is used for extra images; it has "
                f"{', '.join(opened.splits)}."
            )
        if list(opened.classes) != list(classes):
            raise ValueError(
                f"The extra images of {opened.name} have the classes {', '.join(opened.classes)}, the "
                f"network has {', '.join(classes)}: open them with source(..., classes=)."
            )
        opened.check_range()
        super().__init__(opened.name, opened.splits[SPLIT], classes, preprocessing)
        self._opened = opened

    def fingerprint(self) -> dict[str, Any]:
        return self._opened.fingerprint(SPLIT)

    def shared(self, opened: Source, split: str) -> int:
        is_same = SPLIT in opened.splits and opened.fingerprint(SPLIT) == self.fingerprint()
        return overlap(opened, SPLIT, split) if is_same else 0

    def _stream(self, images, first_step, context, seed):
        workers = context.num_input_pipelines if context.num_input_pipelines <= self.number else 1
        size = self.number // workers
        first, done = divmod(first_step * images, size)

        def read(key):
            return self._opened.read(SPLIT, context if workers > 1 else None, key)

        def one(epoch):
            # The complement: if these are the training images too, another order, and other augmentations.
            key = tf.bitwise.invert(order.epoch_key(seed, epoch))
            return order.shuffled(read, key, size, tf.where(epoch == first, done, 0), workers)

        return tf.data.Dataset.range(first, _ENDLESS).flat_map(tf.autograph.experimental.do_not_convert(one))

    def map_images(
        self, dataset: tf.data.Dataset, function: Callable[..., tf.Tensor], shape: tuple[int, int, int]
    ) -> tf.data.Dataset:
        return self._opened.map_images(dataset, function, shape)


class _File(Extra):
    """Extra images from an .npz file."""

    def __init__(self, path: str, classes: list[str], preprocessing: Preprocessing) -> None:
        path = os.path.abspath(path)
        with _damage_reported(path):
            members = _members(path)
        _check_arrays(path, members)
        with _damage_reported(path):
            self._images, labels = (members[key].array(path) for key in KEYS)
        self._labels = np.asarray(labels, np.int64)
        least, most = np.min(self._labels), np.max(self._labels)
        if least < 0 or most >= len(classes):
            raise ValueError(
                f"The labels of {path} are in {least}..{most}: class numbers in 0..{len(classes) - 1} were expected."
            )
        super().__init__(path, len(self._labels), classes, preprocessing)
        stored = [(key, members[key].info.CRC, members[key].info.file_size) for key in KEYS]
        self._sha256 = hashlib.sha256(json.dumps(stored).encode()).hexdigest()

    def fingerprint(self) -> dict[str, Any]:
        return {"images": self.number, "sha256": self._sha256}

    def line(self) -> str:
        shape = " x ".join(map(str, self._images.shape[1:]))
        output = " x ".join(map(str, self.preprocessing.shape))
        return f"Extra images: {self.number} of {self.name}, {shape}{f', as {output}' if output != shape else ''}."

    def _stream(self, images, first_step, context, seed):
        key, shape = tf.bitwise.invert(order.epoch_key(seed, 0)), self._images.shape[1:]

        def look_up(places):
            return np.asarray(self._images[places]), self._labels[places]

        def draw(step):
            seed = preprocessing_lib.fold(order.seed_at(key, step), context.input_pipeline_id)
            places = tf.random.stateless_uniform([images], seed, 0, self.number, tf.int64, alg="philox")
            # Not a constant, of which a graph holds up to 2 GB.
            pixels, labels = tf.numpy_function(look_up, [places], (tf.uint8, tf.int64), stateful=False)
            seeds = preprocessing_lib.fold(seed, 1)
            seeds = tf.random.stateless_uniform([images, 2], seeds, None, None, tf.int32, alg="philox")
            return tf.ensure_shape(pixels, (images, *shape)), tf.ensure_shape(labels, (images,)), seeds

        steps = tf.data.Dataset.range(first_step, _ENDLESS)
        return steps.map(tf.autograph.experimental.do_not_convert(draw), AUTOTUNE).unbatch()

    def map_images(
        self, dataset: tf.data.Dataset, function: Callable[..., tf.Tensor], shape: tuple[int, int, int]
    ) -> tf.data.Dataset:
        def one(pixels, label, seed):
            return function(pixels, seed), label, seed

        return dataset.map(tf.autograph.experimental.do_not_convert(one), AUTOTUNE)


class _Member:
    """An array in an .npz file, which is a zip archive of .npy files. Its header is read at once, its values later."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.info = info
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"{info.filename} has the version {version} of the .npy format, which is not read")
            self.shape, self.is_fortran, self.dtype = _HEADERS[version](file)
            self.begin = file.tell()

    def array(self, path: str) -> np.ndarray:
        """Returns the array: of the file on the disk, or in memory if it is compressed."""
        if self.info.file_size != self.begin + math.prod(self.shape) * self.dtype.itemsize:
            raise ValueError(f"{self.info.filename} is cut short")
        if self.info.compress_type != zipfile.ZIP_STORED:
            with zipfile.ZipFile(path) as archive, archive.open(self.info) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(self.info.header_offset)
            lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        begin = self.info.header_offset + _LOCAL_HEADER.size + sum(lengths) + self.begin
        return np.memmap(path, self.dtype, "r", begin, self.shape, "F" if self.is_fortran else "C")


def _members(path):
    """Returns {name: array}: the `_Member` of each array that is used, and None for others."""
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        return {key: _Member(archive, info) if key in KEYS else None for key, info in infos.items()}


@contextlib.contextmanager
def _damage_reported(path):
    """A context that turns what is raised for a damaged file into a ValueError of one line."""
    try:
        yield
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read as an .npz file of images and labels ({reason}): copy or download it again."
        ) from error


def _check_arrays(path, members):
    lacking = [key for key in KEYS if key not in members]
    if lacking:
        raise ValueError(
            f"{path} has no array {lacking[0]!r}: an .npz file with 'image' and 'label' was expected; it has "
            f"{', '.join(members)[:200] or 'no arrays'}."
        )
    images, labels = (members[key] for key in KEYS)
    shape = tuple(images.shape)
    if images.dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"The images of {path} are {images.dtype} {shape}: uint8 [n, height, width, 1 or 3], pixels 0..255, were "
            "expected."
        )
    if labels.dtype.kind not in "iu" or tuple(labels.shape) != shape[:1]:
        raise ValueError(
            f"The labels of {path} are {labels.dtype} {tuple(labels.shape)}: integers [{shape[0]}], a class number for "
            "each image, were expected."
        )
