"""Opens the subject of an evaluation: a network, its dataset, and the threat model for which it was trained."""

import dataclasses
import os
import warnings
from typing import Any

import tensorflow as tf

from keras_sat import data, deployed, files, models
from keras_sat.attacks import Attack
from keras_sat.evaluation import stages
from keras_sat.preprocessing import Preprocessing
from keras_sat.run import folder as folder_lib
from keras_sat.run import trained_on
from keras_sat.run.pretrained import activation_name, channels_and_classes, letters
from keras_sat.typing import Path


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network with a dataset to evaluate it on.

    Attributes:
        model: a Keras model, or a model that `deployed.load` returned; a function from images to logits.
        dataset: batches of images and labels, with the preprocessing of the network.
        context: entries for the report: "dataset", "split", "batch_size", "classes" (their names, in the order of the
            labels), "run" or "weights", and "network" if it is known: name, form, activation and normalization; see
            `models.describe`.
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
        check_attacks(self.model, attacks)


def check_attacks(model: Any, attacks: dict[str, Attack]) -> None:
    """Raises ValueError if a model has no gradients, and one of the attacks, {name: attack}, needs them."""
    for name, attack in attacks.items():
        if not stages.can_attack(attack, model):
            raise ValueError(f"{model.name} has no gradients, which {name} needs: use --attack=square.")


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

    Returns:
        A `Subject`. Its epsilon is None if the run trained on Gaussian noise, which has none.

    Raises:
        ValueError: if the run or the dataset cannot be read, or the dataset has other classes.
    """
    folder = files.expanded(folder)
    run, model = folder_lib.load(folder)
    run = folder_lib.with_data(run, dataset, data_dir, skip_damaged)
    split = split or run.evaluation_split()
    for line in folder_lib.changes(run, split):
        warnings.warn(f"The images changed since {folder} was trained. {line}.", stacklevel=2)
    if run.record and run.dataset == run.record.dataset:
        _warn_of_trained_on(run, split)
    for line in trained_on.for_evaluation(run, folder_lib.read_record(folder), split):
        warnings.warn(line, stacklevel=2)
    context = _context(run.dataset, split, batch_size, run.description.classes) | {
        "run": os.path.abspath(folder),
        "network": run.network(model),
        "preprocessing": run.description.preprocessing.settings(),
    }
    batches = run.load_data(split, batch_size)
    return Subject(model, batches, context, run.norm, run.epsilon if run.sigma is None else None, folder)


def _warn_of_trained_on(run, split):
    validated = run.validation_split if run.chooses else None
    for which, kind in ((run.train_split, "trained"), (validated, "validated")):
        number = data.overlap(run.source, split, which) if which else 0
        _warn_of_shared(number, split, which, f"the network was {kind}", stacklevel=4)


def _warn_of_shared(number, split, which, what, stacklevel):
    """Warns if a number of images of the split that is evaluated are also in a split of the training."""
    if number:
        warnings.warn(
            f"{number} images of {split} are also in {which}, on which {what}: the measured accuracies are too high.",
            stacklevel=stacklevel,
        )


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
    context = _context(dataset, split, batch_size, source.classes) | {
        "run": os.path.abspath(path),
        "preprocessing": preprocessing.settings(),
    }
    return Subject(model, batches, context, "linf")


def open_weights(
    network: str,
    weights: Path,
    activation: str | dict | None = None,
    *,
    form: str | None = None,
    normalization: str | list | None = None,
    image_size: int | None = None,
    crop: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    split: str | None = None,
    batch_size: int = 200,
    skip_damaged: bool = False,
) -> Subject:
    """Returns a network with released weights, or those of a `.weights.h5` file, and a dataset to evaluate it on.

    Released weights have the dataset and the threat model of their published evaluation. The classes of another dataset
    are matched by name. If the classes of a dataset are named by numbers ("0", "1", ...), they are matched by these
    numbers. If the weights do not name their classes, as those of a file, the classes of the dataset are used in their
    order, with a warning if it is a folder.

    Args:
        network: name of the network, see `models.builder`.
        weights: tag of the weights, such as "sat-fashion-mnist", or path of a `.weights.h5` file.
        activation: activation of the network. Default: "silu" with a tag. With a file, it must be given.
        form: published variant of the network, see `models.build`. Default: the first one.
        normalization: see `models.build`.
        image_size: with a file: height and width to which the images are resized. Default: their own size.
        crop: with a file: see `keras_sat.data.load`.
        dataset: name of a dataset, or a folder of images. Default: the dataset on which the weights were evaluated. It
            must be given with a file.
        data_dir: see `open_export`.
        split: see `open_run`.
        batch_size: see `open_run`.
        skip_damaged: see `open_run`.

    Raises:
        ValueError: if there is no such network or no such weights, or the dataset cannot be read or has other classes.
    """
    models.check_variant(network, form, normalization)
    options: dict[str, Any] = {"normalization": normalization or "published", "activation": activation or "silu"}
    entry: Any = models.weights.resolve(weights, network, options["activation"], form=form)
    is_file = not isinstance(entry, dict)
    if is_file and (activation is None or dataset is None):
        raise ValueError(f"{entry} does not say its activation and its dataset: say --activation and --dataset.")
    if not is_file and (image_size or crop):
        raise ValueError(
            f"The weights {weights} have their own image size and crop: leave out --image_size and --crop."
        )
    entry = _entry_of_file(entry, network, form) if is_file else entry
    form = form or models.weights.form_of(entry)
    published = entry["evaluation"]
    name = dataset or published["dataset"]
    names = data.class_names(published["dataset"]) if published["dataset"] in data.names() else None
    source = _source(name, names, entry["classes"], data_dir, skip_damaged)
    split = split or data.evaluation_split(source)
    if is_file:
        preprocessing = data.preprocessing_of(source, image_size, crop, entry["channels"])
        options["input_shape"] = preprocessing.shape
    else:
        preprocessing = of_entry(entry)
        _warn_of_released(entry, name, source, split)
    batches = data.load(source, split, batch_size, preprocessing=preprocessing)
    model = models.build(network, form, weights=weights, **options)
    context = _context(name, split, batch_size, source.classes) | {
        "weights": entry["id"],
        "network": models.describe(model, network, form, options["activation"]),
        "preprocessing": preprocessing.settings(),
    }
    output = "-".join((network, activation_name(options["activation"]), _stem(weights)))
    return Subject(model, batches, context, published["norm"] or "linf", published["epsilon"], output)


def _warn_of_released(entry, dataset, source, split):
    for training in trained_on.of_entry(entry):
        number = trained_on.shared(source, split, training) if training["dataset"] == dataset else 0
        _warn_of_shared(number, split, training["train_split"], "the weights were trained", stacklevel=4)


def of_entry(entry: dict[str, Any]) -> Preprocessing:
    """Returns the `Preprocessing` with which the weights of an entry of the registry are evaluated."""
    crop = entry["crop"] or entry["preprocessing"]  # of ImageNet: RobustBench's, by name
    return Preprocessing(entry["image_size"], entry["image_size"], entry["channels"], crop)


def _entry_of_file(path, network, form):
    """Returns what is known of the weights in a file, in the way of the registry's entries."""
    form = form or models.builder(network).form
    channels, classes = channels_and_classes(path, {"model": network, "form": form})
    evaluation = {"dataset": None, "norm": None, "epsilon": None}
    return {
        "id": os.path.abspath(path),
        "evaluation": evaluation,
        "channels": channels,
        "classes": classes,
        "form": form,
    }


def _stem(weights):
    """Returns a tag, or the name of a file of weights, for the name of a folder."""
    text = os.fspath(weights)
    return os.path.basename(text).removesuffix(".weights.h5") if text.endswith(".h5") else text.replace("/", "-")


def _context(dataset, split, batch_size, classes):
    return {"dataset": dataset, "split": split, "batch_size": batch_size, "classes": list(classes)}


def _source(name, names, number, data_dir, skip_damaged):
    """Returns the dataset for weights with `number` classes, whose names are `names` (None: the names are unknown)."""
    own = {letters(each): each for each in data.source(name, data_dir).classes}
    numbers = [str(each) for each in range(number)]
    if set(own) <= set(numbers):
        classes = numbers
    elif names is not None:
        classes = [own.get(letters(each), each) for each in names]
    elif len(own) == number:
        classes = None
    else:
        raise ValueError(f"{name} has {len(own)} classes; the weights have {number}.")
    source = data.source(name, data_dir, classes=classes, skip_damaged=skip_damaged)
    if classes is None and isinstance(source, data.Folder):
        _warn_of_order("The weights do not name their classes", source)
    return source


def _warn_of_order(why, source):
    shown = ", ".join(source.classes[:3])
    warnings.warn(f"{why}: those of {source.name} are used in their order, {shown}, ...", stacklevel=3)


def warn_of_preprocessing(path: Path, preprocessing: Preprocessing) -> None:
    """Warns that an export does not describe its preprocessing, and says which crop is used."""
    warnings.warn(
        f"{path} does not describe its preprocessing (assets/preprocessing.json): crop {preprocessing.crop} is used.",
        stacklevel=3,
    )
