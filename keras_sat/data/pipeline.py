"""Opens datasets, describes them, and loads them as batches for training and evaluation."""

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from keras_sat import preprocessing
from keras_sat.data import imagenet, order, slices
from keras_sat.data.folder import SPLITS, Folder
from keras_sat.data.prepared import Prepared, names
from keras_sat.preprocessing import Preprocessing
from keras_sat.typing import Path

if TYPE_CHECKING:
    from keras_sat.data._extra import Extra

Source: TypeAlias = Folder | Prepared  # an opened dataset

# Datasets whose images must not be mirrored: a mirrored digit, for example, may be another digit or no digit.
WITHOUT_FLIP = ("mnist", "emnist", "kmnist", "svhn_cropped", "gtsrb", "mnist_corrupted")
LARGEST_SMALL_IMAGE = 64  # pixels: augmentation shifts images up to this size, and takes a random part of larger ones
AUTOTUNE = tf.data.AUTOTUNE


@dataclasses.dataclass(frozen=True)
class Description:
    """The data that a network is trained on. A run records it; evaluation and export use it.

    Attributes:
        dataset: TFDS' name, or the absolute path of a folder.
        classes: names of the classes, in the order of the labels.
        preprocessing: how images are converted to pixels.
        splits: {split: fingerprint}. A fingerprint is a dict of "images" (number of images), "sha256" (see
            `Folder.fingerprint` and `Prepared.fingerprint`) and, for a folder, "classes" ({class: number of images}).
    """

    dataset: str
    classes: list[str]
    preprocessing: Preprocessing
    splits: dict[str, dict[str, Any]]

    def settings(self) -> dict[str, Any]:
        """Returns the attributes as a dict for a JSON file. `Description.of` reads it."""
        return {**self.__dict__, "preprocessing": self.preprocessing.settings()}

    def line(self) -> str:
        """Returns a summary in one line: the dataset, its splits, the number of classes and the shape of the images."""
        how = self.preprocessing
        sizes = ", ".join(f"{about['images']} images of {split}" for split, about in self.splits.items())
        crop = f", crop {how.crop}" if how.crop != "stretch" else ""
        return f"{self.dataset}: {sizes}, {len(self.classes)} classes, {' x '.join(map(str, how.shape))}{crop}."

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Description":
        """Returns the `Description` that has these settings. See `Description.settings`."""
        values = {field.name: settings[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**values, "preprocessing": Preprocessing.of(settings["preprocessing"])})

    def differences(self, other: "Description") -> list[str]:
        """Returns the differences from another description, as a list of lines; [] if the data are the same.

        The name of the dataset, or the path of the folder, is not compared.

        Args:
            other: the newer description.
        """
        lines = []
        if self.preprocessing != other.preprocessing:
            lines.append(f"preprocessing: {self.preprocessing} then, {other.preprocessing} now")
        gone = [name for name in self.classes if name not in other.classes]
        new = [name for name in other.classes if name not in self.classes]
        lines += [f"classes: {what} {', '.join(names[:5])}" for what, names in (("gone", gone), ("new", new)) if names]
        if not (gone or new) and self.classes != other.classes:
            lines.append("classes: in another order")
        for split in sorted({*self.splits, *other.splits}):
            lines += _differences(split, self.splits.get(split, {}), other.splits.get(split, {}))
        return lines


def _differences(split, then, now):
    """Returns the differences between two fingerprints of a split, as a list of lines."""
    if then == now:
        return []
    if then.get("images") != now.get("images"):
        return [f"{split}: {then.get('images', 0)} images then, {now.get('images', 0)} now"]
    before, after = then.get("classes", {}), now.get("classes", {})
    changed = [
        f"{name}: {before.get(name, 0)} then, {after.get(name, 0)} now"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    return [f"{split}: {', '.join(changed[:3])}"] if changed else [f"{split}: other files, of as many images"]


def source(
    dataset: Path | Source,
    data_dir: Path | None = None,
    *,
    classes: list[str] | None = None,
    skip_damaged: bool = False,
) -> Source:
    """Opens a dataset.

    Args:
        dataset: "fashion_mnist_mini", which is embedded; the name of a TFDS dataset; the path of a folder of images; or
            an opened dataset, which is returned unchanged.
        data_dir: TFDS' folder of prepared datasets. Default: TFDS' own default.
        classes: names of the classes that a network knows, in the order of its outputs. The labels of the dataset then
            follow this order. Default: the dataset's classes.
        skip_damaged: for a folder, whether to read all files first and skip those that cannot be decoded.

    Returns:
        A `Folder` or a `Prepared`: both have the attributes `classes` and `splits`, and `load` accepts both.

    Raises:
        ValueError: if the dataset cannot be opened, or has a class that is not in `classes`.
    """
    if isinstance(dataset, Source):
        return dataset
    name = os.path.expanduser(os.fspath(dataset))
    if is_folder(name):
        return Folder(name, classes, skip_damaged)
    if os.path.isfile(name):
        raise ValueError(f"{name} is a file: a folder of images, {name}/train/CLASS/*.jpg, was expected.")
    if os.path.isabs(name) or name.startswith(".") or name.count("/") > 1 or name.endswith("/"):
        raise ValueError(f"There is no folder {name!r}: of images, SPLIT/CLASS/*.jpg, was expected.")
    return Prepared(name, data_dir, classes)


def is_folder(name: str) -> bool:
    """Returns whether the name of a dataset is interpreted as the path of a folder.

    If TFDS has a dataset of this name, a folder of the same name is used only if it has splits. Without this rule, the
    folder of a run that has the name of its dataset, such as "cifar10", would be read in place of the dataset.

    Args:
        name: name of a dataset, or a path.
    """
    path = os.path.expanduser(name)
    if not os.path.isdir(path) or name in names():
        return False
    has_splits = any(os.path.isdir(os.path.join(path, split)) for split in SPLITS)
    if has_splits or os.path.basename(name) != name or name.startswith("."):
        return True
    import tensorflow_datasets as tfds  # takes a second to import

    return name not in tfds.list_builders(with_community_datasets=False)


def describe(
    dataset: Path | Source,
    image_size: int | None = None,
    data_dir: Path | None = None,
    *,
    crop: str | None = None,
    channels: int | None = None,
) -> Description:
    """Returns the `Description` of a dataset. See `load` for the arguments."""
    opened = source(dataset, data_dir)
    how = preprocessing_of(opened, image_size, crop, channels)
    splits = {split: opened.fingerprint(split) for split in opened.splits}
    return Description(opened.name, list(opened.classes), how, splits)


def preprocessing_of(
    opened: Source, image_size: int | None = None, crop: str | None = None, channels: int | None = None
) -> Preprocessing:
    """Returns the `Preprocessing` of an opened dataset. Arguments that are None are determined from its images.

    Args:
        opened: a dataset that `source` has opened.
        image_size: See `load`.
        crop: See `load`.
        channels: See `load`.

    Raises:
        ValueError: for an unknown crop, or images of several sizes without an `image_size`.
    """
    if crop not in (None, *preprocessing.CROPS):
        raise ValueError(f"crop must be one of {', '.join(preprocessing.CROPS)}. Received: {crop!r}")
    image_size = image_size or preprocessing.size_of(crop)
    if image_size is not None and crop is not None and channels is not None:
        return Preprocessing(image_size, image_size, channels, crop)
    size, own_channels = opened.size_and_channels
    output_size = (image_size, image_size) if image_size else size
    if output_size is None:
        raise ValueError(f"The images of {opened.name} differ in size: say image_size, such as image_size=224.")
    height, width = output_size
    return Preprocessing(height, width, channels or own_channels, crop or ("stretch" if size else "padded"))


def load(
    name: Path | Source,
    split: str,
    batch_size: int,
    image_size: int | None = None,
    training: bool = False,
    data_dir: Path | None = None,
    seed: int = 0,
    augment: bool = True,
    *,
    crop: str | None = None,
    channels: int | None = None,
    preprocessing: Preprocessing | None = None,
    hold_out: float = 0,
    held_out: bool = False,
    sample: int | None = None,
    epochs: int | None = None,
    first_step: int = 0,
    rand_augment: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    extra: "Extra | None" = None,
    extra_share: float = 0.0,
    extra_label_smoothing: float = 0.0,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Returns batches of (images, labels) of a classification dataset.

    `fashion_mnist_mini` is embedded in the package: 10,000 training and 2,000 test images, 28 x 28 x 1, of
    Fashion-MNIST (Zalando SE, MIT licence), with the same number of images in each of its 10 classes. Any other name is
    the name of a TFDS dataset ("cifar10", "imagenet2012"), or the path of a folder of images, `SPLIT/CLASS/*.jpg` (see
    `Folder`).

    Shuffling and augmentation depend only on the seed, the epoch and the position in the epoch. So the same arguments
    give the same batches, and training can begin at any step (`first_step`) without decoding the images before it.

    Args:
        name: name or path of the dataset, or a dataset that `source` has opened.
        split: "train", "test", or a slice in TFDS' syntax, such as "test[:500]". A slice of a folder has the classes in
            the same proportions as the split. "robustbench" means the 5,000 images of ImageNet's validation split on
            which RobustBench evaluates: of a folder with ImageNet's own file names, or of TFDS' imagenet2012.
        batch_size: number of images in a batch, over all devices and workers together.
        image_size: height and width of the returned images, in pixels. Default: the size of the images.
        training: whether to shuffle (differently in each epoch), to augment, and to drop the last, partial batch.
            Default: False.
        data_dir: TFDS' folder of prepared datasets. Default: TFDS' own default.
        seed: seed of shuffling, augmentation, `hold_out`, `sample` and `extra`. Default: 0.
        augment: in training, whether to augment. Default: True. Images of up to 64 pixels are shifted at random by up
            to an eighth of their size; of larger images a random part is taken (`preprocessing.random_part`). Half of
            the images are mirrored, unless this would change their class.
        crop: which part of an image is used: "stretch", "padded", "shortest_edge", or a preprocessing of RobustBench,
            such as "Res256Crop224", which says its own size. See `preprocessing.Preprocessing`. Default: "stretch" if
            the images have one size, otherwise "padded".
        channels: 1 (grey) or 3 (RGB). Default: 1 if all images are grey, otherwise 3.
        preprocessing: a `preprocessing.Preprocessing`, in place of `image_size`, `crop` and `channels`.
        hold_out: images of the split to hold out, for validation: a share below 1, or a number from 1 on. They are
            drawn at random by the seed, in proportion to the sizes of the classes: at least one of each class, and not
            the last one of a class, where the number allows it. (Of a TFDS split larger than 1 GiB, labels are not
            read: there they are drawn uniformly.) Default: 0, none.
        held_out: with `hold_out`, whether to return the images held out, in place of the others. Default: False.
        sample: with training=False, number of images to draw at random from the split, or from its part that
            `held_out` chooses: at least one of each class, the others in proportion to the sizes of the classes.
            Default: all images.
        epochs: in training, number of epochs in the dataset, one after the other, for `fit(steps_per_epoch=...)`.
            Default: one epoch, with a different order each time the dataset is iterated.
        first_step: with `epochs`, index of the first batch, counted over all epochs. Default: 0.
        rand_augment: in training, factor 0..1 of Keras' RandAugment. Default: it is not used.
        mixup: in training, alpha of Keras' MixUp. Default: it is not used. With `mixup` or `cutmix`, labels are float32
            [batch, classes].
        cutmix: in training, factor of Keras' CutMix. Default: it is not used. With `mixup` and `cutmix`, each batch
            gets one of them, chosen at random.
        extra: in training, extra images for a part of each batch, which `data.extra` has opened. They are augmented in
            the same way. An epoch has as many batches as without them, so it sees a part of the split: another random
            part in each epoch. Default: none.
        extra_share: with `extra`, the share of extra images in a batch (with `input_context`, in a replica's batch),
            between 0 and 1. It is rounded to a number of images: at least one, and at most all but one.
        extra_label_smoothing: with `extra`, label smoothing s of extra images, at least 0 and below 1. If it is not 0,
            labels are float32 [batch, classes]: one-hot for images of the split, (1 - s) one-hot + s / classes for
            extra images. MixUp and CutMix come after it. Default: 0.
        input_context: for `strategy.distribute_datasets_from_function`. The dataset then has this worker's share of the
            images, in batches for one replica. Default: all images.

    Returns:
        A tf.data.Dataset of images, uint8 [batch, height, width, channels] in 0..255, and int64 labels [batch].

    Raises:
        ValueError: for an unknown dataset or split, a dataset without (image, label) pairs, or images of several sizes
            without an `image_size`; for a `hold_out` that holds out no image or all, or leaves less than a batch; for
            `extra` with another preprocessing or other classes, or with images that `hold_out` may hold out. If a
            dataset is not prepared, the message has the command that prepares it.
        tf.errors.InvalidArgumentError: during iteration, for a damaged image. For a folder, the message names the file.
    """
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise ValueError(f"batch_size must be an integer >= 1. Received: {batch_size!r}")
    opened = source(name, data_dir)
    split, listed = imagenet.resolve(opened, split)
    how = preprocessing or preprocessing_of(opened, image_size, crop, channels)
    context = input_context or tf.distribute.InputContext()
    share = context.get_per_replica_batch_size(batch_size)
    extras = _number_of_extra(extra, share, extra_share, extra_label_smoothing, training)
    places = _places(opened, split, hold_out, held_out, None if training else sample, seed, listed)
    number = opened.number_of_images(split) if places is None else len(places)
    if training and number < batch_size:
        raise ValueError(
            f"{opened.name} {split} has fewer images ({number}{f', with hold_out={hold_out:g}' if hold_out else ''}) "
            f"than a batch of {batch_size}: choose a smaller batch_size."
        )
    if extra is not None:
        _check_extra(extra, opened, how)
        if hold_out and extra.shared(opened, split):
            raise ValueError(
                f"The images held out of {opened.name} {split} are among the extra images of {extra.name}: choose "
                "other extra images, or hold_out=0 and a split for validation that is not among them."
            )
    opened.check_range()
    read = functools.partial(opened.read, split, input_context, places=places)
    if not training:
        dataset = opened.map_images(read(), how, how.shape)
        return dataset.batch(share, num_parallel_calls=AUTOTUNE).prefetch(AUTOTUNE)
    augmented = _augmentation(opened, how, augment, rand_augment)
    workers, steps = context.num_input_pipelines, number // batch_size
    replicas = context.num_replicas_in_sync // workers
    dataset = order.epochs(read, seed, steps, (share - extras) * replicas, epochs, first_step, workers)
    dataset = _batches(opened, dataset, augmented, how.shape, share - extras)
    if extra is not None:
        more = extra.stream(seed, extras * replicas, first_step if epochs else None, context)
        more = _batches(extra, more, augmented, how.shape, extras)
        joined = _joining(len(opened.classes), extra_label_smoothing)
        dataset = tf.data.Dataset.zip(dataset, more).map(joined, AUTOTUNE)
    dataset = dataset.map(_mixing(len(opened.classes), mixup, cutmix), AUTOTUNE)
    # With `epochs`, Keras must not know the number of batches: fit(steps_per_epoch=...) would also expect the batches
    # that `first_step` skips.
    if not epochs and not input_context:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    return dataset.prefetch(AUTOTUNE)


def class_names(name: Path | Source, data_dir: Path | None = None) -> list[str]:
    """Returns the names of a dataset's classes, in the order of the labels. See `source` for the arguments."""
    return list(source(name, data_dir).classes)


def evaluation_split(name: Path | Source, data_dir: Path | None = None) -> str:
    """Returns the name of the split to evaluate on: the first of "test", "validation", "val" and "valid" that exists.

    See `source` for the arguments.

    Raises:
        ValueError: if none of these splits exists. The message says how to cut a part of another one.
    """
    opened = source(name, data_dir)
    for split in SPLITS[1:]:
        if split in opened.splits:
            return split
    which = "train" if "train" in opened.splits else next(iter(opened.splits))
    there = ", ".join(f"{split} ({number} images)" for split, number in opened.splits.items())
    raise ValueError(
        f"{opened.name} has no split to evaluate on, only {there}: cut a part of it, training on "
        f"--train_split='{which}[:90%]' and evaluating on --split='{which}[90%:]'."
    )


def number_held_out(
    name: Path | Source, split: str = "train", hold_out: float = 0.05, data_dir: Path | None = None
) -> int:
    """Returns the number of images that `load(..., hold_out=)` holds out of a split. See `load` for the arguments.

    Raises:
        ValueError: if `hold_out` is no share and no number of images, or holds out no image or all.
    """
    opened = source(name, data_dir)
    return slices.number_held_out(opened.name, split, opened.number_of_images(split), hold_out)


def overlap(name: Path | Source, one: str, other: str, data_dir: Path | None = None) -> int:
    """Returns the number of images that two splits or parts of a dataset have in common.

    Args:
        name: see `source`.
        one, other: splits or parts, such as "train" and "train[90%:]".
        data_dir: see `source`.
    """
    opened = source(name, data_dir)
    (one, places), (other, _) = imagenet.resolve(opened, one), imagenet.resolve(opened, other)
    parts = [slices.absolute(opened.name, split, opened.splits) for split in (one, other)]
    if places is not None:
        parts[0] = [(one, int(place), int(place) + 1) for place in places]
    return slices.overlap(*parts)


def shape_and_classes(
    name: Path | Source, image_size: int | None = None, data_dir: Path | None = None
) -> tuple[tuple[int | None, int | None, int], int]:
    """Returns the shape (height, width, channels) of the images that `load` returns, and the number of classes.

    Height and width are None if the images differ in size and `image_size` is not given. See `load` for the arguments.
    """
    opened = source(name, data_dir)
    size, channels = opened.size_and_channels
    height, width = (image_size, image_size) if image_size else size or (None, None)
    return (height, width, channels), len(opened.classes)


def _places(opened, split, hold_out, held_out, sample, seed, listed):
    """Returns the sorted indices of the images that `load` returns, or None for all. See `load` for the arguments.

    They are chosen from the indices `listed`, or from all for None. They depend on the split, the seed and these
    numbers alone: all workers and all epochs have the same.
    """
    if sample is not None and sample < 1:
        raise ValueError(f"sample must be a number of images >= 1. Received: {sample!r}")
    if listed is not None and hold_out:
        raise ValueError(f"The split {imagenet.SPLIT!r} is for evaluation: leave hold_out out.")
    places = np.arange(opened.number_of_images(split)) if listed is None else listed
    number = slices.number_held_out(opened.name, split, len(places), hold_out)
    if held_out and not number:
        raise ValueError("held_out=True returns the images that hold_out holds out: say hold_out, such as 0.05.")
    if not number and (sample is None or sample >= len(places)):
        return listed
    labels = opened.labels(split)
    if number:
        slices.check_apart(opened.name, split, opened.splits)
        held = slices.stratified(labels, number, np.random.default_rng(seed), leave=True)
        places = held if held_out else np.delete(places, held)
    if sample is not None and sample < len(places):
        places = places[slices.stratified(labels[places], sample, np.random.default_rng(seed))]
    return places


def _batches(opened, dataset, function, shape, size):
    """Returns batches of images, to which a function is applied, with labels and seeds."""
    return opened.map_images(dataset, function, shape).batch(size, drop_remainder=True, num_parallel_calls=AUTOTUNE)


def _number_of_extra(extra, batch, share, label_smoothing, training):
    """Returns the number of extra images in a batch. See `load` for the arguments."""
    if extra is None:
        if share or label_smoothing:
            raise ValueError("extra_share and extra_label_smoothing are for extra images: open some, data.extra(...).")
        return 0
    if not training:
        raise ValueError("Extra images are for training: say training=True, or leave extra out.")
    if not 0 < share < 1:
        raise ValueError(f"extra_share must be above 0 and below 1. Received: {share!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"extra_label_smoothing must be at least 0 and below 1. Received: {label_smoothing!r}")
    if batch < 2:
        raise ValueError(f"A batch of {batch} has no place for an extra image beside one of the split: at least 2.")
    return min(max(1, round(share * batch)), batch - 1)


def _check_extra(extra, opened, how):
    if extra.preprocessing != how:
        raise ValueError(f"The extra images have {extra.preprocessing}, the training images {how}: open them with it.")
    if extra.classes != list(opened.classes):
        raise ValueError(
            f"The extra images have the classes {', '.join(extra.classes)}, the training images "
            f"{', '.join(opened.classes)}: open them with these, data.extra(..., classes=)."
        )


def _joining(classes, label_smoothing):
    """Returns a function that joins a batch of the split with one of extra images: images, labels and seeds of each."""

    def joined(batch, more):
        (images, labels, seeds), (more_images, more_labels, more_seeds) = batch, more
        if label_smoothing:
            labels, more_labels = (tf.one_hot(numbers, classes) for numbers in (labels, more_labels))
            more_labels = (1 - label_smoothing) * more_labels + label_smoothing / classes
        pairs = ((images, more_images), (labels, more_labels), (seeds, more_seeds))
        return tuple(tf.concat(pair, 0) for pair in pairs)

    return joined


def _augmentation(opened, how, augment, rand_augment):
    """Returns a function from a stored image and a seed to augmented uint8 pixels."""
    layer = None if rand_augment is None else keras.layers.RandAugment(factor=rand_augment)
    is_small = max(how.shape[:2]) <= LARGEST_SMALL_IMAGE
    is_flipped = augment and opened.name.split("/")[0].split(":")[0] not in WITHOUT_FLIP

    def augmented(image, seed):
        if augment and not is_small:
            image = preprocessing.random_part(image, how.shape, preprocessing.fold(seed, 0))
        else:
            image = how(image)
        if augment and is_small:
            image = preprocessing.random_shift(image, max(how.shape[:2]) // 8, preprocessing.fold(seed, 0))
        if is_flipped:
            image = tf.image.stateless_random_flip_left_right(image, preprocessing.fold(seed, 1))
        if layer is not None:
            image = preprocessing.to_uint8(preprocessing.stateless(layer, preprocessing.fold(seed, 2), image))
        return image

    return augmented


def _mixing(classes, mixup, cutmix):
    """Returns a function from a batch of images, labels and seeds to images and labels, mixed by MixUp or CutMix."""
    layers = [] if mixup is None else [keras.layers.MixUp(alpha=mixup)]
    layers += [] if cutmix is None else [keras.layers.CutMix(factor=cutmix)]

    def mixed(images, labels, seeds):
        if not layers:
            return images, labels
        batch = {"images": images, "labels": tf.one_hot(labels, classes) if labels.dtype.is_integer else labels}
        seed = preprocessing.fold(seeds[0], 3)
        outputs = [lambda layer=layer: preprocessing.stateless(layer, seed, batch) for layer in layers]
        chosen = tf.random.stateless_uniform([], preprocessing.fold(seed, 4), maxval=len(layers), dtype=tf.int32)
        batch = tf.switch_case(chosen, outputs)
        return preprocessing.to_uint8(batch["images"]), batch["labels"]

    return mixed
