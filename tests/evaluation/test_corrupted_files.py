"""Files in the form of CIFAR-10-C's and ImageNet-C's."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_sat.evaluation import corrupted_datasets, corruptions, evaluate_corrupted
from keras_sat.preprocessing import Preprocessing

NAMES = corruptions.NAMES


@pytest.fixture
def like_cifar(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "labels.npy", np.tile([0, 1, 2], 5))
    for name in NAMES:
        np.save(tmp_path / f"{name}.npy", random.integers(0, 256, (15, 8, 8, 3), np.uint8))
    return tmp_path


@pytest.fixture
def like_imagenet(tmp_path):
    for number, name in enumerate(NAMES):
        for severity in range(1, 6):
            for label in range(2):
                folder = tmp_path / name / str(severity) / f"n{label}"
                folder.mkdir(parents=True)
                Image.new("RGB", (4, 4), (number, severity, label)).save(folder / "ILSVRC2012_val_00015253.png")
    return tmp_path


def logits(images):
    """Finds class 0 in images that are dark on average, otherwise class 1."""
    mean = tf.reduce_mean(tf.cast(images, tf.float32), (1, 2, 3))
    return tf.stack([127 - mean, mean - 127, 0 * mean - 1e3], 1)


def test_cifars_files_are_rows_of_a_report(like_cifar):
    datasets = corrupted_datasets(like_cifar)
    assert list(datasets) == [(name, severity) for name in NAMES for severity in range(1, 6)]
    images, labels = datasets["fog", 4]
    np.testing.assert_array_equal(images, np.load(like_cifar / "fog.npy")[9:12])
    np.testing.assert_array_equal(labels, [0, 1, 2])
    some = {("fog", 4): datasets["fog", 4], ("snow", 1): datasets["snow", 1]}
    report = evaluate_corrupted(logits, some, context={"dataset": "like CIFAR-10-C"})
    expected = int(np.sum(np.argmax(logits(images), -1) == labels))
    assert (report["fog-4"].correct, report["fog-4"].n, report["clean"].n) == (expected, 3, 6)
    assert report["fog-4"].settings == {"corruption": "fog", "severity": 4, "files": True}
    assert report.context["dataset"] == "like CIFAR-10-C"


def test_damaged_and_missing_files_of_cifar_are_refused(like_cifar):
    np.save(like_cifar / "fog.npy", np.zeros((14, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"fog.npy has shape \(14, 8, 8, 3\) of uint8: uint8 \[15, height"):
        corrupted_datasets(like_cifar)
    (like_cifar / "fog.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="fog.npy is damaged, or no array"):
        corrupted_datasets(like_cifar)
    (like_cifar / "fog.npy").unlink()
    with pytest.raises(ValueError, match="fog.npy is missing"):
        corrupted_datasets(like_cifar)
    np.save(like_cifar / "labels.npy", np.zeros((7,)))
    with pytest.raises(ValueError, match=r"labels.npy has shape \(7,\) of float64: integers \[5 n\]"):
        corrupted_datasets(like_cifar)
    with pytest.raises(ValueError, match="are for ImageNet-C"):
        corrupted_datasets(like_cifar, robustbench=True)


def test_imagenets_files(like_imagenet):
    datasets = corrupted_datasets(like_imagenet, Preprocessing(4, 4, 3))
    ((images, labels),) = datasets["fog", 4]
    assert images[:, 0, 0].numpy().tolist() == [[NAMES.index("fog"), 4, 0], [NAMES.index("fog"), 4, 1]]
    assert labels.numpy().tolist() == [0, 1]
    with pytest.raises(ValueError, match="lacks 4998 of RobustBench's 5000 images"):
        corrupted_datasets(like_imagenet, robustbench=True)
    (like_imagenet / "snow" / "2" / "n1" / "ILSVRC2012_val_00015253.png").unlink()
    with pytest.raises(ValueError, match="snow/2 has 1 images, .*gaussian_noise/1 has 2: the same"):
        corrupted_datasets(like_imagenet)
    (like_imagenet / "snow").rename(like_imagenet / "rain")
    with pytest.raises(ValueError, match="snow/1 is missing: .*NAME/SEVERITY/CLASS"):
        corrupted_datasets(like_imagenet)
    with pytest.raises(ValueError, match="holds neither labels.npy .* nor folders such as fog/3"):
        corrupted_datasets(like_imagenet / "rain")


def test_pixels_are_scaled_to_the_bounds(like_cifar):
    files = {("fog", 4): corrupted_datasets(like_cifar)["fog", 4]}
    found = [
        evaluate_corrupted(logits, files),
        evaluate_corrupted(lambda images: logits(255 * images), files, bounds=(0, 1)),
        evaluate_corrupted(lambda images: logits(255 * images), {("fog", 4): batched(files)}, bounds=(0, 1)),
    ]
    assert len({report["fog-4"].correct for report in found}) == 1
    assert 0 < found[0]["fog-4"].correct < 3


def batched(files):
    return tf.data.Dataset.from_tensor_slices(files["fog", 4]).batch(2)


def test_a_class_without_images_is_warned_of(like_imagenet):
    datasets = corrupted_datasets(like_imagenet, Preprocessing(4, 4, 3))
    with pytest.warns(UserWarning, match="largest label is 1, and the network has 3 classes"):
        evaluate_corrupted(logits, {("fog", 4): datasets["fog", 4]})
