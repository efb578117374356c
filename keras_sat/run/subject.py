"""Opens the subject of an evaluation: a network, its dataset, and the threat model for which it was trained."""

import dataclasses
import os
import re
import warnings
from typing import Any

import tensorflow as tf

from keras_sat import data, deployed, files, models
from keras_sat.attacks import Attack
from keras_sat.evaluation import stages
from keras_sat.preprocessing import Preprocessing
from keras_sat.run import folder as folder_lib
from keras_sat.typing import Path


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network with a dataset to evaluate it on.

    Attributes:
        model: a Keras model, or a model that `deployed.load` returned; a function from images to logits.
        dataset: batches of images and labels, with the preprocessing of the network.
        context: entries for the report: "dataset", "split", "batch_size" and "run" or "weights".
        norm: norm of the threat model, a key of `BALLS`.
        epsilon: radius of the threat model in pixels 0..255; None if it is unknown.
        output: default folder for the reports; None if there is none.
    """

    model: Any
    dataset: tf.data.Dataset
    context: dict[str, Any]
    norm: str
    epsilon: float | None = None
    output: str | None = None

    def check_attacks(self, attacks: dict[str, Attack]) -> None:
        """Raises ValueError if the network has no gradients, and one of the attacks, {name: attack}, needs them."""
        for name, attack in attacks.items():
            if not stages.can_attack(attack, self.model):
                raise ValueError(f"{self.model.name} has no gradients, which {name} needs: take --attack=square.")


def open_run(
    folder: Path,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    split: str | None = None,
    batch_size: int = 200,
    skip_damaged: bool = False,
) -> Subject:
    """Returns the trained network of a run, with a dataset. Warns if the images have changed since the training.

    Args:
        folder: the folder of the run.
        dataset: name of a dataset, or a folder of images. Default: the dataset of the run.
        data_dir: folder of prepared TFDS datasets. Default: the `data_dir` of the run, otherwise TFDS' own default.
        split: split of the dataset, such as "test[:500]". Default: the whole evaluation split.
        batch_size: number of images in a batch. Default: 200.
        skip_damaged: whether to skip files of a folder that cannot be read. Default: False.

    Raises:
        ValueError: if the run or the dataset cannot be read, or the dataset has other classes.
    """
    folder = files.expanded(folder)
    run, model = folder_lib.load(folder)
    run = folder_lib.with_data(run, dataset, data_dir, skip_damaged)
    split = split or run.evaluation_split()
    for line in folder_lib.changes(run, split):
        warnings.warn(f"The images changed since {folder} was trained. {line}.", stacklevel=2)
    context = _context(run.dataset, split, batch_size) | {"run": os.path.abspath(folder)}
    batches = run.load_data(split, batch_size)
    return Subject(model, batches, context, run.norm, run.epsilon, folder)


def open_export(
    path: Path,
    *,
    dataset: str,
    data_dir: str | None = None,
    split: str | None = None,
    batch_size: int = 200,
    skip_damaged: bool = False,
) -> Subject:
    """Returns an exported network, with a dataset at the network's image size.

    If the export does not describe its classes or its preprocessing, a warning says what is used instead.

    Args:
        path: the folder of a SavedModel, or a .tflite file.
        dataset: name of a dataset, or a folder of images.
        data_dir: folder of prepared TFDS datasets. Default: TFDS' own default.
        split: see `open_run`.
        batch_size: see `open_run`.
        skip_damaged: see `open_run`.

    Raises:
        ValueError: if the export or the dataset cannot be read, or the dataset has other classes.
    """
    path = files.expanded(path)
    model = deployed.load(path)
    source = data.source(dataset, data_dir, classes=model.classes, skip_damaged=skip_damaged)
    split = split or data.evaluation_split(source)
    if not model.classes:
        _warn_of_order(f"{path} does not name its classes (assets/labels.txt)", source)
    preprocessing = model.preprocessing
    if preprocessing is None:
        preprocessing = data.preprocessing_of(source, model.image_size, channels=model.channels)
        warn_of_preprocessing(path, preprocessing)
    batches = data.load(source, split, batch_size, preprocessing=preprocessing)
    context = _context(dataset, split, batch_size) | {"run": os.path.abspath(path)}
    return Subject(model, batches, context, "linf")


def open_weights(
    network: str,
    weights: str,
    activation: str | dict = "silu",
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    split: str | None = None,
    batch_size: int = 200,
    skip_damaged: bool = False,
) -> Subject:
    """Returns a network with released weights, with the dataset and the threat model of their published evaluation.

    The classes of another dataset are matched by name. If the classes of a dataset are named by numbers ("0", "1",
    ...), they are matched by these numbers. If the weights do not name their classes, the classes of a folder are used
    in their order, with a warning.

    Args:
        network: name of the network, a key of `models.BUILDERS`.
        weights: tag of the weights, such as "sat-fashion-mnist".
        activation: activation of the network. Default: "silu".
        dataset: name of a dataset, or a folder of images. Default: the dataset on which the weights were evaluated.
        data_dir: see `open_export`.
        split: see `open_run`.
        batch_size: see `open_run`.
        skip_damaged: see `open_run`.

    Raises:
        ValueError: if there is no such network or no such weights, the dataset cannot be read or has other classes, or
            the weights were evaluated on images prepared in a way that `Preprocessing` does not have.
    """
    build = models.builder(network)
    entry = models.weights.find(network, activation, weights)
    if entry["crop"] is None:
        raise ValueError(
            f"RobustBench evaluates {weights} on images prepared by its {entry['preprocessing']}, which is none of the "
            "crops here: prepare the dataset so, and call evaluation.evaluate(model, dataset, attacks)."
        )
    published = entry["evaluation"]
    name = dataset or published["dataset"]
    names = data.class_names(published["dataset"]) if published["dataset"] in data.names() else None
    source = _source(name, names, entry["classes"], data_dir, skip_damaged)
    split = split or data.evaluation_split(source)
    size = entry["image_size"]
    preprocessing = Preprocessing(size, size, entry["channels"], entry["crop"])
    batches = data.load(source, split, batch_size, preprocessing=preprocessing)
    variant = {name: entry[name] for name in ("form", "stem") if name in entry}
    model = build(weights=weights, activation=activation, **variant)
    context = _context(name, split, batch_size) | {"weights": entry["id"]}
    output = f"{network}-{entry['activation']}-{weights.replace('/', '-')}"
    return Subject(model, batches, context, published["norm"] or "linf", published["epsilon"], output)


def _context(dataset, split, batch_size):
    return {"dataset": dataset, "split": split, "batch_size": batch_size}


def _source(name, names, number, data_dir, skip_damaged):
    """Returns the dataset for weights with `number` classes, whose names are `names` (None: the names are unknown)."""
    own = {_letters(each): each for each in data.source(name, data_dir).classes}
    numbers = [str(each) for each in range(number)]
    if set(own) <= set(numbers):
        classes = numbers
    elif names is not None:
        classes = [own.get(_letters(each), each) for each in names]
    elif len(own) == number:
        classes = None
    else:
        raise ValueError(f"{name} has {len(own)} classes; the weights have {number}.")
    source = data.source(name, data_dir, classes=classes, skip_damaged=skip_damaged)
    if classes is None and isinstance(source, data.Folder):
        _warn_of_order("The weights do not name their classes", source)
    return source


def _letters(name):
    """Returns the letters and digits of a class name: "T-shirt/top" and the folder "T-shirt_top" are the same class."""
    return re.sub(r"[\W_]", "", name.casefold()) or name


def _warn_of_order(why, source):
    shown = ", ".join(source.classes[:3])
    warnings.warn(f"{why}: those of {source.name} are taken in their order, {shown}, ...", stacklevel=3)


def warn_of_preprocessing(path: Path, preprocessing: Preprocessing) -> None:
    """Warns that an export does not describe its preprocessing, and says which crop is used."""
    warnings.warn(
        f"{path} does not say how its images are made (assets/preprocessing.json): crop {preprocessing.crop} is taken.",
        stacklevel=3,
    )
