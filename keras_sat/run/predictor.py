"""Classifies image files with the network of a run or an export."""

import dataclasses
import os
from typing import Any

import tensorflow as tf

from keras_sat import deployed, files
from keras_sat.data import reading
from keras_sat.export import signatures
from keras_sat.preprocessing import Preprocessing
from keras_sat.run import folder as folder_lib
from keras_sat.run import subject
from keras_sat.typing import Path


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with the preprocessing of its images and the names of its classes.

    Attributes:
        model: a function from images to logits.
        preprocessing: the conversion of an image file to pixels.
        classes: names of the classes, in the order of the logits; None if the export does not name them.
    """

    model: Any
    preprocessing: Preprocessing
    classes: list[str] | None

    def __call__(self, path: Path) -> dict[str, float]:
        """Returns {name of a class: probability} for an image file, the most probable class first.

        Args:
            path: path of the image file.

        Raises:
            ValueError: if the file cannot be read as an image.
        """
        pixels = self._pixels(os.fspath(path))
        probabilities = signatures.classified(self.model(pixels[None]))["probabilities"].numpy()[0]
        names = self.classes or [str(number) for number in range(len(probabilities))]
        order = probabilities.argsort(kind="stable")[::-1]
        return {names[number]: float(probabilities[number]) for number in order}

    def _pixels(self, path):
        try:
            return self.preprocessing(tf.io.read_file(path))
        except tf.errors.OpError as error:
            raise ValueError(f"{path} cannot be read: {reading.read(path).fault}.") from error


def open_predictor(path: Path) -> Predictor:
    """Returns the network of a run or of an export. Warns if an export does not describe its preprocessing.

    Args:
        path: the folder of a run, the folder of a SavedModel, or a .tflite file.

    Raises:
        ValueError: if there is no network, or an export describes neither its preprocessing nor its image size.
    """
    path = files.expanded(path)
    if not folder_lib.is_export(path):
        run, model = folder_lib.load(path)
        return Predictor(model, run.description.preprocessing, run.description.classes)
    model = deployed.load(path)
    preprocessing = model.preprocessing
    if preprocessing is None:
        if model.image_size is None or model.channels is None:
            raise ValueError(f"{path} does not say how its images are made (assets/preprocessing.json).")
        preprocessing = Preprocessing(model.image_size, model.image_size, model.channels)
        subject.warn_of_preprocessing(path, preprocessing)
    return Predictor(model, preprocessing, model.classes)


def image_files(paths: list[str]) -> list[str]:
    """Returns the given files, and all images in the given folders and their subfolders, in order.

    Raises:
        ValueError: if there are no images.
    """
    images = [image for path in paths for image in (_images_below(path) if os.path.isdir(path) else [path])]
    if not images:
        raise ValueError(f"There are no images in {', '.join(paths)}.")
    return images


def _images_below(path):
    images = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not reading.is_hidden(name))  # sets the order of os.walk
        shown = sorted(name for name in names if name.lower().endswith(reading.KINDS) and not reading.is_hidden(name))
        images += [os.path.join(folder, name) for name in shown]
    return images
