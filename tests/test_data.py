import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_sat import data


def arrays(dataset):
    batches = list(dataset.as_numpy_iterator())
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def test_the_embedded_dataset_is_balanced_real_and_small():
    for split, n in (("train", 10_000), ("test", 2_000)):
        images, labels = arrays(data.load("fashion_mnist_mini", split, 500))
        assert images.shape == (n, 28, 28, 1)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(labels), [n // 10] * 10)
        # Fashion-MNIST's own mean and deviation (0.2860, 0.3530 of 255); a class-balanced subset is close to them.
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
    monkeypatch.setattr(data, "WITHOUT_FLIP", ("fashion_mnist_mini",))
    assert all(is_shift(image, plain, flip=False) for image in images())


def test_image_size():
    images, _ = next(iter(data.load("fashion_mnist_mini", "test", 4, image_size=40)))
    assert images.shape == (4, 40, 40, 1)
    assert images.dtype == tf.float32
    assert 0 <= np.min(images) < np.max(images) <= 255


@pytest.fixture
def prepared(tmp_path):
    """A folder with two datasets that someone prepared: images of one size, and of several."""
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
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            split_datasets={"train": examples},
            data_dir=tmp_path,
            disable_shuffling=True,
        )
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # TFDS' writer warns of itself
def test_other_datasets_are_tfds(prepared):
    images, labels = arrays(data.load("squares", "train", 4, data_dir=prepared))
    assert images.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(labels, [0, 1] * 3)
    with pytest.raises(ValueError, match="differ in size: say image_size"):
        data.load("photos", "train", 4, data_dir=prepared)
    images, _ = arrays(data.load("photos", "train", 4, image_size=24, data_dir=prepared))
    assert images.shape == (6, 24, 24, 3)
    assert len(arrays(data.load("photos", "train", 4, image_size=24, data_dir=prepared, training=True))[0]) == 4


def test_what_cannot_be_had(tmp_path):
    with pytest.raises(ValueError, match=f"tfds build cifar10 --data_dir={tmp_path}"):
        data.load("cifar10", "train", 4, data_dir=tmp_path)
    with pytest.raises(ValueError, match="fashion_mnist_mini"):
        data.load("fashion_mnist_miny", "train", 4)
    with pytest.raises(ValueError, match="it has train, test"):
        data.load("fashion_mnist_mini", "validation", 4)
    with pytest.raises(ValueError, match="fewer images than a batch"):
        data.load("fashion_mnist_mini", "train[:8]", 16, training=True)
    with pytest.raises(ValueError, match="batch_size"):
        data.load("fashion_mnist_mini", "train", 0)
