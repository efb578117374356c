"""A folder of images, SPLIT/CLASS/*.jpg, as a source of stored images and labels."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import preprocessing
from keras_sat.data import reading, slices
from keras_sat.typing import Path

SPLITS = ("train", "test", "validation", "val", "valid")
AUTOTUNE = tf.data.AUTOTUNE
_CHUNK = 16  # number of images that one inner dataset decodes; it reports which of them fail
_DIGESTED = 1000  # the fingerprint of a split includes the first bytes of this many files
DAMAGED = "This image cannot be read:"


class Folder:
    """A folder of images: `PATH/train/cat/1.jpg`, `PATH/test/dog/7.png`.

    Splits are folders named `train`, `test`, `validation`, `val` or `valid`. The classes are the folders in `train`,
    sorted by name. Hidden files and folders (".x", "._x.jpg", "__MACOSX") are ignored. Files that are not JPEG, PNG,
    GIF, BMP or WebP are skipped; a warning gives their number and an example.

    The order of a split is fixed, and mixes the classes. So each slice of it, such as `test[:500]`, has the classes in
    the same proportions as the split.

    Args:
        path: path of the folder.
        classes: names of the classes that a network knows, in the order of its outputs. The folders are matched with
            them by name. Default: the folders in `train`.
        skip_damaged: whether to read all files first and skip those that cannot be decoded. A warning names them.

    Attributes:
        path: the absolute path of the folder.
        name: the same as `path`.
        classes: names of the classes, in the order of the labels.
        splits: {split: number of images}.

    Raises:
        ValueError: for another layout, fewer than two classes, a class or a split without images, a class that is not
            in `train` (or in `classes`), or two folders whose names differ only in their Unicode form.
    """

    def __init__(self, path: Path, classes: list[str] | None = None, skip_damaged: bool = False) -> None:
        self.path = self.name = os.path.abspath(os.path.expanduser(os.fspath(path)))
        self._orders: dict[str, list[tuple[str, int]]] = {}
        self._left_out: dict[str, list[str]] = collections.defaultdict(list)
        self._files = {name: self._split(name) for name in _split_names(self.path)}
        self._warn_of_others()
        if skip_damaged:
            self._skip_damaged()
        self.classes = self._classes(classes)
        self.splits = {name: sum(map(len, files.values())) for name, files in self._files.items()}

    def _split(self, split):
        """Returns the files of a split: {class: paths}."""
        files, folder = {}, os.path.join(self.path, split)
        outside = [name for name in os.listdir(folder) if _is_image(name)]
        if outside:
            self._left_out["images in no class"] += [os.path.join(folder, name) for name in outside]
        for entry in _folders(folder):
            name = _normal(entry.name)
            if name in files:
                raise ValueError(
                    f"{self.path}/{split} holds two folders named {name!r}, in two forms of Unicode: rename one."
                )
            files[name] = self._images(entry.path)
        return files

    def _images(self, folder):
        """Returns the sorted paths of a class's images, and notes the files that are skipped."""
        paths = []
        for entry in os.scandir(folder):
            if reading.is_hidden(entry.name):
                continue
            if _is_image(entry.name) and not entry.is_dir():
                paths.append(entry.path)
                continue
            kind = os.path.splitext(entry.name)[1].lower() or "without an ending"
            self._left_out["folders in a class" if entry.is_dir() else kind].append(entry.path)
        return sorted(paths)

    def _warn_of_others(self):
        if self._left_out:
            counts = ", ".join(f"{len(paths)} {kind}" for kind, paths in sorted(self._left_out.items()))
            example = os.path.relpath(min(itertools.chain(*self._left_out.values())), self.path)
            warnings.warn(
                f"{self.path}: left out are {counts}, such as {example}. What is read: {reading.READABLE} files in "
                "SPLIT/CLASS/.",
                stacklevel=4,
            )

    def _classes(self, known):
        """Returns the names of the classes. Raises ValueError for an unknown class, or one without images."""
        for split, files in self._files.items():
            if not any(files.values()):
                raise ValueError(f"{self.path}/{split} has no images. {_expected(self.path)}")
        if known is not None:
            for split, files in self._files.items():
                self._check_known(split, files, [_normal(name) for name in known], "the network")
            return list(known)
        files = self._files.get("train") or {name: 1 for files in self._files.values() for name in files}
        names = sorted(files)
        if len(names) < 2:
            raise ValueError(f"{self.path} has one class only, {names[0]!r}: at least two are needed.")
        empty = [name for name in names if not files[name]]
        if empty:
            raise ValueError(f"{self.path}/train has no images of {_names(empty)}{self._kinds_of('train', empty)}.")
        for split, files in self._files.items():
            self._check_known(split, files, names, "train")
        return names

    def _check_known(self, split, files, names, whose):
        """Raises ValueError for classes of a split that are not in `names`; warns of classes without images.

        The error says that `whose`, such as "the network", does not know the class.
        """
        unknown = [f"{name!r} ({len(paths)} images)" for name, paths in files.items() if name not in names]
        lacking = [name for name in names if not files.get(name)]
        if unknown:
            lacks = f" {split} lacks {_names(lacking)}." if lacking else ""
            raise ValueError(
                f"{self.path}/{split} has classes that {whose} does not know: {_some(unknown)}.{lacks} The "
                "names must be the same."
            )
        if lacking:
            warnings.warn(f"{self.path}/{split} has no images of {_names(lacking)}.", stacklevel=5)

    def _kinds_of(self, split, names):
        """Returns which files, not images, are in the folders of these classes; as a text for an error message."""
        folders = {os.path.join(self.path, split, name) for name in names}
        kinds = [kind for kind, paths in self._left_out.items() if folders & {os.path.dirname(path) for path in paths}]
        return f": {', '.join(sorted(kinds))} cannot be read, {reading.READABLE} can" if kinds else ""

    def _skip_damaged(self):
        everything = [path for files in self._files.values() for paths in files.values() for path in paths]
        damaged = {image.path: image.fault for image in reading.read_all(everything) if image.fault}
        for files in self._files.values():
            files.update({name: [path for path in paths if path not in damaged] for name, paths in files.items()})
        if damaged:
            named = [f"{os.path.relpath(path, self.path)} ({fault})" for path, fault in damaged.items()]
            warnings.warn(
                f"{self.path}: damaged files are left out, {len(named)} in all: {_some(named)}.", stacklevel=4
            )

    def paths(self) -> list[str]:
        """Returns the paths of all images of all splits."""
        return [path for split in self._files for path, _ in self._ordered(split)]

    def readings(self) -> Iterator[reading.Reading]:
        """Decodes all images, and yields the `Reading` of each one, with its path relative to the folder."""
        for image in reading.read_all(self.paths()):
            place = os.path.relpath(image.path, self.path)
            yield dataclasses.replace(image, path=_normal(place))

    def examples(self, split: str) -> list[tuple[str, int]]:
        """Returns the images of a split or slice, in order: [(path, label), ...].

        Args:
            split: a split or slice, such as "test" or "test[:500]".
        """
        ranges = slices.absolute(self.path, split, self.splits)
        return [example for name, begin, end in ranges for example in self._ordered(name)[begin:end]]

    def _ordered(self, split):
        """Returns the examples of a whole split, in an order in which each slice has the proportions of the classes."""
        if split in self._orders:
            return self._orders[split]
        numbers = {_normal(name): number for number, name in enumerate(self.classes)}
        placed = []
        for name, paths in self._files[split].items():
            mixed = sorted(paths, key=_hash_of_name)
            placed += [(k / len(mixed), name, path) for k, path in enumerate(mixed)]
        self._orders[split] = [(path, numbers[name]) for _, name, path in sorted(placed)]
        return self._orders[split]

    @functools.cached_property
    def size_and_channels(self) -> tuple[tuple[int, int] | None, int]:
        """((height, width) of the images, or None if they differ in size; channels, 1 if all images are grey, else 3).

        The headers of the files are read until the result is certain.

        Raises:
            ValueError: for a file that cannot be decoded. The message names it.
        """
        sizes, are_grey = set(), True
        for path in self.paths():
            header = reading.header(path)
            if header is None and reading.read(path).fault:
                raise ValueError(damaged(path))
            size, is_grey = header or (None, False)
            sizes.add(size)
            are_grey &= is_grey
            if len(sizes) > 1 and not are_grey:
                break
        return sizes.pop() if len(sizes) == 1 else None, 1 if are_grey else 3

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Returns values that change if the images of a whole split change.

        Returns:
            A dict of "images" (their number), "classes" ({class: number of images}), and "sha256": a digest of the
            names and sizes of all files, and of the first bytes of up to 1000 files of all classes.
        """
        digest, files = hashlib.sha256(), self._files[split]
        for path in itertools.chain(*files.values()):
            size = os.path.getsize(path) if os.path.exists(path) else -1
            digest.update(f"{os.path.relpath(path, self.path)}\0{size}\n".encode(errors="surrogateescape"))
        for path, _ in self._ordered(split)[:_DIGESTED]:
            digest.update(_beginning(path))
        counts = {name: len(paths) for name, paths in files.items()}
        return {"images": self.splits[split], "classes": counts, "sha256": digest.hexdigest()}

    def number_of_images(self, split: str) -> int:
        """Returns the number of images in a split or slice, such as "test[:500]"."""
        return len(self.examples(split))

    def file_names(self, split: str) -> list[str]:
        """Returns the names of the files of a split or slice, without their folders, in the order of `labels`."""
        return [os.path.basename(path) for path, _ in self.examples(split)]

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split or slice, in its order: int array [n]."""
        return np.array([label for _, label in self.examples(split)])

    def read(
        self,
        split: str,
        input_context: tf.distribute.InputContext | None = None,
        key: tf.Tensor | None = None,
        places: np.ndarray | None = None,
    ) -> tf.data.Dataset:
        """Returns a dataset of (path, int64 label).

        Args:
            split: a split or slice, such as "train[:500]".
            input_context: if given, the dataset is the share of this worker.
            key: int64 seed of a shuffle. Default: no shuffle.
            places: sorted indices of the images to read, in the order of `labels`. Default: all images.
        """
        examples = self.examples(split)
        paths, labels = zip(*(examples if places is None else [examples[place] for place in places]))
        encoded = list(map(os.fsencode, paths))  # a file name need not be valid UTF-8
        dataset = tf.data.Dataset.from_tensor_slices((encoded, tf.constant(labels, tf.int64)))
        if input_context:
            dataset = dataset.shard(input_context.num_input_pipelines, input_context.input_pipeline_id)
        return dataset if key is None else dataset.shuffle(len(encoded), key, reshuffle_each_iteration=False)

    def map_images(
        self, dataset: tf.data.Dataset, function: Callable[..., tf.Tensor], shape: tuple[int, int, int]
    ) -> tf.data.Dataset:
        """Applies a function to the content of each file: (path, label, ...) -> (function(bytes, ...), label, ...).

        If the function fails, the error names the file.

        Args:
            dataset: a dataset from `read`, which may have additional tensors in each element.
            function: called with a file's bytes and the additional tensors, returns uint8 pixels of `shape`.
            shape: (height, width, channels).
        """

        def chunk(paths, labels, *more):
            pixels, failed = preprocessing.apply_to_each(
                lambda path, *given: function(tf.io.read_file(path), *given), (paths, *more), shape
            )
            is_whole = tf.equal(tf.size(failed), 0)
            with tf.control_dependencies([tf.debugging.Assert(is_whole, [DAMAGED, tf.gather(paths, failed[:1])])]):
                return tf.identity(pixels), labels, *more

        images = dataset.batch(_CHUNK).map(tf.autograph.experimental.do_not_convert(chunk), AUTOTUNE).unbatch()
        number = dataset.cardinality()
        return images if number < 0 else images.apply(tf.data.experimental.assert_cardinality(number))

    def check_range(self) -> None:
        """Does nothing: the pixels of an image file are always 0..255. See `Prepared.check_range`."""


def damaged(path: str) -> str:
    """Returns an error message that says why a file cannot be read, and what the user can do."""
    fault = reading.read(path).fault or "damaged"
    return f"{DAMAGED} {path} ({fault}). `keras-sat check` lists all such files; --skip_damaged leaves them out."


def _split_names(path):
    """Returns the names of the splits in a folder; raises ValueError if there are none."""
    folders = [entry.name for entry in _folders(path)]
    splits = [name for name in SPLITS if name in folders and any(_folders(os.path.join(path, name)))]
    if not splits:
        images = {name: _number_of_images(os.path.join(path, name)) for name in folders}
        counted = ", ".join(f"{name} ({number} images)" for name, number in images.items()) or "no folders"
        empty = [name for name in folders if name in SPLITS]
        lacks = f"{empty[0]}/ has no folders of classes" if empty else "there are no folders of splits"
        raise ValueError(f"{path}: {lacks}; it holds {counted}. {_expected(path)}")
    return splits


def _expected(path):
    return f"Expected: {path}/train/CLASS/*.jpg and {path}/test/CLASS/*.jpg"


def _normal(name):
    """Returns a name in Unicode's normal form C, so that equal names compare equal."""
    return unicodedata.normalize("NFC", name)


def _hash_of_name(path):
    return hashlib.sha256(os.fsencode(os.path.basename(path))).digest()


def _beginning(path):
    try:
        with open(path, "rb") as file:
            return file.read(2**16)
    except OSError:  # a dangling link
        return b""


def _number_of_images(folder):
    return sum(map(_is_image, os.listdir(folder)))


def _is_image(name):
    return name.lower().endswith(reading.KINDS) and not reading.is_hidden(name)


def _folders(path):
    entries = (entry for entry in os.scandir(path) if entry.is_dir() and not reading.is_hidden(entry.name))
    return sorted(entries, key=lambda entry: entry.name)


def _names(names):
    return _some([repr(name) for name in names])


def _some(texts, most=5):
    """Returns the first texts, separated by commas, and the number of the others."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
