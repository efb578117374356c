"""A dataset's images -> batches for training and evaluation."""

import dataclasses
import functools
import os

import keras
import numpy as np
import tensorflow as tf

from keras_sat import preprocessing
from keras_sat.data.folder import SPLITS, Folder
from keras_sat.data.prepared import Prepared, names
from keras_sat.preprocessing import Preprocessing

# A mirror image of these is another class, or none.
WITHOUT_FLIP = ("mnist", "emnist", "kmnist", "svhn_cropped", "gtsrb", "mnist_corrupted")
LARGEST_SMALL_IMAGE = 64  # pixels
AUTOTUNE = tf.data.AUTOTUNE


@dataclasses.dataclass(frozen=True)
class Description:
    """What a network is trained on: what `keras-sat train` records, and evaluation and export go by.

    Attributes:
        dataset: TFDS' name, or the absolute path of a folder.
        classes: their names, in order.
        preprocessing: how images become pixels.
        splits: {split: {"images": how many, "sha256": of how they are stored, "classes": how many of each}}; the last
            of a folder alone.
    """

    dataset: str
    classes: list[str]
    preprocessing: Preprocessing
    splits: dict

    def settings(self) -> dict:
        """Returns plain values for a JSON file; `Description.of(settings)` reads them."""
        return {**self.__dict__, "preprocessing": self.preprocessing.settings()}

    def line(self) -> str:
        """Returns in a line what is trained on."""
        how = self.preprocessing
        sizes = ", ".join(f"{about['images']} images of {split}" for split, about in self.splits.items())
        crop = f", crop {how.crop}" if how.crop != "stretch" else ""
        return f"{self.dataset}: {sizes}, {len(self.classes)} classes, {' x '.join(map(str, how.shape))}{crop}."

    @classmethod
    def of(cls, settings: dict) -> "Description":
        """Returns what `settings` described."""
        values = {field.name: settings[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**values, "preprocessing": Preprocessing.of(settings["preprocessing"])})

    def differences(self, other: "Description") -> list[str]:
        """Returns in a line each what another description says otherwise; [] if the data are the same, wherever."""
        found = []
        if self.preprocessing != other.preprocessing:
            found.append(f"preprocessing: {self.preprocessing} then, {other.preprocessing} now")
        gone = [name for name in self.classes if name not in other.classes]
        new = [name for name in other.classes if name not in self.classes]
        found += [f"classes: {what} {', '.join(names[:5])}" for what, names in (("gone", gone), ("new", new)) if names]
        if not (gone or new) and self.classes != other.classes:
            found.append("classes: in another order")
        for split in sorted({*self.splits, *other.splits}):
            found += _differences(split, self.splits.get(split, {}), other.splits.get(split, {}))
        return found


def _differences(split, then, now):
    """Returns what is different in a split."""
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
    dataset: str | os.PathLike | Folder | Prepared,
    data_dir: str | os.PathLike | None = None,
    *,
    classes: list[str] | None = None,
    skip_damaged: bool = False,
) -> Folder | Prepared:
    """Returns a dataset opened: `.classes`, `.splits`, and what `load` reads.

    Args:
        dataset: "fashion_mnist_mini", which is embedded; another name of TFDS; the path of a folder of images; or a
            source, which is returned as it is.
        data_dir: TFDS' folder of prepared datasets; None is TFDS' own.
        classes: names of the classes that a network knows, in its order. Labels then are numbers in this order.
        skip_damaged: of a folder, reads all files first, and leaves out those that cannot be read.

    Raises:
        ValueError: for a dataset that cannot be had, or has classes that the network does not know.
    """
    if isinstance(dataset, (Folder, Prepared)):
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
    """Returns whether a dataset's name means a folder: not where TFDS knows the name, and the folder has no splits.

    A run in a folder that is named like its dataset must not become the dataset.
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
    dataset: str | os.PathLike | Folder | Prepared,
    image_size: int | None = None,
    data_dir: str | os.PathLike | None = None,
    *,
    crop: str | None = None,
    channels: int | None = None,
) -> Description:
    """Returns what a network is to be trained on; `load` explains the arguments."""
    opened = source(dataset, data_dir)
    how = preprocessing_of(opened, image_size, crop, channels)
    splits = {split: opened.fingerprint(split) for split in opened.splits}
    return Description(opened.name, list(opened.classes), how, splits)


def preprocessing_of(opened, image_size=None, crop=None, channels=None):
    """Returns the `Preprocessing` of a source's images, where it does not follow from what is given by looking."""
    if crop not in (None, *preprocessing.CROPS):
        raise ValueError(f"crop must be one of {', '.join(preprocessing.CROPS)}. Received: {crop!r}")
    if None not in (image_size, crop, channels):
        return Preprocessing(image_size, image_size, channels, crop)
    size, own_channels = opened.looked
    if image_size is None and size is None:
        raise ValueError(f"The images of {opened.name} differ in size: say image_size, such as image_size=224.")
    height, width = (image_size, image_size) if image_size else size
    return Preprocessing(height, width, channels or own_channels, crop or ("stretch" if size else "padded"))


def load(
    name: str | os.PathLike | Folder | Prepared,
    split: str,
    batch_size: int,
    image_size: int | None = None,
    training: bool = False,
    data_dir: str | os.PathLike | None = None,
    seed: int = 0,
    augment: bool = True,
    *,
    crop: str | None = None,
    channels: int | None = None,
    preprocessing: Preprocessing | None = None,
    sample: int | None = None,
    epochs: int | None = None,
    first_step: int = 0,
    rand_augment: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Returns batches of (images, labels) of a classification dataset.

    `fashion_mnist_mini` is embedded: 10,000 training and 2,000 test images, 28 x 28 x 1, of Fashion-MNIST (Zalando SE,
    MIT licence), equally many of each of its 10 classes. Any other name is TFDS' ("cifar10", "imagenet2012"), or the
    path of a folder of images, `SPLIT/CLASS/*.jpg` (`Folder` says more).

    All that is random follows from the seed, the epoch and the place in it, not from what was drawn before: the same
    arguments give the same batches, and training can begin anywhere, without decoding what is left out.

    Args:
        name: of the dataset, or what `source` returned.
        split: "train", "test", or any slice in TFDS' language, such as "test[:500]". Of a folder, each slice holds
            all classes in proportion.
        batch_size: images in a batch, over all devices and workers.
        image_size: height and width to bring the images to, or None to keep them as they are.
        training: shuffles, anew each epoch, and augments; the last, partial batch is dropped.
        data_dir: TFDS' folder of prepared datasets; None is TFDS' own.
        seed: of shuffling, augmentation and the sample.
        augment: in training, images of up to 64 pixels are padded by an eighth and cropped at random; of larger ones
            Inception's random part is taken (`preprocessing.random_part`). And where a mirror image is of the same
            class, half are mirrored.
        crop: what `image_size` takes of an image: "stretch", "padded" or "shortest_edge", as
            `preprocessing.Preprocessing` says. Default: "stretch" for images of one size, "padded" for others.
        channels: 1 or 3. Default: 1 if all images are grey.
        preprocessing: in place of image_size, crop and channels: all that evaluation does to an image.
        sample: reads this many images of the split alone, drawn by the seed: at least one of each class, then in
            proportion.
        epochs: in training, the batches of all these epochs, one after the other, for `fit(steps_per_epoch=...)`.
            Default: those of one epoch, another at each iteration.
        first_step: with `epochs`, number of the batch to begin with, counted over all epochs.
        rand_augment: in training, factor 0..1 of Keras' RandAugment, of each image.
        mixup, cutmix: in training, alpha of Keras' MixUp and factor of its CutMix; with both, a batch gets either.
            Labels are then float32 [batch, classes].
        input_context: a tf.distribute.InputContext; reads this worker's share of the files, and gives batches for one
            replica, as `strategy.distribute_datasets_from_function` wants them.

    Returns:
        A tf.data.Dataset of images [batch, height, width, channels], uint8 in 0..255, and int64 labels [batch].

    Raises:
        ValueError: for an unknown dataset or split, or one that has no (image, label) pairs, or images of several
            sizes and no `image_size`; the message says which command prepares a dataset that is not there.
        tf.errors.InvalidArgumentError: when a damaged image is reached; the message names the file of a folder.
    """
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise ValueError(f"batch_size must be an integer >= 1. Received: {batch_size!r}")
    opened = source(name, data_dir)
    number = opened.number_of_images(split)
    how = preprocessing or preprocessing_of(opened, image_size, crop, channels)
    opened.check_range()
    share = input_context.get_per_replica_batch_size(batch_size) if input_context else batch_size
    read = functools.partial(opened.read, split, input_context)
    if not training:
        dataset = read() if sample is None else _sampled(read(), number, opened.sample(split, sample, seed))
        dataset = opened.mapped(dataset, how, how.shape)
        return dataset.batch(share, num_parallel_calls=AUTOTUNE).prefetch(AUTOTUNE)
    if number < batch_size:
        raise ValueError(f"{opened.name} {split} has fewer images ({number}) than a batch of {batch_size}.")
    augmented = _augmentation(opened, how, augment, rand_augment)
    dataset = _epochs(read, seed, number, batch_size, epochs, first_step, input_context)
    dataset = opened.mapped(dataset, augmented, how.shape)
    dataset = dataset.batch(share, drop_remainder=True, num_parallel_calls=AUTOTUNE)
    dataset = dataset.map(_mixing(len(opened.classes), mixup, cutmix), AUTOTUNE)
    if not epochs and not input_context:  # of all epochs fit(steps_per_epoch) must not know: it counts what was skipped
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(number // batch_size))
    return dataset.prefetch(AUTOTUNE)


def class_names(name: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> list[str]:
    """Returns the names of a dataset's classes, in order."""
    return list(source(name, data_dir).classes)


def evaluation_split(name, data_dir=None) -> str:
    """Returns the name of the split to evaluate on: "test", or "validation", "val" or "valid" where there is none."""
    splits = source(name, data_dir).splits
    return next((split for split in SPLITS[1:] if split in splits), "test")


def shape_and_classes(name, image_size=None, data_dir=None) -> tuple[tuple, int]:
    """Returns the shape (height, width, channels) of the images that `load` gives, and the number of classes.

    Height and width are None where the images differ in size, and `image_size` does not say one.
    """
    opened = source(name, data_dir)
    size, channels = opened.looked
    size = (image_size, image_size) if image_size else size or (None, None)
    return (*size, channels), len(opened.classes)


def _sampled(dataset, total, places):
    """Returns the examples at some places of a dataset."""
    is_chosen = np.zeros(total, bool)
    is_chosen[places] = True
    dataset = dataset.enumerate().filter(lambda place, _: tf.gather(tf.constant(is_chosen), place))
    dataset = dataset.take(len(places)).map(lambda _, example: example)  # what comes after the last is not read
    return dataset.apply(tf.data.experimental.assert_cardinality(len(places)))


def _epochs(read, seed, number, batch_size, epochs, first_step, input_context):
    """Returns encoded images, labels and a seed for each, in the order of training."""
    steps = number // batch_size
    workers = input_context.num_input_pipelines if input_context else 1

    def one(epoch):
        tf.random.set_seed(1)  # of this graph: the order is the seed's alone, not also that of the program's seed
        key = tf.cast(seed, tf.int64) * 1_000_003 + epoch
        examples = read(key)
        if workers > 1:
            examples = examples.repeat()  # a worker's files may hold a few images less than its share
        done = tf.where(epoch == first_step // steps, first_step % steps, 0) if epochs else 0
        examples = (
            examples.take(steps * batch_size // workers)
            .enumerate()
            .skip(tf.cast(done * batch_size // workers, tf.int64))
        )
        low = tf.bitcast(key, tf.int32)[0]
        return examples.map(lambda place, example: (*example, tf.stack([low, tf.cast(place, tf.int32)])))

    if epochs:
        numbers = tf.data.Dataset.range(first_step // steps, epochs)
    else:
        numbers = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
    return numbers.flat_map(tf.autograph.experimental.do_not_convert(one))


def _augmentation(opened, how, augment, rand_augment):
    """Returns the function from an image and a seed to the uint8 pixels that are trained on."""
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
    """Returns the function from images, labels and seeds of a batch to what is trained on."""
    layers = [] if mixup is None else [keras.layers.MixUp(alpha=mixup)]
    layers += [] if cutmix is None else [keras.layers.CutMix(factor=cutmix)]

    def mixed(images, labels, seeds):
        if not layers:
            return images, labels
        batch = {"images": images, "labels": tf.one_hot(labels, classes)}
        seed = preprocessing.fold(seeds[0], 3)
        outputs = [lambda layer=layer: preprocessing.stateless(layer, seed, batch) for layer in layers]
        chosen = tf.random.stateless_uniform([], preprocessing.fold(seed, 4), maxval=len(layers), dtype=tf.int32)
        batch = tf.switch_case(chosen, outputs)
        return preprocessing.to_uint8(batch["images"]), batch["labels"]

    return mixed
