"""The configuration of a training run."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sat import activations, attacks, data, models
from keras_sat.attacks.threats import Ball
from keras_sat.models import normalization
from keras_sat.models.classifier import PRECISIONS
from keras_sat.preprocessing import CROPS
from keras_sat.training import AWP, MART, TRADES, AdversarialTraining, Free, Objective, distribution

BALLS: dict[str, Callable[..., Ball]] = {"linf": attacks.LinfBall, "l2": attacks.L2Ball}
OBJECTIVES: dict[str, Callable[[], Objective]] = {"adversarial": AdversarialTraining, "trades": TRADES, "mart": MART}
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "steps")
NORMALIZATION_HELP = (
    f"published (that of the form), none (pixels / 255), {', '.join(normalization.NAMED)}, or mean and std of images "
    "in 0..1 in JSON: [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]"
)
VALIDATION_IMAGES = 500
CALIBRATION_IMAGES = 200


def _flag(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Run:
    """Configuration of a training run. The defaults are the settings of `keras-sat quickstart`.

    Each field with a help text is a flag of `keras-sat train`; `keras-sat train --help` explains it. The field `record`
    is set by `load`: it is the description of the data that the network was trained on.

    Raises:
        ValueError: if a value is out of range; the message says which values are valid.
    """

    model: str = _flag("ResNet8", "network: see `keras-sat list`")
    form: str | None = _flag(
        None,
        "published variant of the network, such as dm of WideResNet28_10; of ConvNeXt, its stem; default: the first "
        "one that `keras-sat list` shows",
    )
    normalization: str | list | None = _flag(None, f"of pixels: {NORMALIZATION_HELP}; default: published")
    activation: str | dict = _flag("silu", 'a name, or a dict in JSON: \'{"name": "gelu", "approximate": false}\'')
    dataset: str = _flag("fashion_mnist_mini", "embedded, a prepared TFDS dataset, or a folder SPLIT/CLASS/*.jpg")
    data_dir: str | None = _flag(None, "folder of prepared TFDS datasets; default: the folder that TFDS uses")
    image_size: int | None = _flag(None, "height and width to resize the images to; default: their own size")
    crop: str | None = _flag(
        None,
        f"part of an image to use: {', '.join(CROPS)}; default: all of it, padded where images differ in size",
    )
    channels: int | None = _flag(None, "1 (grey) or 3 (RGB); default: 1 where all images are grey")
    skip_damaged: bool = _flag(False, "read all files of a folder first, and leave out those that cannot be read")
    augment: bool = _flag(False, "crop and flip images at random: for long trainings; costs accuracy in short ones")
    rand_augment: float | None = _flag(None, "factor 0..1 of RandAugment; default: none")
    mixup: float | None = _flag(None, "alpha of MixUp; default: none")
    cutmix: float | None = _flag(None, "factor of CutMix; default: none")
    norm: str = _flag("linf", f"norm of the attack: {' or '.join(BALLS)}")
    epsilon: float = _flag(25.5, "radius of the attack, in pixels 0..255")
    steps: int = _flag(2, "gradient steps of the training attack")
    step_size: float | None = _flag(
        None, "step size of the training attack, in pixels; default: max(1, epsilon / steps), or with replays epsilon"
    )
    clean_start: float = _flag(0.0, "probability that the attack of a batch starts from the clean images")
    replays: int = _flag(0, "times that free adversarial training uses each batch; 0: train with PGD")
    objective: str = _flag("adversarial", ", ".join(OBJECTIVES))
    awp: float = _flag(0.0, "adversarial weight perturbation, relative to the kernels, such as 0.005; 0 for none")
    epochs: int = _flag(8, "passes over the training split")
    batch_size: int = _flag(100, "images in a batch, over all devices")
    optimizer: str = _flag("adamw", "adamw, or sgd (Nesterov, momentum 0.9)")
    learning_rate: float = _flag(0.008, "largest learning rate of the schedule")
    schedule: str = _flag("cosine", "of the learning rate: cosine, or steps: a tenth after each of decay_epochs")
    decay_epochs: str = _flag("", "epochs at which the schedule `steps` decays, such as 30,60,90")
    warmup_epochs: float | None = _flag(
        None, "epochs in which the learning rate rises; default: a fifth of the training"
    )
    warmup_from: float = _flag(0.0, "learning rate at step 0")
    weight_decay: float = _flag(0.001, "on convolution and dense kernels only: AdamW's, or for sgd an L2 penalty")
    label_smoothing: float = _flag(0.0, "of the loss; the attack uses the labels without smoothing")
    clip_norm: float | None = _flag(None, "largest norm of the whole gradient; larger ones are clipped; default: none")
    ema: float = _flag(0.0, "momentum of averaged weights, which are evaluated and saved; 0 for none")
    precision: str = _flag("float32", ", ".join(PRECISIONS))
    attack_precision: str | None = _flag(
        None, f"of the training attack alone: {', '.join(PRECISIONS)}; default: precision"
    )
    strategy: str = _flag("auto", "auto, none, mirrored (every GPU of this machine), multiworker (TF_CONFIG), tpu")
    checkpoint_every: int = _flag(500, "steps between checkpoints; a killed run goes on from the last one")
    seed: int = _flag(0, "the same seed gives the same run")
    record: data.Description | None = None

    def __post_init__(self) -> None:
        for name in ("dataset", "data_dir"):  # absolute, because the run may be read from another working folder
            value = getattr(self, name)
            if value and "://" not in value and (name == "data_dir" or data.is_folder(value)):
                object.__setattr__(self, name, os.path.abspath(os.path.expanduser(value)))
        if isinstance(self.normalization, (list, tuple)):  # as JSON gives it back, so that settings can be compared
            object.__setattr__(self, "normalization", json.loads(json.dumps(self.normalization)))
        models.check_variant(self.model, self.form, self.normalization, self.channels)
        _check_choices(self)
        _check_ranges(self)
        _check_decay_epochs(self)
        if self.replays and self.objective != "adversarial":
            raise _error("objective", self.objective, "adversarial with replays")
        if self.replays and self.attack_precision:
            raise _error("attack_precision", self.attack_precision, "left out with replays")
        self.attack()  # checks epsilon, step_size and clean_start
        activations.layer(self.activation)

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as a dict {name of a flag: plain value}."""
        return {field.name: getattr(self, field.name) for field in fields()}

    @functools.cached_property
    def source(self) -> data.Folder | data.Prepared:
        """The opened dataset. For a trained network, its classes are matched by name with those of the network.

        Raises:
            ValueError: if the dataset cannot be opened, see `keras_sat.data.source`.
        """
        if self.record and os.path.isabs(self.dataset) and not os.path.isdir(self.dataset):
            raise ValueError(
                f"{self.dataset}, which the network was trained on, is not there: say where the images are now, "
                "--dataset=FOLDER."
            )
        classes = self.record.classes if self.record else None
        return data.source(self.dataset, self.data_dir, classes=classes, skip_damaged=self.skip_damaged)

    @functools.cached_property
    def description(self) -> data.Description:
        """The description of the training data: `record` if it is set, otherwise made from the dataset as it is now."""
        if self.record:
            return self.record
        return data.describe(self.source, self.image_size, crop=self.crop, channels=self.channels)

    def ball(self, epsilon: float | None = None) -> Ball:
        """Returns the threat model.

        Args:
            epsilon: radius in pixels 0..255. Default: the epsilon of this run.
        """
        return BALLS[self.norm](self.epsilon if epsilon is None else epsilon)

    def attack(self) -> attacks.PGD:
        """Returns the attack of training. With `replays`, it gives ball and step size to free adversarial training."""
        if self.replays:
            step_size = (self.epsilon or None) if self.step_size is None else self.step_size
            return attacks.PGD(self.ball(), steps=1, step_size=step_size)
        return attacks.PGD(self.ball(), steps=self.steps, step_size=self.step_size, clean_start=self.clean_start)

    def training_objective(self) -> Objective:
        """Returns the objective of training: `Free` with `replays`, otherwise the one with the name `objective`."""
        return Free(self.replays) if self.replays else OBJECTIVES[self.objective]()

    def weight_perturbation(self) -> AWP | None:
        """Returns the adversarial weight perturbation of training; None for none."""
        return AWP(self.awp) if self.awp else None

    def load_data(
        self, split: str, batch_size: int | None = None, training: bool = False, **options: Any
    ) -> tf.data.Dataset:
        """Returns batches of the run's dataset.

        Args:
            split: See `keras_sat.data.load`.
            batch_size: number of images in a batch. Default: the batch size of this run.
            training: See `keras_sat.data.load`.
            options: further arguments of `keras_sat.data.load`.
        """
        return data.load(
            self.source,
            split,
            batch_size or self.batch_size,
            preprocessing=self.description.preprocessing,
            training=training,
            seed=self.seed,
            augment=self.augment,
            **options,
        )

    def training_data(
        self, first_step: int = 0, input_context: tf.distribute.InputContext | None = None
    ) -> tf.data.Dataset:
        """Returns the batches of all epochs, one after the other, for `trainer.fit`.

        Args:
            first_step: index of the first batch, counted over all epochs.
            input_context: see `keras_sat.data.load`.
        """
        dataset = self.load_data(
            "train",
            training=True,
            epochs=self.epochs,
            first_step=first_step,
            input_context=input_context,
            rand_augment=self.rand_augment,
            mixup=self.mixup,
            cutmix=self.cutmix,
        )
        return self._labelled(dataset)

    def validation_data(self) -> tf.data.Dataset:
        """Returns a stratified sample of up to 500 images (at least a batch) of the evaluation split, in batches."""
        images = max(1, VALIDATION_IMAGES // self.batch_size) * self.batch_size
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return self._labelled(self.load_data(self.evaluation_split(), sample=images)).with_options(options)

    @property
    def has_soft_labels(self) -> bool:
        """Whether the labels are class probabilities [batch, classes] in place of class numbers [batch]."""
        return bool(self.label_smoothing or self.mixup or self.cutmix)

    def _labelled(self, dataset):
        if not self.has_soft_labels:
            return dataset
        classes = len(self.description.classes)

        def soft(images, labels):
            return images, tf.one_hot(labels, classes) if labels.shape.rank == 1 else labels

        return dataset.map(soft)

    def evaluation_split(self) -> str:
        """Returns the name of the split to evaluate on."""
        return data.evaluation_split(self.source)

    def calibration_images(self) -> np.ndarray:
        """Returns a stratified sample of 200 training images, for the calibration of int8 quantization.

        The result is a uint8 array [200, height, width, channels], or fewer images if the split is smaller.
        """
        images, _ = next(iter(self.load_data("train", CALIBRATION_IMAGES, sample=CALIBRATION_IMAGES)))
        return images.numpy()

    def build(self) -> keras.Model:
        """Returns the untrained network for the dataset's images and classes."""
        shape, classes = self.description.preprocessing.shape, len(self.description.classes)
        options = {"input_shape": shape, "classes": classes, "activation": self.activation}
        return models.build(self.model, self.form, self.normalization or normalization.PUBLISHED, **options)

    def network(self, model: keras.Model) -> dict[str, Any]:
        """Returns what says which network it is, for reports and cards; see `models.describe`."""
        return models.describe(model, self.model, self.form, self.activation)


def fields() -> list[dataclasses.Field]:
    """Returns the dataclass fields of `Run` that are flags."""
    return [field for field in dataclasses.fields(Run) if "help" in field.metadata]


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """A context that sets Keras' dtype policy for new layers, and then restores the previous policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


_CHOICES: dict[str, tuple] = {
    "crop": CROPS,
    "norm": tuple(BALLS),
    "objective": tuple(OBJECTIVES),
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "attack_precision": PRECISIONS,
    "strategy": distribution.NAMES,
}

_Range = tuple[Callable[[float], bool], str]
_POSITIVE: _Range = (lambda value: value > 0, "positive")
_AT_LEAST_0: _Range = (lambda value: value >= 0, "at least 0")
_AT_LEAST_1: _Range = (lambda value: value >= 1, "at least 1")
_BELOW_1: _Range = (lambda value: 0 <= value < 1, "at least 0, and less than 1")
_UP_TO_1: _Range = (lambda value: 0 <= value <= 1, "in 0..1")
_RANGES: dict[str, _Range] = {
    "channels": (lambda value: value in (1, 3), "1 or 3"),
    "image_size": _AT_LEAST_1,
    "rand_augment": _UP_TO_1,
    "mixup": _POSITIVE,
    "cutmix": _UP_TO_1,
    "steps": _AT_LEAST_1,
    "replays": _AT_LEAST_0,
    "awp": _AT_LEAST_0,
    "epochs": _AT_LEAST_1,
    "batch_size": _AT_LEAST_1,
    "learning_rate": _POSITIVE,
    "warmup_epochs": _AT_LEAST_0,
    "warmup_from": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "label_smoothing": _BELOW_1,
    "clip_norm": _POSITIVE,
    "ema": _BELOW_1,
    "checkpoint_every": _AT_LEAST_1,
}
_OPTIONAL = {field.name for field in fields() if field.default is None}


def _check_choices(run):
    for name, choices in _CHOICES.items():
        value = getattr(run, name)
        if value not in choices and not (value is None and name in _OPTIONAL):
            raise _error(name, value, f"one of {', '.join(choices)}")


def _check_ranges(run):
    for name, (is_valid, expected) in _RANGES.items():
        value = getattr(run, name)
        if not (value is None and name in _OPTIONAL) and not is_valid(value):
            raise _error(name, value, f"{expected}, or left out" if name in _OPTIONAL else expected)


def _check_decay_epochs(run):
    are_numbers = all(epoch.strip().isdigit() for epoch in run.decay_epochs.split(","))
    if not are_numbers and (run.schedule == "steps" or run.decay_epochs):
        raise _error("decay_epochs", run.decay_epochs, "whole numbers, such as 30,60,90")


def _error(name, value, expected):
    return ValueError(f"{name} must be {expected}. Received: {value!r}")
