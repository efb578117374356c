"""Datasets: TFDS -> tf.data of (images, labels), pixels 0..255, NHWC. One real dataset is embedded."""

import functools
import os

import keras
import numpy as np
import tensorflow as tf

from keras_sat import preprocessing

EMBEDDED = os.path.join(os.path.dirname(__file__), "datasets")
# A mirror image of these is another class, or none.
WITHOUT_FLIP = ("mnist", "emnist", "kmnist", "svhn_cropped", "gtsrb", "mnist_corrupted")
LARGEST_SMALL_IMAGE = 64  # pixels
SHUFFLE_BYTES = 2**29
AUTOTUNE = tf.data.AUTOTUNE


def names():
    """Returns the names of the embedded datasets."""
    return sorted(entry.name for entry in os.scandir(EMBEDDED) if entry.is_dir())


def load(
    name,
    split,
    batch_size,
    image_size=None,
    training=False,
    data_dir=None,
    seed=0,
    augment=True,
    *,
    crop=None,
    epochs=None,
    first_step=0,
    rand_augment=None,
    mixup=None,
    cutmix=None,
    input_context=None,
):
    """Returns batches of (images, labels) of a classification dataset.

    `fashion_mnist_mini` is embedded: 10,000 training and 2,000 test images, 28 x 28 x 1, of Fashion-MNIST (Zalando SE,
    MIT licence), equally many of each of its 10 classes. Any other name is TFDS' ("cifar10", "imagenet2012"), or the
    path of a folder of images, `SPLIT/CLASS/*.jpg`.

    All that is random follows from the seed, the epoch and the place in it, not from what was drawn before: the same
    arguments give the same batches, and training can begin anywhere, without decoding what is left out.

    Args:
        name: of the dataset.
        split: "train", "test", or any slice in TFDS' language, such as "test[:500]"; of a folder, a whole split.
        batch_size: images in a batch, over all devices and workers.
        image_size: height and width to bring the images to, or None to keep them as they are.
        training: shuffles, anew each epoch, and augments; the last, partial batch is dropped.
        data_dir: TFDS' folder of prepared datasets; None is TFDS' own.
        seed: of shuffling and augmentation.
        augment: in training, of images of many sizes Inception's random part is taken (`preprocessing.random_part`);
            others are padded by an eighth and cropped at random, up to 64 pixels. And where a mirror image is of the
            same class, half are mirrored.
        crop: what `image_size` takes of an image: "stretch", "padded" or "shortest_edge", as
            `preprocessing.centre` says. Default: "stretch" for images of one size, "padded" for others.
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
    """
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise ValueError(f"batch_size must be an integer >= 1. Received: {batch_size!r}")
    if crop not in (None, *preprocessing.CROPS):
        raise ValueError(f"crop must be one of {', '.join(preprocessing.CROPS)}. Received: {crop!r}")
    builder = _builder(name, data_dir)
    number, feature = _number_of_images(builder, split), builder.info.features[_keys(builder.info)[0]]
    has_one_size = None not in feature.shape[:2]
    if image_size is None and not has_one_size:
        raise ValueError(f"The images of {name} differ in size: say image_size, such as image_size=224.")
    crop = crop or ("stretch" if has_one_size else "padded")
    share = input_context.get_per_replica_batch_size(batch_size) if input_context else batch_size
    read = functools.partial(_read, builder, split, input_context)
    if not training:
        dataset = read().map(lambda image, label: (_decoded(image, feature, image_size, crop), label), AUTOTUNE)
        return dataset.batch(share, num_parallel_calls=AUTOTUNE).prefetch(AUTOTUNE)
    if number < batch_size:
        raise ValueError(f"{name} {split} has fewer images than a batch of {batch_size}.")
    augmented = _augmentation(feature, image_size, crop, augment, builder.name not in WITHOUT_FLIP, rand_augment)
    dataset = _epochs(read, seed, number, batch_size, epochs, first_step, input_context)
    dataset = dataset.map(lambda image, label, seed: (augmented(image, seed), label, seed), AUTOTUNE)
    dataset = dataset.batch(share, drop_remainder=True, num_parallel_calls=AUTOTUNE)
    classes = builder.info.features[_keys(builder.info)[1]].num_classes
    dataset = dataset.map(_mixing(classes, mixup, cutmix), AUTOTUNE)
    if not epochs and not input_context:  # of all epochs fit(steps_per_epoch) must not know: it counts what was skipped
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(number // batch_size))
    return dataset.prefetch(AUTOTUNE)


def batches(dataset, batch_size):
    """Yields batches (images, labels) of what holds them; sample weights are left out.

    Args:
        dataset: a finite tf.data.Dataset of batches (images, labels) or (images, labels, weights), a list of such
            batches, or a pair of arrays of all images and labels.
        batch_size: of the batches that arrays are cut into.

    Raises:
        ValueError: for a dataset that never ends, arrays of different lengths, or anything else.
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
            raise ValueError(f"A batch must be a pair of images and labels. Received: {_outline(batch)}")
        yield batch[0], batch[1]


def _is_pair(batch):
    return isinstance(batch, (tuple, list)) and 2 <= len(batch) <= 3 and len(getattr(batch[0], "shape", ())) == 4


def _slices(arrays, batch_size):
    lengths = {len(array) for array in arrays if len(array.shape)}
    if len(lengths) != 1:
        raise ValueError(f"images and labels differ in number. Received shapes: {[tuple(a.shape) for a in arrays]}")
    return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size)


def _outline(batch):
    """Returns in a line what a batch is."""
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"{len(batch)} parts"
    return f"{type(batch).__name__} of shape {tuple(getattr(batch, 'shape', ()))}"


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


def _read(builder, split, input_context, key=None):
    """Returns encoded images and labels; shuffled by an int64 `key`, if there is one."""
    import tensorflow_datasets as tfds

    if isinstance(builder, tfds.ImageFolder):
        return _read_folder(builder, split, input_context, key)
    image, label = _keys(builder.info)
    workers = input_context.num_input_pipelines if input_context else 1
    by_files = len(builder.info.splits[split].file_instructions) >= workers
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=key is not None and not builder.info.disable_shuffling,
        decoders={image: tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(
            shuffle_seed=key, try_autocache=False, input_context=input_context if by_files else None
        ),
    )
    if not by_files:
        dataset = dataset.shard(workers, input_context.input_pipeline_id)
    dataset = dataset.map(lambda example: (example[image], example[label]), AUTOTUNE)
    return dataset if key is None else dataset.shuffle(_buffer(builder, split), key, reshuffle_each_iteration=False)


def _read_folder(builder, split, input_context, key):
    folder, names = os.path.join(builder.data_dir, split), builder.info.features["label"].names
    found = [(entry.path, label) for label, name in enumerate(names) for entry in _images(os.path.join(folder, name))]
    paths, labels = zip(*sorted(found))
    dataset = tf.data.Dataset.from_tensor_slices((list(paths), tf.constant(labels, tf.int64)))
    if input_context:
        dataset = dataset.shard(input_context.num_input_pipelines, input_context.input_pipeline_id)
    if key is not None:
        dataset = dataset.shuffle(len(paths), key, reshuffle_each_iteration=False)
    return dataset.map(lambda path, label: (tf.io.read_file(path), label), AUTOTUNE)


def _images(folder):
    """Returns the directory entries that tfds.ImageFolder counts as images."""
    if not os.path.isdir(folder):
        return []
    return [entry for entry in os.scandir(folder) if entry.name.lower().endswith((".jpeg", ".jpg", ".png"))]


def info(name, data_dir=None):
    """Returns TFDS' DatasetInfo of a dataset: `.features["label"].names`, `.splits["test"].num_examples`, ..."""
    return _builder(name, data_dir).info


def class_names(name, data_dir=None):
    """Returns the names of a dataset's classes, in order."""
    about = info(name, data_dir)
    return about.features[_keys(about)[1]].names


def evaluation_split(name, data_dir=None):
    """Returns the name of the split to evaluate on: "test", or "validation" or "val" where there is none."""
    splits = info(name, data_dir).splits
    return next((split for split in ("test", "validation", "val") if split in splits), "test")


def shape_and_classes(name, image_size=None, data_dir=None):
    """Returns the shape (height, width, channels) of the images that `load` gives, and the number of classes."""
    about = info(name, data_dir)
    image, label = (about.features[key] for key in _keys(about))
    shape = image.shape if image_size is None else (image_size, image_size, image.shape[-1])
    return shape, label.num_classes


def _builder(name, data_dir):
    import tensorflow_datasets as tfds  # takes a second to import

    if os.path.isdir(name):
        return tfds.ImageFolder(os.path.abspath(name))
    if os.path.isabs(name) or name.startswith("."):
        raise ValueError(f"There is no folder {name!r}: of images, SPLIT/CLASS/*.jpg, was expected.")
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


def _number_of_images(builder, split):
    """Returns how many images a split has, or raises ValueError."""
    try:
        return builder.info.splits[split].num_examples
    except (ValueError, KeyError, AssertionError) as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(
            f"{builder.name} has no split {split!r}; it has {known}, and slices such as test[:500]."
        ) from error


def _buffer(builder, split):
    """Returns among how many encoded images to shuffle: all of them, where they fit into SHUFFLE_BYTES."""
    info = builder.info.splits[split]
    size = max(1, builder.info.dataset_size // max(1, sum(s.num_examples for s in builder.info.splits.values())))
    return max(1, min(info.num_examples, SHUFFLE_BYTES // size))


def _decoded(encoded, feature, image_size, crop):
    """Returns the uint8 pixels of an encoded image as evaluation sees them."""
    if image_size is None:
        return feature.decode_example(encoded)
    if crop == "stretch":
        return preprocessing.to_uint8(preprocessing.resize(feature.decode_example(encoded), (image_size, image_size)))
    return preprocessing.centre(_as_file(encoded, feature), image_size, feature.shape[-1], crop)


def _as_file(encoded, feature):
    """Returns an image as a file of a known format, which a features.Tensor is not."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return encoded
    return tf.io.encode_png(feature.decode_example(encoded))


def _augmentation(feature, image_size, crop, augment, flip, rand_augment):
    """Returns the function from an encoded image and a seed to the uint8 pixels that are trained on."""
    layer = None if rand_augment is None else keras.layers.RandAugment(factor=rand_augment)

    def augmented(encoded, seed):
        if augment and crop != "stretch":
            image = preprocessing.random_part(
                _as_file(encoded, feature), image_size, feature.shape[-1], preprocessing.fold(seed, 0)
            )
        else:
            image = _decoded(encoded, feature, image_size, crop)
            if augment and max(image.shape) <= LARGEST_SMALL_IMAGE:
                image = preprocessing.random_shift(image, max(image.shape[:2]) // 8, preprocessing.fold(seed, 0))
        if augment and flip and (crop != "stretch" or max(image.shape) <= LARGEST_SMALL_IMAGE):
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
