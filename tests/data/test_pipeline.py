import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_sat import data
from keras_sat.data import pipeline

LANDSCAPE = pathlib.Path(__file__).parent.parent / "landscape"


def arrays(dataset):
    batches = list(dataset.as_numpy_iterator())
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def test_the_embedded_dataset_is_balanced_real_and_small():
    for split, n in (("train", 10_000), ("test", 2_000)):
        images, labels = arrays(data.load("fashion_mnist_mini", split, 500))
        assert images.shape == (n, 28, 28, 1)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(labels), [n // 10] * 10)
        # Fashion-MNIST has mean 0.2860 and deviation 0.3530 (of 255). A class-balanced subset is close to them.
        assert np.mean(images / 255) == pytest.approx(0.286, abs=0.005)
        assert np.std(images / 255) == pytest.approx(0.353, abs=0.005)
    info = data.info("fashion_mnist_mini")
    assert info.features["label"].names[9] == "Ankle boot"
    assert "Zalando SE" in info.redistribution_info.license
    assert info.dataset_size < 6e6


def test_evaluation_is_in_order_whole_and_repeatable():
    first, again = (arrays(data.load("fashion_mnist_mini", "test[:250]", 100)) for _ in range(2))
    assert len(first[0]) == 250  # the partial batch too
    np.testing.assert_array_equal(first[0], again[0])


def test_training_is_shuffled_anew_each_epoch_and_repeats_by_its_seed():
    def epochs(seed):
        dataset = data.load("fashion_mnist_mini", "train[:300]", 64, training=True, seed=seed)
        return [arrays(dataset) for _ in range(2)]

    (first, second), (same, _), (other, _) = epochs(0), epochs(0), epochs(1)
    assert len(first[0]) == 256  # the partial batch is dropped
    np.testing.assert_array_equal(first[0], same[0])
    np.testing.assert_array_equal(first[1], same[1])
    assert np.any(first[1] != second[1])
    assert np.any(first[1] != other[1])


@pytest.mark.parametrize("first_step", [0, 1, 4, 6, 11])
def test_training_can_begin_anywhere(first_step):
    def batches(**options):
        dataset = data.load("fashion_mnist_mini", "train[:100]", 24, training=True, epochs=3, mixup=0.2, **options)
        return list(dataset.as_numpy_iterator())

    whole, rest = batches(), batches(first_step=first_step)
    assert len(whole) == 3 * 4
    assert len(rest) == len(whole) - first_step
    for (images, labels), (same, same_labels) in zip(rest, whole[first_step:]):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(labels, same_labels)
    assert len({images.tobytes() for images, _ in whole}) == 12


def test_each_epoch_has_every_image_once():
    plain, _ = arrays(data.load("fashion_mnist_mini", "train[:96]", 24))
    options = {"training": True, "epochs": 2, "augment": False}
    epochs, _ = arrays(data.load("fashion_mnist_mini", "train[:96]", 24, **options))
    known = sorted(image.tobytes() for image in plain)
    assert sorted(image.tobytes() for image in epochs[:96]) == known
    assert sorted(image.tobytes() for image in epochs[96:]) == known


def test_the_order_is_the_seeds_alone_whatever_the_programs_seed():
    def order(program_seed):
        tf.random.set_seed(program_seed)
        options = {"training": True, "epochs": 1, "seed": 5}
        return arrays(data.load("fashion_mnist_mini", "train[:64]", 32, **options))[0]

    np.testing.assert_array_equal(order(0), order(1))


def test_mixing_and_rand_augment():
    def batch(**options):
        options = {"training": True, "epochs": 1, "augment": False, **options}
        return next(iter(data.load("fashion_mnist_mini", "train[:64]", 64, **options)))

    plain, labels = batch()
    for options in ({"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}):
        images, soft = batch(**options)
        assert (images.dtype, images.shape) == (tf.uint8, plain.shape)
        assert np.any(images != plain)
        np.testing.assert_allclose(np.sum(soft, axis=1), 1, atol=1e-5)
        assert np.mean(np.max(soft, axis=1) < 0.99) > 0.3
        np.testing.assert_array_equal(batch(**options)[0], images)
    images, same = batch(rand_augment=0.5)
    np.testing.assert_array_equal(same, labels)
    assert images.dtype == tf.uint8
    assert 0.3 < np.mean(np.any(images != plain, axis=(1, 2, 3))) <= 1


def test_augmentation_shifts_and_flips(monkeypatch):
    def images():
        return arrays(data.load("fashion_mnist_mini", "train[:64]", 64, training=True))[0]

    plain = arrays(data.load("fashion_mnist_mini", "train[:64]", 64))[0]

    def is_shift(image, candidates, flip):
        image = image[:, ::-1] if flip else image
        padded = np.pad(candidates, ((0, 0), (3, 3), (3, 3), (0, 0)))
        windows = [padded[:, i : i + 28, j : j + 28] for i in range(7) for j in range(7)]
        return any(np.all(window == image, axis=(1, 2, 3)).any() for window in windows)

    augmented = images()
    shifted = [is_shift(image, plain, flip=False) for image in augmented]
    mirrored = [is_shift(image, plain, flip=True) for image in augmented]
    assert all(np.logical_or(shifted, mirrored))
    assert 16 < np.sum(mirrored) < 48
    monkeypatch.setattr(pipeline, "WITHOUT_FLIP", ("fashion_mnist_mini",))
    assert all(is_shift(image, plain, flip=False) for image in images())


def test_image_size():
    images, _ = next(iter(data.load("fashion_mnist_mini", "test", 4, image_size=40)))
    assert images.shape == (4, 40, 40, 1)
    assert images.dtype == tf.uint8
    assert 0 <= np.min(images) < np.max(images) <= 255


@pytest.fixture
def prepared(store, tmp_path):
    """A folder with two prepared datasets: images of one size, and images of several sizes."""
    rng = np.random.default_rng(0)
    for name, sizes, shape in (
        ("squares", [(32, 32)] * 6, (32, 32, 3)),
        ("photos", [(40, 30), (20, 50)] * 3, (None, None, 3)),
    ):
        examples = [
            (index, {"image": rng.integers(0, 256, (*size, 3)).astype(np.uint8), "label": index % 2})
            for index, size in enumerate(sizes)
        ]
        features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=2)}
        store(tmp_path, name, features, {"train": examples}, disable_shuffling=True)
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # TFDS' writer gives deprecation warnings
def test_other_datasets_are_tfds(prepared):
    images, labels = arrays(data.load("squares", "train", 4, data_dir=prepared))
    assert images.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(labels, [0, 1] * 3)
    with pytest.raises(ValueError, match="differ in size: say image_size"):
        data.load("photos", "train", 4, data_dir=prepared)
    images, _ = arrays(data.load("photos", "train", 4, image_size=24, data_dir=prepared))
    assert images.shape == (6, 24, 24, 3)
    assert len(arrays(data.load("photos", "train", 4, image_size=24, data_dir=prepared, training=True))[0]) == 4


@pytest.fixture(scope="module")
def imagenet(store, tmp_path_factory):
    """A small imagenet2012 in TFDS' format. Its images are JPEG files with parts of a picture."""
    folder, rng = tmp_path_factory.mktemp("tfds"), np.random.default_rng(0)
    picture = tf.io.decode_jpeg((LANDSCAPE / "landscape.jpg").read_bytes()).numpy()
    height, width, _ = picture.shape

    def examples(number):
        for index in range(number):
            h, w = rng.integers(60, 160, 2)
            top, left = rng.integers(0, height - h), rng.integers(0, width - w)
            jpeg = tf.io.encode_jpeg(picture[top : top + h, left : left + w], quality=95).numpy()
            yield index, {"image": io.BytesIO(jpeg), "label": index % 1000, "file_name": f"{index}.JPEG"}

    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
    }
    features["file_name"] = tfds.features.Text()
    splits = {"train": list(examples(48)), "validation": list(examples(12))}
    store(folder, "imagenet2012", features, splits, version="5.1.0")
    return folder


def test_imagenet(imagenet):
    options = {"image_size": 32, "data_dir": imagenet}
    images, labels = arrays(data.load("imagenet2012", "validation", 5, **options))
    assert (images.shape, images.dtype) == ((12, 32, 32, 3), np.uint8)
    assert data.evaluation_split("imagenet2012", imagenet) == "validation"
    assert data.shape_and_classes("imagenet2012", 32, imagenet) == ((32, 32, 3), 1000)
    padded, _ = arrays(data.load("imagenet2012", "validation", 5, crop="padded", **options))
    np.testing.assert_array_equal(images, padded)  # the default
    for crop in ("stretch", "shortest_edge"):
        other, same = arrays(data.load("imagenet2012", "validation", 5, crop=crop, **options))
        assert np.any(other != images)
        np.testing.assert_array_equal(same, labels)

    options |= {"training": True, "epochs": 2}
    whole, order = arrays(data.load("imagenet2012", "train", 12, **options))
    assert len(whole) == 2 * 48
    assert sorted(order[:48]) == sorted(order[48:]) == list(range(48))
    assert list(order[:48]) != list(order[48:])
    rest, _ = arrays(data.load("imagenet2012", "train", 12, first_step=5, **options))
    np.testing.assert_array_equal(rest, whole[5 * 12 :])


def test_a_folder_of_images(tmp_path):
    picture = tf.io.decode_jpeg((LANDSCAPE / "landscape.jpg").read_bytes())
    for split, number in (("train", 6), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(number):
                part = picture[20 * index : 20 * index + 50, 100 * label : 100 * label + 60 + index]
                encoded = tf.io.encode_jpeg(part) if index % 2 else tf.io.encode_png(part)
                (tmp_path / split / name / f"{index}.{'jpg' if index % 2 else 'png'}").write_bytes(encoded.numpy())
    images, labels = arrays(data.load(str(tmp_path), data.evaluation_split(str(tmp_path)), 4, image_size=24))
    assert images.shape == (6, 24, 24, 3)
    np.testing.assert_array_equal(labels, [0, 1, 0, 1, 0, 1])  # mixed
    assert data.class_names(str(tmp_path)) == ["cat", "dog"]
    _, order = arrays(data.load(str(tmp_path), "train", 6, image_size=24, training=True, epochs=2))
    assert sorted(order[:12]) == [0] * 6 + [1] * 6
    assert list(order[:12]) != list(order[12:])
    with pytest.raises(ValueError, match="no split 'test'"):
        data.load(str(tmp_path), "test", 4, image_size=24)


def test_workers_read_shares_of_the_files(imagenet):
    seen = []
    for worker in range(2):
        context = tf.distribute.InputContext(2, worker, 2)
        options = {"image_size": 16, "data_dir": imagenet, "training": True, "epochs": 1, "input_context": context}
        batches = list(data.load("imagenet2012", "train", 12, **options).as_numpy_iterator())
        assert [len(labels) for _, labels in batches] == [6] * 4
        seen.append({int(label) for _, labels in batches for label in labels})
    assert not seen[0] & seen[1]


def test_what_cannot_be_had(tmp_path):
    with pytest.raises(ValueError, match=f"tfds build cifar10 --data_dir={tmp_path}"):
        data.load("cifar10", "train", 4, data_dir=tmp_path)
    with pytest.raises(ValueError, match="fashion_mnist_mini"):
        data.load("fashion_mnist_miny", "train", 4)
    with pytest.raises(ValueError, match="There is no folder"):
        data.load("./images", "train", 4)
    with pytest.raises(ValueError, match="it has train .10000 images., test"):
        data.load("fashion_mnist_mini", "validation", 4)
    with pytest.raises(ValueError, match=r"fewer images \(8\) than a batch"):
        data.load("fashion_mnist_mini", "train[:8]", 16, training=True)
    with pytest.raises(ValueError, match="batch_size"):
        data.load("fashion_mnist_mini", "train", 0)
    with pytest.raises(ValueError, match="crop must be one of stretch, padded, shortest_edge"):
        data.load("fashion_mnist_mini", "train", 4, crop="centre")
