"""The split "robustbench": RobustBench's 5,000 images of ImageNet."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from keras_sat import data
from keras_sat.data import imagenet
from keras_sat.evaluation import robustbench

OTHERS = ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"]  # not in the list


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ImageNet's file names. An image's grey level is its number modulo 256, its class the parity."""
    path = tmp_path_factory.mktemp("imagenet")
    for number in range(2):
        (path / "val" / f"n{number}").mkdir(parents=True)
    for level in range(256):
        Image.new("RGB", (2, 2), (level,) * 3).save(path / f"{level}.png")
    for name in (*imagenet.names(), *OTHERS):
        number = int(name[-8:])
        (path / "val" / f"n{number % 2}" / f"{name}.png").symlink_to(path / f"{number % 256}.png")
    return path


def test_the_list_is_robustbenchs():
    assert len(set(imagenet.names())) == 5000
    assert imagenet.names()[:2] == ("ILSVRC2012_val_00015253", "ILSVRC2012_val_00020685")
    # of the numbers, in RobustBench's order
    text = "\n".join(name[-8:] for name in imagenet.names())
    assert hashlib.sha256(text.encode()).hexdigest().startswith("75bd138c7bf26388")


@pytest.mark.filterwarnings("ignore:.*left out are 256 .png")
def test_a_folder_gives_exactly_these(folder):
    expected = sorted((int(name[-8:]) % 2, int(name[-8:]) % 256) for name in imagenet.names())
    found = []
    for images, labels in data.load(folder, "robustbench", 1000, image_size=2, crop="stretch", channels=3):
        found += zip(labels.numpy().tolist(), images[:, 0, 0, 0].numpy().tolist())
    assert sorted(found) == expected
    assert data.overlap(folder, "robustbench", "val") == 5000
    few = data.load(folder, "robustbench", 10, image_size=2, crop="stretch", channels=3, sample=10)
    assert sum(len(labels) for _, labels in few) == 10
    images, _ = next(iter(robustbench.imagenet_images(folder, "Crop288", batch_size=3)))
    assert images.shape == (3, 288, 288, 3)
    with pytest.raises(ValueError, match="crop must be one of Res256Crop224.*'stretch'"):
        robustbench.imagenet_images(folder, "stretch")


def test_a_folder_that_lacks_some_is_refused(folder):
    gone = [folder / "val" / f"n{int(name[-8:]) % 2}" / f"{name}.png" for name in imagenet.names()[:3]]
    targets = [path.readlink() for path in gone]
    for path in gone:
        path.unlink()
    try:
        with pytest.raises(ValueError, match=r"val lacks 3 of RobustBench's 5000 images, such as ILSVRC2012_val_0.*EG"):
            robustbench.imagenet_images(folder)
    finally:
        for path, target in zip(gone, targets):
            path.symlink_to(target)
    again = folder / "val" / "n0" / f"{imagenet.names()[0]}.bmp"
    again.symlink_to(targets[0])
    with pytest.raises(ValueError, match="has 1 of RobustBench's images twice"):
        robustbench.imagenet_images(folder)
    again.unlink()


def test_a_dataset_of_tfds_says_its_file_names(store, tmp_path):
    """In the order of its labels, and of the places that are read."""
    examples = [
        (f"key {n}", {"image": np.full((2, 2, 3), n, np.uint8), "label": n % 2, "file_name": f"{n}.JPEG"})
        for n in range(40)
    ]
    features = {
        "image": tfds.features.Image(shape=(2, 2, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
        "file_name": tfds.features.Text(),
    }
    store(tmp_path, "with_names", features, {"validation": examples})
    source = data.source("with_names", tmp_path)
    names = source.file_names("validation")
    assert sorted(names) == sorted(f"{n}.JPEG" for n in range(40))
    places = np.array([3, 5, 30])
    read = source.read("validation", places=places)
    read = source.map_images(read, lambda image: tf.io.decode_image(image)[0, 0, 0], None)
    assert {int(level) for level, _ in read} == {int(names[place][:-5]) for place in places}
    with pytest.raises(ValueError, match="does not store the names of its files"):
        data.load("fashion_mnist_mini", "robustbench", 10)
    with pytest.raises(ValueError, match="lacks 5000 of RobustBench's 5000 images"):
        data.load(source, "robustbench", 10)
