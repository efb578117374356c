"""TFDS datasets whose pixels are not uint8, or whose examples are sorted by class."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_sat import data
from keras_sat.data import slices

SHAPE = (6, 6, 3)


@pytest.fixture
def prepare(store, tmp_path):
    """Returns a function that prepares a dataset of images with labels 0, 0, ..., 1, 1, ..."""

    def prepared(name, feature, images, names=("no", "yes")):
        examples = [(i, {"image": image, "label": int(i >= len(images) // 2)}) for i, image in enumerate(images)]
        features = {"image": feature, "label": tfds.features.ClassLabel(names=list(names))}
        store(tmp_path, name, features, {"train": examples}, disable_shuffling=True)
        return {"data_dir": tmp_path}

    return prepared


LEVELS = np.linspace(0, 1, 6 * np.prod(SHAPE)).reshape(6, *SHAPE)
KINDS = {
    "uint16": (tfds.features.Tensor(shape=SHAPE, dtype=np.uint16), (LEVELS * 65535).astype(np.uint16), "0..65535"),
    "floats": (tfds.features.Tensor(shape=SHAPE, dtype=np.float32), LEVELS.astype(np.float32), "0..1"),
    "bools": (tfds.features.Tensor(shape=SHAPE, dtype=np.bool_), LEVELS > 0.5, "False and True"),
    "whole": (tfds.features.Tensor(shape=SHAPE, dtype=np.int64), (LEVELS * 255).astype(np.int64), None),
    "wide": (tfds.features.Tensor(shape=SHAPE, dtype=np.float32), (LEVELS * 255).astype(np.float32), None),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:__array__")
def test_pixels_are_scaled_to_bytes_and_it_is_said(prepare, name):
    feature, images, said = KINDS[name]
    where = prepare(name, feature, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        ((loaded, _),) = data.load(name, "train", 6, **where)
        said_before = len(caught)
        ((resized, _),) = data.load(data.source(name, **where), "train", 6, 12)
    messages = [str(each.message) for each in caught[:said_before] if "scaled" in str(each.message)]
    assert messages == (
        [f"The pixels of {name}, {said}{' (uint16)' * (name == 'uint16')}, are scaled to 0..255."] * bool(said)
    )
    expected = 255 * (LEVELS > 0.5) if name == "bools" else LEVELS * 255
    assert np.max(np.abs(np.float64(loaded) - expected)) <= 1
    assert np.mean(resized) == pytest.approx(np.mean(expected), abs=2)


def test_pixels_of_another_range_are_refused(prepare):
    feature = tfds.features.Tensor(shape=SHAPE, dtype=np.float32)
    for name, images, message in (
        ("large", LEVELS * 1000, r"are in 0..1000: 0..255, or 0..1 for floats"),
        ("signed", LEVELS * 2 - 1, r"are in -1..1"),
    ):
        where = prepare(name, feature, images.astype(np.float32))
        with pytest.raises(ValueError, match=message):
            data.load(name, "train", 6, **where)


def test_a_pixel_beyond_the_range_that_was_found_is_an_error(prepare):
    feature = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.float32)
    images = np.zeros((110, 2, 2, 1), np.float32) + 0.5
    images[105] = 200
    where = prepare("late", feature, images)
    with pytest.warns(UserWarning, match="0..1, are scaled"):
        dataset = data.load("late", "train", 10, **where)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must all be in the range of its first 100 images"):
        list(dataset)


def test_images_without_a_channel_axis_are_grey(prepare):
    where = prepare("flat", tfds.features.Tensor(shape=(6, 6), dtype=np.uint8), np.uint8(LEVELS[..., 0] * 255))
    images, _ = next(iter(data.load("flat", "train", 6, **where)))
    assert images.shape == (6, 6, 6, 1)


def test_a_sample_holds_all_classes(prepare):
    where = prepare("sorted", tfds.features.Image(shape=SHAPE), np.uint8(np.repeat(LEVELS, 4, 0) * 255))
    first, _ = next(iter(data.load("sorted", "train", 6, **where)))
    ((_, labels),) = data.load("sorted", "train", 6, sample=6, **where)
    assert sorted(labels.numpy()) == [0, 0, 0, 1, 1, 1]
    assert len(first) == 6
    ((_, labels),) = data.load("sorted", "train", 24, sample=999, **where)
    assert len(labels) == 24


def test_classes_are_matched_by_name(prepare):
    where = prepare("named", tfds.features.Image(shape=SHAPE), np.uint8(LEVELS * 255))
    ((_, labels),) = data.load(data.source("named", classes=["yes", "perhaps", "no"], **where), "train", 6)
    np.testing.assert_array_equal(labels, [2, 2, 2, 0, 0, 0])
    with pytest.raises(ValueError, match="does not know: 'no'"):
        data.source("named", classes=["yes", "never"], **where)


def test_stratified_samples():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    for number, expected in ((10, [6, 3, 1]), (50, [30, 15, 5]), (3, None)):
        places = slices.stratified(labels, number, np.random.default_rng(0))
        assert len(set(places)) == number
        if expected:
            np.testing.assert_array_equal(np.bincount(labels[places], minlength=3), expected)
