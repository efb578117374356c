"""Datasets: TFDS -> tf.data of (images, labels), pixels 0..255, NHWC. One real dataset is embedded."""

import os

import tensorflow as tf

EMBEDDED = os.path.join(os.path.dirname(__file__), "datasets")
# A mirror image of these is another class, or none.
WITHOUT_FLIP = ("mnist", "emnist", "kmnist", "svhn_cropped", "gtsrb", "mnist_corrupted")
LARGEST_SMALL_IMAGE = 64  # pixels
SHUFFLE_BYTES = 2**29


def names():
    """Returns the names of the embedded datasets."""
    return sorted(entry.name for entry in os.scandir(EMBEDDED) if entry.is_dir())


def load(name, split, batch_size, image_size=None, training=False, data_dir=None, seed=0, augment=True):
    """Returns batches of (images, labels) of a classification dataset.

    `fashion_mnist_mini` is embedded: 10,000 training and 2,000 test images, 28 x 28 x 1, of Fashion-MNIST (Zalando SE,
    MIT licence), equally many of each of its 10 classes. Any other name is TFDS' ("cifar10", "imagenette/160px-v2").

    Args:
        name: of the dataset.
        split: "train", "test", or any slice in TFDS' language, such as "test[:500]".
        batch_size: images in a batch.
        image_size: height and width to resize to (bilinear, antialiased; float32 pixels), or None to keep the images
            as they are (uint8).
        training: shuffles, anew each epoch, and augments; the last, partial batch is dropped.
        data_dir: TFDS' folder of prepared datasets; None is TFDS' own.
        seed: of shuffling and augmentation.
        augment: in training, pads images of up to 64 pixels by an eighth, crops them at random and, where a mirror
            image is of the same class, flips them at random.

    Returns:
        A tf.data.Dataset of images [batch, height, width, channels], uint8 or float32 in 0..255, and int64 labels
        [batch].

    Raises:
        ValueError: for an unknown dataset or split, or one that has no (image, label) pairs, or images of several
            sizes and no `image_size`; the message says which command prepares a dataset that is not there.
    """
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise ValueError(f"batch_size must be an integer >= 1. Received: {batch_size!r}")
    builder = _builder(name, data_dir)
    dataset = _read(builder, split, training, seed)
    image_shape = dataset.element_spec[0].shape
    if image_size is None and not image_shape.is_fully_defined():
        raise ValueError(f"The images of {name} differ in size: say image_size, such as image_size=224.")
    if image_size is not None:
        dataset = dataset.map(lambda image, label: (resize(image, (image_size, image_size)), label), tf.data.AUTOTUNE)
    if training:
        dataset = dataset.shuffle(_shuffle_buffer(dataset), seed=seed, reshuffle_each_iteration=True)
    if training and augment and max(dataset.element_spec[0].shape) <= LARGEST_SMALL_IMAGE:
        dataset = _augment(dataset, flip=builder.name not in WITHOUT_FLIP, seed=seed)
    dataset = dataset.batch(batch_size, drop_remainder=training, num_parallel_calls=tf.data.AUTOTUNE)
    if dataset.cardinality() == 0:
        raise ValueError(f"{name} {split} has fewer images than a batch of {batch_size}.")
    return dataset.prefetch(tf.data.AUTOTUNE)


def info(name, data_dir=None):
    """Returns TFDS' DatasetInfo of a dataset: `.features["label"].names`, `.splits["test"].num_examples`, ..."""
    return _builder(name, data_dir).info


def class_names(name, data_dir=None):
    """Returns the names of a dataset's classes, in order."""
    about = info(name, data_dir)
    return about.features[_keys(about)[1]].names


def evaluation_split(name, data_dir=None):
    """Returns the name of the split to evaluate on: "test", or "validation" where there is none."""
    return "test" if "test" in info(name, data_dir).splits else "validation"


def shape_and_classes(name, image_size=None, data_dir=None):
    """Returns the shape (height, width, channels) of the images that `load` gives, and the number of classes."""
    about = info(name, data_dir)
    image, label = (about.features[key] for key in _keys(about))
    shape = image.shape if image_size is None else (image_size, image_size, image.shape[-1])
    return shape, label.num_classes


def _builder(name, data_dir):
    import tensorflow_datasets as tfds  # takes a second to import

    try:
        builder = tfds.builder(name, data_dir=EMBEDDED if name in names() else data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"There is no dataset {name!r}: neither embedded ({', '.join(names())}) nor in TFDS."
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
    if len(keys) != 2 or not set(keys) <= set(info.features):
        raise ValueError(
            f"{info.name} has no (image, label) pairs to classify; its features are {list(info.features)}."
        )
    return keys


def _read(builder, split, training, seed):
    import tensorflow_datasets as tfds

    image, label = _keys(builder.info)
    try:
        builder.info.splits[split]
    except (ValueError, KeyError, AssertionError) as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(
            f"{builder.name} has no split {split!r}; it has {known}, and slices such as test[:500]."
        ) from error
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=training and not builder.info.disable_shuffling,
        read_config=tfds.ReadConfig(shuffle_seed=seed, try_autocache=False),
    )
    return dataset.map(lambda example: (example[image], example[label]), tf.data.AUTOTUNE)


def resize(image, size):
    """Returns an image (or a batch) resized to `size`, (height, width): bilinear, antialiased; float32 in 0..255."""
    return tf.clip_by_value(tf.image.resize(image, size, antialias=True), 0, 255)


def _shuffle_buffer(dataset):
    """Returns how many examples to shuffle among: all of them, where they fit into SHUFFLE_BYTES."""
    spec = dataset.element_spec[0]
    fitting = SHUFFLE_BYTES // (spec.shape.num_elements() * spec.dtype.size)
    return max(1, min(int(dataset.cardinality()), fitting))


def _augment(dataset, flip, seed):
    height, width, channels = dataset.element_spec[0].shape
    pad = max(height, width) // 8

    def augment(example, random):
        image, label = example
        seed_pair = tf.bitcast(random, tf.int32)
        image = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
        image = tf.image.stateless_random_crop(image, (height, width, channels), seed_pair)
        if flip:
            image = tf.image.stateless_random_flip_left_right(image, seed_pair + 1)
        return image, label

    # Stateless: the same seed gives the same batches however many threads map them.
    random = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(dataset, random).map(augment, tf.data.AUTOTUNE)
