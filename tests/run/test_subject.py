"""What an evaluation is about."""

import shutil

import pytest

from keras_sat.run import open_run, subject


def test_weights_whose_preprocessing_is_not_here_are_refused():
    """Another crop would be another figure. It is refused before the dataset is read and the network is built."""
    with pytest.raises(ValueError, match="Salman2020Do_R50 on images prepared by its Res256Crop224, which is none of"):
        subject.open_weights("ResNet50", "robustbench/Salman2020Do_R50", "relu", dataset="no such folder")


def test_images_that_were_trained_on_are_told(run_on_photos):
    path, photos = run_on_photos
    with pytest.warns(UserWarning, match=r"4 images of train\[20:\] are of train, on which the network was trained"):
        open_run(path, split="train[20:]")
    open_run(path, split="test[:4]")  # a warning would be an error
    shutil.rmtree(photos / "test")
    with pytest.raises(ValueError, match=r"no split to evaluate on.*--train_split=.*--split='train\[90%:\]'"):
        open_run(path)
