"""What an evaluation is about."""

import shutil

import pytest

from keras_sat import models
from keras_sat.run import open_run, open_weights, subject


def test_every_entry_of_the_registry_has_a_preprocessing():
    found = {(how.crop, how.height) for how in map(subject.of_entry, models.weights.entries())}
    assert {("Res256Crop224", 224), ("BicubicRes256Crop224", 224), ("Crop288", 288), ("stretch", 32)} <= found


def test_images_that_were_trained_on_are_told(run_on_photos):
    path, photos = run_on_photos
    with pytest.warns(
        UserWarning, match=r"4 images of train\[20:\] are also in train, on which the network was trained"
    ):
        open_run(path, split="train[20:]")
    open_run(path, split="test[:4]")  # a warning would be an error
    shutil.rmtree(photos / "test")
    with pytest.raises(ValueError, match=r"no split to evaluate on.*--train_split=.*--split='train\[90%:\]'"):
        open_run(path)


def test_images_that_released_weights_were_trained_on_are_told():
    with pytest.warns(
        UserWarning, match=r"10 images of train\[:10\] are also in train, on which the weights were trained"
    ):
        open_weights("ResNet8", "sat-fashion-mnist", split="train[:10]")
    open_weights("ResNet8", "sat-fashion-mnist", split="test[:10]")
