"""Classifies image files with the network of a run or an export, clean and under attack."""

import dataclasses
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import deployed, files, losses
from keras_sat.attacks import Attack
from keras_sat.data import reading
from keras_sat.export import saved_model, signatures
from keras_sat.preprocessing import Preprocessing
from keras_sat.run import folder as folder_lib
from keras_sat.run import subject
from keras_sat.typing import Path


@dataclasses.dataclass(frozen=True)
class Attacked:
    """What an attack makes of an image. `Predictor.attacked` returns it.

    Attributes:
        image: the attacked image, float32 [height, width, channels], pixels 0..255.
        classes: {name of a class: probability} of this image, the most probable class first.
        levels: the image with whole levels, uint8, as an image file holds it. A pixel may thus be up to half a level
            outside the attack's ball.
        classes_of_levels: {name of a class: probability} of `levels`.
    """

    image: np.ndarray
    classes: dict[str, float]
    levels: np.ndarray
    classes_of_levels: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A network with the preprocessing of its images and the names of its classes.

    Attributes:
        model: a function from images to logits, or to probabilities.
        preprocessing: the conversion of an image file to pixels.
        classes: names of the classes, in the order of the logits; None if the export does not name them.
        norm: norm of the threat model that the network was trained for, a key of `BALLS`; "linf" if it is unknown.
        epsilon: radius of this threat model in pixels 0..255; None if it is unknown.
        returns_probabilities: whether the model returns probabilities, as an export that Keras wrote may do.
    """

    model: Any
    preprocessing: Preprocessing
    classes: list[str] | None
    norm: str = "linf"
    epsilon: float | None = None
    returns_probabilities: bool = False

    def __call__(self, path: Path) -> dict[str, float]:
        """Returns {name of a class: probability} for an image file, the most probable class first.

        Args:
            path: path of the image file.

        Raises:
            ValueError: if the file cannot be read as an image.
        """
        return self._named(self.pixels(path)[None])

    def attacked(self, path: Path, attack: Attack, seed: int = 0) -> Attacked:
        """Returns what an attack makes of an image file.

        The attack is untargeted. It leads away from the class that the network names: the true class is unknown.

            predict = open_predictor("runs/photos")
            predict.attacked("cat.jpg", PGD(LinfBall(predict.epsilon), steps=50)).classes

        Args:
            path: path of the image file.
            attack: the attack, such as `PGD(LinfBall(4), steps=50)`.
            seed: seed of the attack. Default: 0.

        Raises:
            ValueError: if the file cannot be read as an image, or the attack needs gradients that the network lacks.
        """
        subject.check_attacks(self.model, {str(attack): attack})
        images = tf.cast(self.pixels(path)[None], tf.float32)
        labels = self._classified(images)["classes"]
        adversarial = attack(self.model, images, labels, seed)
        levels = tf.cast(tf.round(tf.clip_by_value(adversarial, 0.0, 255.0)), tf.uint8)
        return Attacked(adversarial[0].numpy(), self._named(adversarial), levels[0].numpy(), self._named(levels))

    def _named(self, images):
        """Returns {name of a class: probability} of the only image of a batch, the most probable class first."""
        probabilities = self._classified(images)["probabilities"].numpy()[0]
        names = self.classes or [str(number) for number in range(len(probabilities))]
        order = probabilities.argsort(kind="stable")[::-1]
        return {names[number]: float(probabilities[number]) for number in order}

    def _classified(self, images):
        outputs = self.model(images)
        return signatures.classified(deployed.logits_of(outputs) if self.returns_probabilities else outputs)

    def pixels(self, path: Path) -> tf.Tensor:
        """Returns the pixels of an image file, as the network takes them: uint8 [height, width, channels].

        Raises:
            ValueError: if the file cannot be read as an image.
        """
        path = os.fspath(path)
        try:
            return self.preprocessing(tf.io.read_file(path))
        except tf.errors.OpError as error:
            raise ValueError(f"{path} cannot be read: {reading.read(path).fault}.") from error


def open_predictor(path: Path) -> Predictor:
    """Returns the network of a run or of an export. Warns if an export does not describe its preprocessing.

    Args:
        path: the folder of a run, the folder of a SavedModel, or a .tflite file.

    Raises:
        ValueError: if there is no network, or an export describes neither its preprocessing nor its image size, or
            returns a sigmoid for each of several classes.
    """
    path = files.expanded(path)
    if not folder_lib.is_export(path):
        run, model = folder_lib.load(path)
        epsilon = run.epsilon if run.sigma is None else None
        return Predictor(model, run.description.preprocessing, run.description.classes, run.norm, epsilon)
    model = deployed.load(path)
    preprocessing = model.preprocessing
    if preprocessing is None:
        if model.image_size is None or model.channels is None:
            raise ValueError(f"{path} does not describe its preprocessing (assets/preprocessing.json).")
        preprocessing = Preprocessing(model.image_size, model.image_size, model.channels)
        subject.warn_of_preprocessing(path, preprocessing)
    noise = np.random.default_rng(0).integers(0, 256, (8, *preprocessing.shape)).astype(np.float32)
    kind, (norm, epsilon) = losses.probabilities(model, noise), _threat(path)
    if kind == "sigmoid" and model(noise).shape[-1] > 1:
        raise ValueError(f"{path} returns a sigmoid for each class, so several labels an image: one was expected.")
    return Predictor(model, preprocessing, model.classes, norm, epsilon, kind is not None)


def _threat(path):
    """Returns norm and epsilon of an export's training, as its robustness card says them; epsilon may be None."""
    file = os.path.join(path, saved_model.CARD)
    if not os.path.isfile(file):
        return "linf", None
    with open(file, encoding="utf-8") as text:
        training = json.load(text).get("training") or {}
    return training.get("norm", "linf"), training.get("epsilon")


def written_files(images: list[str], attacks: list[str], folder: Path) -> dict[str, list[str]]:
    """Returns the paths of the PNG files of images and of what attacks make of them. It writes nothing.

    The files of "cat.jpg" are cat.png and cat.adversarial.png; with several attacks, cat.pgd-50.adversarial.png, ...
    Images of several folders get subfolders.

    Args:
        images: paths of the image files.
        attacks: names of the attacks.
        folder: the folder to write to.

    Returns:
        {path of an image: [path of the clean image, a path for each attack]}.

    Raises:
        ValueError: if one of these files exists, or two images would be written to one file.
    """
    base = os.path.commonpath([os.path.dirname(os.path.abspath(image)) for image in images])
    paths: dict[str, list[str]] = {}
    makers: dict[str, str] = {}
    for image in images:
        stem = os.path.splitext(os.path.join(folder, os.path.relpath(os.path.abspath(image), base)))[0]
        parts = [f".{name.lower()}" if len(attacks) > 1 else "" for name in attacks]
        paths[image] = [f"{stem}.png", *(f"{stem}{part}.adversarial.png" for part in parts)]
        for path in paths[image]:
            if os.path.exists(path):
                raise ValueError(f"{path} exists: choose another folder for --output.")
            if makers.setdefault(path, image) != image:
                raise ValueError(f"{makers[path]} and {image} would both be written to {path}: use two commands.")
    return paths


def write_png(path: Path, pixels: np.ndarray | tf.Tensor) -> None:
    """Writes uint8 pixels [height, width, 1 or 3] to a PNG file. See `files.atomic_write`."""
    with files.atomic_write(path) as temporary:
        tf.io.write_file(temporary, tf.io.encode_png(pixels))


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
