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
from keras_sat.models.classifier import FREEZE, PRECISIONS
from keras_sat.preprocessing import CROPS
from keras_sat.run import pretrained, ranges
from keras_sat.training import (
    AWP,
    MART,
    TRADES,
    AdversarialTraining,
    Free,
    GradAlign,
    Objective,
    distribution,
    weight_decay,
)

BALLS: dict[str, Callable[..., Ball]] = {"linf": attacks.LinfBall, "l2": attacks.L2Ball, "l1": attacks.L1Ball}
GAUSSIAN = "gaussian"  # the objective of `certify`: the loss on images with Gaussian noise, without an attack
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "adversarial": AdversarialTraining,
    "trades": TRADES,
    "mart": MART,
    GAUSSIAN: AdversarialTraining,
}
OPTIMIZERS = ("adamw", "sgd", "torch_sgd")
SCHEDULES = ("cosine", "steps", "triangle", "onecycle", "onecycle_by_epoch")
GUARDS = ("none", "stop", "roll_back")
WITHOUT_WEIGHTS = "none"
NORMALIZATION_HELP = (
    f"published (that of the form), none (pixels / 255), {', '.join(normalization.NAMED)}, or mean and std of images "
    "in 0..1 in JSON: [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]"
)
PROBED_IMAGES, LEAST_PROBED_IMAGES = 200, 50
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

    weights: str | None = _flag(
        None,
        "weights to begin with: a tag of `keras-sat list`, the folder of a run or of an export, or a file; "
        f"{WITHOUT_WEIGHTS} or left out: random weights",
    )
    freeze: str | None = _flag(None, "what the training leaves as it is: backbone (all but the head) or batch_norm")
    head_epochs: int = _flag(
        0, "first epochs in which only the head is trained, at the constant learning_rate; schedules begin after them"
    )
    model: str = _flag("", "network: see `keras-sat list`; default: that of the weights, or ResNet8")
    form: str | None = _flag(
        None,
        "published variant of the network, such as dm of WideResNet28_10; of ConvNeXt, its stem; default: that of the "
        "weights, or the first one that `keras-sat list` shows",
    )
    normalization: str | list | None = _flag(None, f"of pixels: {NORMALIZATION_HELP}; default: published")
    activation: str | dict = _flag(
        "",
        'a name, or a dict in JSON: \'{"name": "gelu", "approximate": false}\'; default: that of the weights, or silu',
    )
    dataset: str = _flag("fashion_mnist_mini", "embedded, a prepared TFDS dataset, or a folder SPLIT/CLASS/*.jpg")
    data_dir: str | None = _flag(None, "folder of prepared TFDS datasets; default: the folder that TFDS uses")
    train_split: str = _flag("train", "split to train on, such as train[:90%]")
    validation: float = _flag(
        0.05,
        "images held out of the training split for validation: a share below 1, or a number of images; 0 for none",
    )
    validation_split: str | None = _flag(
        None, "split for validation, in place of images held out, such as validation[:5000]"
    )
    extra_data: str | None = _flag(
        None, "extra training images, such as generated ones: an .npz file of image and label, or a dataset"
    )
    extra_share: float = _flag(0.0, "share of extra images in each batch, such as 0.7")
    extra_label_smoothing: float = _flag(0.0, "label smoothing of the extra images alone")
    image_size: int | None = _flag(None, "height and width to resize the images to; default: their own size")
    crop: str | None = _flag(
        None,
        f"part of an image to use: {', '.join(CROPS)}; default: all of it, padded where images differ in size",
    )
    channels: int | None = _flag(
        None, "1 (grey) or 3 (RGB); default: 1 where all images are grey; 3 if weights need it"
    )
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
    start_std: float | None = _flag(
        None, "the training attack starts with Gaussian noise of this standard deviation, in pixels; default: uniform"
    )
    attack_batch_norm: str | None = _flag(
        None, "batch norms during the training attack: frozen (default), or batch: the statistics of the batch"
    )
    replays: int = _flag(0, "times that free adversarial training uses each batch; 0: train with PGD")
    objective: str = _flag(
        "adversarial", f"{', '.join(OBJECTIVES)}; {GAUSSIAN}: noise of --sigma in place of an attack, for certify"
    )
    sigma: float | None = _flag(None, f"{GAUSSIAN}: standard deviation of the noise, in pixels 0..255, such as 63.75")
    beta: float | None = _flag(None, "weight of the divergence; default: 6 for trades, 5 for mart")
    clean_statistics: bool = _flag(True, "trades: whether clean images, too, move the statistics of batch norms")
    clean_passes: int = _flag(
        1, "trades: 2 passes the clean images through the network again, after the adversarial ones, as the authors do"
    )
    grad_align: float = _flag(0.0, "weight of GradAlign, against catastrophic overfitting, such as 0.2; 0 for none")
    awp: float = _flag(0.0, "adversarial weight perturbation, relative to the kernels, such as 0.005; 0 for none")
    epochs: int = _flag(8, "passes over the training split")
    batch_size: int = _flag(100, "images in a batch, over all devices")
    optimizer: str = _flag("adamw", "adamw; sgd (Keras', momentum 0.9); torch_sgd (by PyTorch's rule, momentum 0.9)")
    nesterov: bool = _flag(True, "sgd and torch_sgd: Nesterov's momentum")
    cycle_momentum: str | None = _flag(
        None,
        "torch_sgd with triangle or onecycle: two numbers, such as 0.85,0.95: the momentum where the learning rate is "
        "largest, and that at the beginning and end; default: 0.9 throughout",
    )
    beta_2: float = _flag(0.999, "adamw: decay of the second moment")
    learning_rate: float = _flag(0.008, "largest learning rate of the schedule")
    final_learning_rate: float = _flag(0.0, "learning rate at the end of the cosine")
    schedule: str = _flag(
        "cosine",
        "of the learning rate: cosine; steps: a tenth after each of decay_epochs; triangle; onecycle; "
        "onecycle_by_epoch, which changes once an epoch",
    )
    decay_epochs: str = _flag("", "epochs at which the schedule `steps` decays, such as 30,60,90")
    warmup_epochs: float | None = _flag(
        None, "epochs in which the learning rate rises; default: a fifth of the training"
    )
    warmup_from: float = _flag(0.0, "learning rate at step 0, of cosine and steps")
    weight_decay: float = _flag(0.001, "AdamW's, or for sgd an L2 penalty")
    weight_decay_on: str = _flag(
        "kernels", "kernels (of convolution and dense layers), all, all_but_batch_norm, or all_but_biases"
    )
    label_smoothing: float = _flag(0.0, "of the loss; the attack uses the labels without smoothing")
    clip_norm: float | None = _flag(None, "largest norm of the whole gradient; larger ones are clipped; default: none")
    ema: float = _flag(0.0, "momentum of averaged weights, which are evaluated and saved; 0 for none")
    ema_warmup: float | None = _flag(
        None, "epochs before weights are averaged; from then on the momentum rises to ema; default: constant momentum"
    )
    keep: str = _flag(
        "best", "weights to keep as model.weights.h5: best (largest robust validation accuracy) or last; both are saved"
    )
    patience: int | None = _flag(None, "epochs without a larger robust validation accuracy that end the training")
    guard: str | None = _flag(
        None,
        "what to do about catastrophic overfitting: stop, roll_back (and a smaller step size), or none; default: stop "
        f"for attacks of one step, with {LEAST_PROBED_IMAGES} images for validation or more",
    )
    probe: str = _flag(
        "pgd-10",
        "attack by which the guard measures robustness: four times an epoch at epsilon, and at the end of each at 1.25 "
        "and 1.5 epsilon",
    )
    precision: str = _flag("float32", ", ".join(PRECISIONS))
    attack_precision: str | None = _flag(
        None, f"of the training attack alone: {', '.join(PRECISIONS)}; default: precision"
    )
    strategy: str = _flag("auto", "auto, none, mirrored (every GPU of this machine), multiworker (TF_CONFIG), tpu")
    checkpoint_every: int = _flag(500, "steps between checkpoints; a killed run continues from the last one")
    seed: int = _flag(0, "the same seed gives the same run")
    record: data.Description | None = None

    def __post_init__(self) -> None:
        ranges.check_types(self, fields())
        for name in ("dataset", "data_dir", "extra_data", "weights"):  # the run may be read from another working folder
            self._set(name, _absolute(name, getattr(self, name)))
        if self.weights == WITHOUT_WEIGHTS:
            self._set("weights", None)
        if isinstance(self.normalization, (list, tuple)):  # as JSON gives it back, so that settings can be compared
            self._set("normalization", json.loads(json.dumps(self.normalization)))
        if self.weights and self.record is None:  # checks what is given, and takes over what is not
            found = self.start
            for name in ("model", "form", "activation", "normalization"):
                self._set(name, getattr(found, name))
        self._set("model", self.model or pretrained.MODEL)
        self._set("activation", self.activation or pretrained.ACTIVATION)
        models.check_variant(self.model, self.form, self.normalization, self.channels)
        ranges.check(self, _CHOICES, _RANGES, _OPTIONAL)
        _check_decay_epochs(self)
        _check_cycle_momentum(self)
        _check_combinations(self)
        self.attack()  # checks epsilon, step_size, start_std, clean_start and sigma
        _check_probe(self)
        activations.layer(self.activation)

    def _set(self, name, value):
        object.__setattr__(self, name, value)  # the class is frozen

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
                f"{self.dataset}, which the network was trained on, does not exist: say where the images are now, "
                "--dataset=FOLDER."
            )
        classes = self.record.classes if self.record else None
        return data.source(self.dataset, self.data_dir, classes=classes, skip_damaged=self.skip_damaged)

    @functools.cached_property
    def description(self) -> data.Description:
        """The description of the training data: `record` if it is set, otherwise made from the dataset as it is now."""
        if self.record:
            return self.record
        channels = self.channels
        if self.weights and channels is None:
            channels = self.start.channels_for(self.source.size_and_channels[1])
        return data.describe(self.source, self.image_size, crop=self.crop, channels=channels)

    @functools.cached_property
    def start(self) -> pretrained.Pretrained:
        """What is known of the weights that the training begins with. It is looked up once: a file may be large.

        Raises:
            ValueError: if there are no such weights, or they are of another network than this run's.
        """
        given = {name: getattr(self, name) or None for name in ("model", "form", "activation", "normalization")}
        return pretrained.find(self.weights or "", **given)

    @functools.cached_property
    def extra(self) -> data.Extra | None:
        """The opened extra images; None if the run has none."""
        if not self.extra_data:
            return None
        described = self.description
        return data.extra(
            self.extra_data, self.data_dir, classes=described.classes, preprocessing=described.preprocessing
        )

    def ball(self, epsilon: float | None = None) -> Ball:
        """Returns the threat model.

        Args:
            epsilon: radius in pixels 0..255. Default: the epsilon of this run.
        """
        return BALLS[self.norm](self.epsilon if epsilon is None else epsilon)

    def attack(self) -> attacks.PGD | attacks.GaussianNoise:
        """Returns the attack of training. With `replays`, it gives ball and step size to free adversarial training."""
        if self.sigma is not None:
            return attacks.GaussianNoise(self.sigma)  # type: ignore[call-arg, arg-type]  # it has no ball
        if self.replays:
            step_size = (self.epsilon or None) if self.step_size is None else self.step_size
            return attacks.PGD(self.ball(), steps=1, step_size=step_size)
        return attacks.PGD(
            self.ball(),
            steps=self.steps,
            step_size=self.step_size,
            clean_start=self.clean_start,
            start_std=self.start_std,
        )

    def validation_attack(self) -> attacks.Attack:
        """Returns the attack of the validation: PGD-10, or the noise of a run that trains on noise."""
        return attacks.PGD(self.ball(), steps=10) if self.sigma is None else self.attack()

    def training_objective(self) -> Objective:
        """Returns the objective of training: `Free` with `replays`, otherwise the one with the name `objective`.

        On images that MixUp or CutMix mixed, TRADES attacks the mixed labels, as in Rebuffi et al. (arXiv:2103.01946).
        """
        if self.replays:
            return Free(self.replays)
        options: dict[str, Any] = {} if self.beta is None else {"beta": self.beta}
        if self.objective == "trades":
            options |= {"attack_labels": self._mixes, "clean_statistics": self.clean_statistics}
            options |= {"clean_passes": self.clean_passes}
        return OBJECTIVES[self.objective](**options)

    def weight_perturbation(self) -> AWP | None:
        """Returns the adversarial weight perturbation of training; None for none."""
        return AWP(self.awp) if self.awp else None

    def gradient_alignment(self) -> GradAlign | None:
        """Returns the GradAlign regularizer of training; None for none."""
        return GradAlign(self.grad_align) if self.grad_align else None

    def guard_action(self) -> str:
        """Returns what is done about catastrophic overfitting: "stop", "roll_back" or "none".

        Raises:
            ValueError: if `guard` asks for an action, and there are too few images for validation to tell.
        """
        enough = self.validates and self.number_for_validation() >= LEAST_PROBED_IMAGES
        if self.guard in ("stop", "roll_back") and not enough:
            raise ranges.error("guard", self.guard, f"none with fewer than {LEAST_PROBED_IMAGES} images for validation")
        return self.guard or ("stop" if self.has_one_step and enough else "none")

    @property
    def has_one_step(self) -> bool:
        """Whether the training attack has one step, as free adversarial training has too."""
        return self.sigma is None and bool(self.replays or self.steps == 1)

    @property
    def chooses(self) -> bool:
        """Whether the images for validation decide which weights are kept, or when the training ends."""
        has_guard = self.guard in ("stop", "roll_back") or (self.guard is None and self.has_one_step)
        return self.validates and (self.keep == "best" or self.patience is not None or has_guard)

    def number_for_validation(self) -> int:
        """Returns the number of images for validation."""
        if self.validation_split:
            return self.source.number_of_images(self.validation_split)
        return data.number_held_out(self.source, self.train_split, self.validation) if self.validation else 0

    @property
    def _mixes(self):
        return self.mixup is not None or self.cutmix is not None

    @property
    def validates(self) -> bool:
        """Whether the run has images for validation."""
        return bool(self.validation or self.validation_split)

    @property
    def hold_out(self) -> float:
        """The share, or the number, of images that are held out of the training split; 0 for none."""
        return 0 if self.validation_split else self.validation

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
            self.train_split,
            training=True,
            epochs=self.epochs,
            first_step=first_step,
            input_context=input_context,
            hold_out=self.hold_out,
            rand_augment=self.rand_augment,
            mixup=self.mixup,
            cutmix=self.cutmix,
            extra=self.extra,
            extra_share=self.extra_share,
            extra_label_smoothing=self.extra_label_smoothing,
        )
        return self._labelled(dataset)

    def steps_per_epoch(self) -> int:
        """Returns the number of training steps in an epoch.

        Raises:
            ValueError: if images for validation are among those of `train_split`, or among the extra images.
        """
        held_out = self.validation_split or (self.train_split if self.validation else None)
        if self.extra and held_out and self.extra.shared(self.source, held_out):
            expected = f"apart from the images for validation, of {held_out}; validation_split can name others"
            raise ranges.error("extra_data", self.extra_data, expected)
        if self.validation_split:
            common = data.overlap(self.source, self.train_split, self.validation_split)
            if common:
                expected = f"apart from train_split, {self.train_split}: {common} images are in both"
                raise ranges.error("validation_split", self.validation_split, expected)
        return int(self.load_data(self.train_split, training=True, hold_out=self.hold_out).cardinality())

    def validation_data(self, sample: int | None = None) -> tf.data.Dataset | None:
        """Returns the images for validation in batches: held out of training, or of `validation_split`.

        Args:
            sample: number of images, a stratified sample. Default: all.

        Returns:
            A tf.data.Dataset; None if the run has no validation.
        """
        if not self.validates:
            return None
        if self.validation_split:
            dataset = self.load_data(self.validation_split, sample=sample)
        else:
            dataset = self.load_data(self.train_split, hold_out=self.validation, held_out=True, sample=sample)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return self._labelled(dataset).with_options(options)

    def probed_data(self) -> tf.data.Dataset:
        """Returns a sample of up to 200 images of the validation, for the guard against catastrophic overfitting."""
        return self.validation_data(sample=PROBED_IMAGES)

    @property
    def has_soft_labels(self) -> bool:
        """Whether the labels are class probabilities [batch, classes] in place of class numbers [batch]."""
        return bool(self.label_smoothing or self.extra_label_smoothing or self._mixes)

    def _labelled(self, dataset):
        if not self.has_soft_labels:
            return dataset
        classes = len(self.description.classes)

        def soft(images, labels):
            return images, tf.one_hot(labels, classes) if labels.shape.rank == 1 else labels

        return dataset.map(soft)

    def evaluation_split(self) -> str:
        """Returns the name of the split to evaluate on. See `data.evaluation_split`."""
        return data.evaluation_split(self.source)

    def calibration_images(self) -> np.ndarray:
        """Returns a stratified sample of 200 training images, for the calibration of int8 quantization.

        The result is a uint8 array [200, height, width, channels], or fewer images if the split is smaller.
        """
        images, _ = next(iter(self.load_data(self.train_split, CALIBRATION_IMAGES, sample=CALIBRATION_IMAGES)))
        return images.numpy()

    def build(self) -> keras.Model:
        """Returns the untrained network for the dataset's images and classes."""
        shape, classes = self.description.preprocessing.shape, len(self.description.classes)
        options = {"input_shape": shape, "classes": classes, "activation": self.activation}
        return models.build(self.model, self.form, self.normalization or normalization.PUBLISHED, **options)

    def build_to_train(self) -> tuple[keras.Model, list[str]]:
        """Returns the network at the beginning of the training, and lines that say what was done with `weights`.

        Raises:
            ValueError: if the weights are not there, or do not fit the network or the images.
        """
        if not self.weights:
            return self.build(), []
        described = self.description
        return self.start.build(described.preprocessing.shape, described.classes, self.source.size_and_channels[1])

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


def _absolute(name, value):
    """Returns the absolute path for a value of `Run` that is a path; a name of a dataset or a tag unchanged."""
    if not value or "://" in value:
        return value
    path = os.path.abspath(os.path.expanduser(value))
    if name == "weights":
        return value if models.weights.is_tag(value) or not os.path.exists(path) else path
    if name == "dataset":
        return path if data.is_folder(value) else value
    if name == "extra_data":
        return path if value.endswith(".npz") or data.is_folder(value) else value
    return path


_CHOICES: dict[str, tuple] = {
    "freeze": FREEZE,
    "crop": CROPS,
    "norm": tuple(BALLS),
    "attack_batch_norm": ("frozen", "batch"),
    "objective": tuple(OBJECTIVES),
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "weight_decay_on": weight_decay.KINDS,
    "keep": ("best", "last"),
    "guard": GUARDS,
    "precision": PRECISIONS,
    "attack_precision": PRECISIONS,
    "strategy": distribution.NAMES,
}
_RANGES: dict[str, ranges.Range] = {
    "channels": (lambda value: value in (1, 3), "1 or 3"),
    "image_size": ranges.AT_LEAST_1,
    "head_epochs": ranges.AT_LEAST_0,
    "validation": (
        lambda value: 0 <= value < 1 or (value >= 1 and float(value).is_integer()),
        "a share of the split, at least 0 and below 1, or a whole number of images",
    ),
    "extra_share": ranges.BELOW_1,
    "extra_label_smoothing": ranges.BELOW_1,
    "rand_augment": ranges.UP_TO_1,
    "mixup": ranges.POSITIVE,
    "cutmix": ranges.UP_TO_1,
    "steps": ranges.AT_LEAST_1,
    "replays": ranges.AT_LEAST_0,
    "beta": ranges.POSITIVE,
    "clean_passes": (lambda value: value in (1, 2), "1 or 2"),
    "sigma": ranges.POSITIVE,
    "grad_align": ranges.AT_LEAST_0,
    "awp": ranges.AT_LEAST_0,
    "epochs": ranges.AT_LEAST_1,
    "batch_size": ranges.AT_LEAST_1,
    "beta_2": ranges.BELOW_1,
    "learning_rate": ranges.POSITIVE,
    "final_learning_rate": ranges.AT_LEAST_0,
    "warmup_epochs": ranges.AT_LEAST_0,
    "warmup_from": ranges.AT_LEAST_0,
    "weight_decay": ranges.AT_LEAST_0,
    "label_smoothing": ranges.BELOW_1,
    "clip_norm": ranges.POSITIVE,
    "ema": ranges.BELOW_1,
    "ema_warmup": ranges.AT_LEAST_0,
    "patience": ranges.AT_LEAST_1,
    "checkpoint_every": ranges.AT_LEAST_1,
    "seed": (lambda value: 0 <= value < 2**31, "in 0..2147483647"),
}
_OPTIONAL = {field.name for field in fields() if field.default is None}


# What says something of an attack, and its default.
_OF_AN_ATTACK = {
    "step_size": None,
    "clean_start": 0.0,
    "start_std": None,
    "attack_batch_norm": None,
    "attack_precision": None,
    "grad_align": 0.0,
    "guard": "none",
}


def _check_probe(run):
    try:
        attacks.from_name(run.probe, run.ball())
    except ValueError as error:
        raise ValueError(f"probe: {error}") from error


def _check_decay_epochs(run):
    are_numbers = all(epoch.strip().isdecimal() for epoch in run.decay_epochs.split(","))
    if not are_numbers and (run.schedule == "steps" or run.decay_epochs):
        raise ranges.error("decay_epochs", run.decay_epochs, "whole numbers, such as 30,60,90")


def _check_cycle_momentum(run):
    if run.cycle_momentum is None:
        return
    parts = run.cycle_momentum.split(",")
    if not (len(parts) == 2 and all(map(_is_number, parts)) and 0 < float(parts[0]) <= float(parts[1]) < 1):
        raise ranges.error("cycle_momentum", run.cycle_momentum, "two numbers in 0..1, the smaller first: 0.85,0.95")
    if run.optimizer != "torch_sgd" or run.schedule in ("cosine", "steps"):
        expected = "none, or with optimizer=torch_sgd and the schedule triangle, onecycle or onecycle_by_epoch"
        raise ranges.error("cycle_momentum", run.cycle_momentum, expected)


def _is_number(text):
    try:
        return float(text) is not None
    except ValueError:
        return False


def _check_combinations(run):
    """Raises ValueError for options of which one makes no sense beside another."""
    mixed, noisy, validates = run.objective != "adversarial", run.objective == GAUSSIAN, run.validates
    rules = {
        "objective": (run.replays and mixed, "adversarial with replays"),
        "attack_precision": (run.replays and run.attack_precision, "left out with replays"),
        "start_std": (run.replays and run.start_std is not None, "left out with replays"),
        "clean_statistics": (not run.clean_statistics and run.objective != "trades", "True unless objective is trades"),
        "clean_passes": (
            run.clean_passes == 2 and not (run.objective == "trades" and run.clean_statistics),
            "1 unless objective is trades, with clean_statistics",
        ),
        "extra_label_smoothing": (run.extra_label_smoothing and not run.extra_data, "0 without extra_data"),
        "grad_align": (run.replays and run.grad_align, "0 with replays"),
        "beta": (run.beta is not None and (noisy or not mixed), "left out unless the objective is trades or mart"),
        "head_epochs": (
            run.head_epochs and not (run.weights and run.head_epochs < run.epochs and run.freeze != "backbone"),
            "0, or with --weights fewer than epochs; not with freeze=backbone, which trains the head alone anyway",
        ),
        "freeze": (run.freeze and not run.weights and not run.record, "left out without weights"),
        "extra_share": (
            bool(run.extra_share) != bool(run.extra_data),
            "above 0 with extra_data, such as 0.7, and 0 without",
        ),
        "patience": (run.patience and not validates, "left out without validation images (validation=0)"),
        "sigma": (noisy != (run.sigma is not None), f"given with objective={GAUSSIAN}, and left out without"),
        "guard": (run.guard in GUARDS[1:] and not validates, "none without validation images (validation=0)"),
        "ema_warmup": (run.ema_warmup is not None and not run.ema, "left out without ema"),
    }
    for name, (is_wrong, expected) in rules.items():
        if is_wrong:
            raise ranges.error(name, getattr(run, name), expected)
    for name, default in _OF_AN_ATTACK.items() if noisy else ():
        if getattr(run, name) not in (default, None):
            raise ranges.error(name, getattr(run, name), f"left out with objective={GAUSSIAN}, which has no attack")
