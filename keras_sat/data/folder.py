"""A folder of images, SPLIT/CLASS/*.jpg, as a dataset."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import unicodedata
import warnings

import numpy as np
import tensorflow as tf

from keras_sat import preprocessing
from keras_sat.data import reading, slices

SPLITS = ("train", "test", "validation", "val", "valid")
AUTOTUNE = tf.data.AUTOTUNE
_CHUNK = 16  # images that share the cost of catching an error
_DIGESTED = 1000  # files of a split whose beginnings are part of its fingerprint
DAMAGED = "This image cannot be read:"


class Folder:
    """A folder of images: `PATH/train/cat/1.jpg`, `PATH/test/dog/7.png`.

    The splits are `train`, and `test`, `validation`, `val` or `valid`. The classes are the folders of `train`, sorted
    by name. Hidden files and folders (".x", "._x.jpg", "__MACOSX") are left out. Files of other kinds than JPEG, PNG,
    GIF, BMP and WebP are left out, counted and named in a warning.

    A split's order is fixed and mixed: each part of it, such as `test[:500]`, holds all classes in proportion.

    Args:
        path: of the folder.
        classes: names of the classes that a network knows, in its order; the folders are matched with them by name.
            Default: the folders' own.
        skip_damaged: reads all files first, and leaves out those that cannot be read; a warning names them.

    Raises:
        ValueError: for another layout, fewer than two classes, a class or a split without images, a class that `train`
            (or `classes`) does not have, or names that differ in their Unicode form alone.
    """

    def __init__(self, path: str | os.PathLike, classes: list[str] | None = None, skip_damaged: bool = False):
        self.path = self.name = os.path.abspath(os.path.expanduser(os.fspath(path)))
        self._orders = {}
        self._left_out = collections.defaultdict(list)
        self._files = {name: self._split(name) for name in _split_names(self.path)}
        self._warn_of_others()
        if skip_damaged:
            self._skip_damaged()
        self.classes = self._classes(classes)
        self.splits = {name: sum(map(len, files.values())) for name, files in self._files.items()}

    def _split(self, split):
        """Returns {class: paths} of a split."""
        found, folder = {}, os.path.join(self.path, split)
        outside = [name for name in os.listdir(folder) if _is_image(name)]
        if outside:
            self._left_out["images in no class"] += [os.path.join(folder, name) for name in outside]
        for entry in _folders(folder):
            name = _normal(entry.name)
            if name in found:
                raise ValueError(
                    f"{self.path}/{split} holds two folders named {name!r}, in two forms of Unicode: rename one."
                )
            found[name] = self._images(entry.path)
        return found

    def _images(self, folder):
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
        """Returns the names of the classes; refuses folders without images, or that are not among the classes."""
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
        """Refuses classes of a split that are not among `names`, those of `whose`; warns of those that it lacks."""
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
        """Returns what files there are in place of images."""
        folders = {os.path.join(self.path, split, name) for name in names}
        kinds = [kind for kind, paths in self._left_out.items() if folders & {os.path.dirname(path) for path in paths}]
        return f": {', '.join(sorted(kinds))} cannot be read, {reading.READABLE} can" if kinds else ""

    def _skip_damaged(self):
        paths = [path for files in self._files.values() for found in files.values() for path in found]
        damaged = {found.path: found.fault for found in reading.read_all(paths) if found.fault}
        for files in self._files.values():
            files.update({name: [path for path in found if path not in damaged] for name, found in files.items()})
        if damaged:
            named = [f"{os.path.relpath(path, self.path)} ({fault})" for path, fault in damaged.items()]
            warnings.warn(
                f"{self.path}: damaged files are left out, {len(named)} in all: {_some(named)}.", stacklevel=4
            )

    def paths(self) -> list[str]:
        """Returns the paths of all images of all splits."""
        return [path for split in self._files for path, _ in self._ordered(split)]

    def readings(self):
        """Yields the `Reading` of each image, by its path in the folder."""
        for found in reading.read_all(self.paths()):
            place = os.path.relpath(found.path, self.path)
            yield dataclasses.replace(found, path=_normal(place))

    def examples(self, split: str) -> list[tuple[str, int]]:
        """Returns [(path, number of the class)] of a split or of a slice of it, in its order."""
        found = []
        for name, begin, end in slices.absolute(self.path, split, self.splits):
            found += self._ordered(name)[begin:end]
        return found

    def _ordered(self, split):
        """Returns the examples of a whole split, mixed: any part of it holds all classes in proportion."""
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
    def looked(self) -> tuple[tuple[int, int] | None, int]:
        """(height, width) of all images, or None where they differ; and channels, 1 if all images are grey.

        The headers of the files are read, until they differ.

        Raises:
            ValueError: for a file that is no image; the message names it.
        """
        sizes, are_grey = set(), True
        for path in self.paths():
            found = reading.header(path)
            if found is None and reading.read(path).fault:
                raise ValueError(damaged(path))
            size, is_grey = found or (None, False)
            sizes.add(size)
            are_grey &= is_grey
            if len(sizes) > 1 and not are_grey:
                break
        return sizes.pop() if len(sizes) == 1 else None, 1 if are_grey else 3

    def fingerprint(self, split: str) -> dict:
        """Returns what tells a whole split from a changed one: images, images of each class, a digest.

        The digest is of the names and sizes of all files, and of what some of them hold, of all classes.
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
        """Returns how many images a split, or a slice of it, has."""
        return len(self.examples(split))

    def sample(self, split: str, number: int, seed: int) -> np.ndarray:
        """Returns the places of `number` images of a split, of all classes: at least one, then in proportion."""
        labels = np.array([label for _, label in self.examples(split)])
        return slices.stratified(labels, min(number, len(labels)), np.random.default_rng(seed))

    def read(self, split: str, input_context=None, key=None) -> tf.data.Dataset:
        """Returns a dataset of paths and labels, shuffled by an int64 `key` if there is one."""
        paths, labels = zip(*self.examples(split))
        paths = list(map(os.fsencode, paths))  # a name need not be UTF-8
        dataset = tf.data.Dataset.from_tensor_slices((paths, tf.constant(labels, tf.int64)))
        if input_context:
            dataset = dataset.shard(input_context.num_input_pipelines, input_context.input_pipeline_id)
        return dataset if key is None else dataset.shuffle(len(paths), key, reshuffle_each_iteration=False)

    def mapped(self, dataset: tf.data.Dataset, function, shape) -> tf.data.Dataset:
        """Returns a dataset of (path, label, ...) as (function(bytes, ...), label, ...); an error names the file.

        Args:
            dataset: as `read` returns it, perhaps with more tensors in each element.
            function: makes uint8 pixels of `shape` of a file's bytes and these tensors.
        """

        def chunk(paths, labels, *more):
            pixels, failed = preprocessing.apply_to_each(
                lambda path, *given: function(tf.io.read_file(path), *given), (paths, *more), shape
            )
            is_whole = tf.equal(tf.size(failed), 0)
            with tf.control_dependencies([tf.debugging.Assert(is_whole, [DAMAGED, tf.gather(paths, failed[:1])])]):
                return tf.identity(pixels), labels, *more

        made = dataset.batch(_CHUNK).map(tf.autograph.experimental.do_not_convert(chunk), AUTOTUNE).unbatch()
        number = dataset.cardinality()
        return made if number < 0 else made.apply(tf.data.experimental.assert_cardinality(number))

    def check_range(self):
        """Does nothing: the pixels of an image file are 0..255."""


def damaged(path: str) -> str:
    """Returns in a line what is wrong with a file, and what to do."""
    fault = reading.read(path).fault or "damaged"
    return f"{DAMAGED} {path} ({fault}). `keras-sat check` lists all such files; --skip_damaged leaves them out."


def _split_names(path):
    """Returns the names of the folders of splits; raises ValueError where there are none."""
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
    """Returns a name in one of the forms that Unicode has for it."""
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
    """Returns the first of many texts in a line."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
