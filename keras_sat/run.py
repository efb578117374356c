"""A training run and its folder: `run.json` (configuration, data, curves), `model.weights.h5`, `logs/` (TensorBoard).

`checkpoints/` is what a run goes on from: one that was killed or interrupted, or a finished one for more epochs.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import sys
import warnings

import keras
import tensorflow as tf

from keras_sat import activations, attacks, data, files, models, provenance
from keras_sat import export as export_lib
from keras_sat.evaluation import report
from keras_sat.models.classifier import PRECISIONS
from keras_sat.preprocessing import CROPS
from keras_sat.training import (
    AWP,
    MART,
    TRADES,
    AdversarialModel,
    AdversarialTraining,
    AveragedWeights,
    Checkpoint,
    Free,
    distribution,
    schedules,
)

BALLS = {"linf": attacks.LinfBall, "l2": attacks.L2Ball}
OBJECTIVES = {"adversarial": AdversarialTraining, "trades": TRADES, "mart": MART}
VALIDATION_IMAGES = 500
CALIBRATION_IMAGES = 200
NO_WEIGHT_DECAY = ("gamma", "beta", "bias")


def _flag(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Run:
    """Configuration of a run; the defaults are the quickstart's. `keras-sat train --help` explains the fields.

    Raises:
        ValueError: for a value out of its range, with what was expected.
    """

    model: str = _flag("ResNet8", "network: see `keras-sat list`")
    activation: str | dict = _flag("silu", 'a name, or a dict in JSON: \'{"name": "gelu", "approximate": false}\'')
    dataset: str = _flag("fashion_mnist_mini", "embedded, a prepared TFDS dataset, or a folder SPLIT/CLASS/*.jpg")
    data_dir: str | None = _flag(None, "folder of prepared TFDS datasets; default: TFDS' own")
    image_size: int | None = _flag(None, "resize the images to this height and width; default: as they are")
    crop: str | None = _flag(
        None, f"{', '.join(CROPS)}: what of an image is taken; default: all of it, padded where images differ in size"
    )
    channels: int | None = _flag(None, "1 (grey) or 3 (RGB); default: 1 where all images are grey")
    skip_damaged: bool = _flag(False, "reads all files of a folder first, and leaves out those that cannot be read")
    augment: bool = _flag(False, "crop and flip images at random: for long trainings; costs accuracy in short ones")
    rand_augment: float | None = _flag(None, "factor 0..1 of RandAugment; default: none")
    mixup: float | None = _flag(None, "alpha of MixUp; default: none")
    cutmix: float | None = _flag(None, "factor of CutMix; default: none")
    norm: str = _flag("linf", "of the attack: linf or l2")
    epsilon: float = _flag(25.5, "radius of the attack, in pixels 0..255")
    steps: int = _flag(2, "gradient steps of the training attack")
    step_size: float | None = _flag(None, "of the training attack, in pixels; default: max(1, epsilon / steps)")
    clean_start: float = _flag(0.0, "probability with which a batch is attacked from the images themselves")
    replays: int = _flag(0, "of each batch, in free adversarial training; 0: PGD")
    objective: str = _flag("adversarial", ", ".join(OBJECTIVES))
    awp: float = _flag(0.0, "adversarial weight perturbation, relative to the kernels: 0.005, say; 0 for none")
    epochs: int = _flag(8, "passes over the training split")
    batch_size: int = _flag(100, "images in a batch, over all devices")
    optimizer: str = _flag("adamw", "adamw, or sgd (Nesterov, momentum 0.9)")
    learning_rate: float = _flag(0.008, "at its peak")
    schedule: str = _flag("cosine", "of the learning rate: cosine, or steps: a tenth after each of decay_epochs")
    decay_epochs: str = _flag("", "such as 30,60,90")
    warmup_epochs: float | None = _flag(None, "the learning rate rises for so long; default: a fifth of the training")
    warmup_from: float = _flag(0.0, "learning rate at step 0")
    weight_decay: float = _flag(0.001, "on convolution and dense kernels only: AdamW's, or for sgd an L2 penalty")
    label_smoothing: float = _flag(0.0, "of the loss; the attack does not see it")
    clip_norm: float | None = _flag(None, "norm to which the whole gradient is clipped; default: none")
    ema: float = _flag(0.0, "momentum of averaged weights, which are evaluated and saved; 0 for none")
    precision: str = _flag("float32", ", ".join(PRECISIONS))
    attack_precision: str | None = _flag(
        None, f"of the training attack alone: {', '.join(PRECISIONS)}; default: precision"
    )
    strategy: str = _flag("auto", "auto, none, mirrored (every GPU of this machine), multiworker (TF_CONFIG), tpu")
    checkpoint_every: int = _flag(500, "steps after which a checkpoint is saved, from which a killed run goes on")
    seed: int = _flag(0, "the same seed gives the same run")
    record: data.Description | None = None  # of a trained network: what it was trained on

    def __post_init__(self):
        for name in ("dataset", "data_dir"):  # the run can be read from any other folder
            value = getattr(self, name)
            if value and "://" not in value and (name == "data_dir" or data.is_folder(value)):
                object.__setattr__(self, name, os.path.abspath(os.path.expanduser(value)))
        _expect("crop", self.crop, self.crop in (None, *CROPS), f"one of {', '.join(CROPS)}")
        _expect("channels", self.channels, self.channels in (None, 1, 3), "1 or 3")
        _expect("model", self.model, self.model in models.BUILDERS, f"one of {', '.join(models.BUILDERS)}")
        _expect("norm", self.norm, self.norm in BALLS, f"one of {', '.join(BALLS)}")
        _expect("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        is_known = self.attack_precision in (None, *PRECISIONS)
        _expect("attack_precision", self.attack_precision, is_known, f"one of {', '.join(PRECISIONS)}")
        _expect("objective", self.objective, self.objective in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}")
        _expect("awp", self.awp, self.awp >= 0, "at least 0")
        _expect("optimizer", self.optimizer, self.optimizer in ("adamw", "sgd"), "adamw or sgd")
        _expect("schedule", self.schedule, self.schedule in ("cosine", "steps"), "cosine or steps")
        _expect("ema", self.ema, 0 <= self.ema < 1, "at least 0, and less than 1")
        _expect("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "at least 0, and less than 1")
        _expect(
            "strategy", self.strategy, self.strategy in distribution.NAMES, f"one of {', '.join(distribution.NAMES)}"
        )
        for name in ("epochs", "batch_size", "steps", "checkpoint_every"):
            _expect(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _expect("image_size", self.image_size, self.image_size is None or self.image_size >= 1, "at least 1")
        _expect("learning_rate", self.learning_rate, self.learning_rate > 0, "positive")
        for name in ("weight_decay", "replays", "warmup_from"):
            _expect(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name, largest in (("rand_augment", 1), ("cutmix", 1), ("warmup_epochs", float("inf"))):
            value = getattr(self, name)
            _expect(name, value, value is None or 0 <= value <= largest, f"in 0..{largest}, or left out")
        for name in ("mixup", "clip_norm"):
            _expect(name, getattr(self, name), getattr(self, name) is None or getattr(self, name) > 0, "positive")
        are_numbers = all(epoch.strip().isdigit() for epoch in self.decay_epochs.split(","))
        is_given = are_numbers if self.schedule == "steps" else are_numbers or not self.decay_epochs
        _expect("decay_epochs", self.decay_epochs, is_given, "whole numbers, such as 30,60,90")
        self.attack()  # refuses an epsilon, a step size or a clean_start out of its range
        activations.layer(self.activation)

    def settings(self):
        """Returns the configuration as plain values, by the names of the flags."""
        return {field.name: getattr(self, field.name) for field in fields()}

    @functools.cached_property
    def source(self):
        """The dataset, opened; its classes are matched by name with those of a trained network."""
        if self.record and os.path.isabs(self.dataset) and not os.path.isdir(self.dataset):
            raise ValueError(
                f"{self.dataset}, which the network was trained on, is not there: say where the images are now, "
                "--dataset=FOLDER."
            )
        classes = self.record.classes if self.record else None
        return data.source(self.dataset, self.data_dir, classes=classes, skip_damaged=self.skip_damaged)

    @functools.cached_property
    def description(self):
        """What the network is, or was, trained on: a `data.Description`."""
        if self.record:
            return self.record
        return data.describe(self.source, self.image_size, crop=self.crop, channels=self.channels)

    def ball(self, epsilon=None):
        """Returns the threat model, of this run's epsilon or another."""
        return BALLS[self.norm](self.epsilon if epsilon is None else epsilon)

    def attack(self):
        """Returns the attack of training."""
        if self.replays:
            return attacks.FGSM(self.ball()) if self.step_size is None else attacks.PGD(self.ball(), 1, self.step_size)
        return attacks.PGD(self.ball(), steps=self.steps, step_size=self.step_size, clean_start=self.clean_start)

    def load_data(self, split, batch_size=None, training=False, **options):
        """Returns the run's dataset as `keras_sat.data.load` does; that names the options."""
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

    def training_data(self, first_step=0, input_context=None):
        """Returns the batches of all epochs from a step on, as `trainer.fit` takes them."""
        mixing = {"rand_augment": self.rand_augment, "mixup": self.mixup, "cutmix": self.cutmix}
        options = {"training": True, "epochs": self.epochs, "first_step": first_step, "input_context": input_context}
        return self._labelled(self.load_data("train", **options, **mixing))

    def validation_data(self):
        """Returns some hundred images of the evaluation split, of all classes in proportion, in whole batches."""
        images = max(1, VALIDATION_IMAGES // self.batch_size) * self.batch_size
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        return self._labelled(self.load_data(self.evaluation_split(), sample=images)).with_options(options)

    @property
    def has_soft_labels(self):
        """Whether the loss is given the classes' probabilities, [batch, classes], not their numbers."""
        return bool(self.label_smoothing or self.mixup or self.cutmix)

    def _labelled(self, dataset):
        if not self.has_soft_labels:
            return dataset
        classes = len(self.description.classes)

        def soft(images, labels):
            return images, tf.one_hot(labels, classes) if labels.shape.rank == 1 else labels

        return dataset.map(soft)

    def evaluation_split(self):
        """Returns the name of the split to evaluate on."""
        return data.evaluation_split(self.source)

    def calibration_images(self):
        """Returns some hundred training images, of all classes in proportion, by which int8 sets its ranges."""
        images, _ = next(iter(self.load_data("train", CALIBRATION_IMAGES, sample=CALIBRATION_IMAGES)))
        return images.numpy()

    def build(self):
        """Returns the untrained network for the dataset's images and classes."""
        shape, classes = self.description.preprocessing.shape, len(self.description.classes)
        return models.BUILDERS[self.model](input_shape=shape, classes=classes, activation=self.activation)


def fields():
    """Returns the dataclass fields of `Run` that are flags."""
    return [field for field in dataclasses.fields(Run) if "help" in field.metadata]


def _expect(name, value, is_valid, expected):
    if not is_valid:
        raise ValueError(f"{name} must be {expected}. Received: {value!r}")


def train(run, folder, go_on=False, say=lambda line: None):
    """Trains a network adversarially, and writes the run's folder.

    Killed, it goes on from its last checkpoint when it is called again, and ends with the same weights. Ctrl-C ends the
    training early: what was trained until then is written, and the same call goes on from there. Of several workers
    each calls this, and the chief writes.

    Args:
        run: a `Run`.
        folder: to write; must hold no run yet, or the same, unfinished.
        go_on: takes a run of the same settings, but fewer epochs, further; it may be finished. The schedule of the
            learning rate is then that of all epochs, so that it may rise again. run.json says it ("continued").
        say: a function that is given lines to print: what is trained on, and whether a run goes on.

    Returns:
        The trained keras.Model, and whether the training ran to its end.

    Raises:
        ValueError: if the folder holds a finished run, another one, one on other data, or one that is being written, or
            for a dataset that cannot be had. Nothing is written then.
        FloatingPointError, OSError: as `training.Checkpoint`.
        ConnectionError: if another worker is gone.
        KeyboardInterrupt: for Ctrl-C before the first step. Nothing is written then.
    """
    folder = files.expanded(folder)
    strategy = distribution.strategy(run.strategy)  # before anything is computed, for several workers
    is_chief = distribution.is_chief(strategy)
    before = _check_goes_on(run, folder, go_on) if is_chief or os.path.isdir(folder) else []  # others need no folder
    if is_chief:
        say(run.description.line())
    if is_chief and _has_steps(folder):
        say(f"Going on with the run in {folder}.")
    keras.utils.set_random_seed(run.seed)
    steps = int(run.load_data("train", training=True).cardinality())
    with _policy(run.precision), strategy.scope():
        trainer = _trainer(run, steps)
    checkpoint = Checkpoint(checkpoints(folder), steps, run.checkpoint_every, is_chief=is_chief)
    with _nothing_without_a_step(folder) if is_chief else contextlib.nullcontext(), checkpoint:
        if is_chief:
            files.write_json(_json(checkpoint.folder), _record(run) | {"continued": before})
        with distribution.heeding_lost_workers(strategy):
            finished = _fit(run, trainer, checkpoint, steps, os.path.join(folder, "logs"))
        if is_chief:
            _write(run, trainer, checkpoint, finished, folder, before)
    return trainer.classifier, finished


def _record(run):
    return run.settings() | {"data": run.description.settings()}


@contextlib.contextmanager
def _nothing_without_a_step(folder):
    """Removes what a training wrote that failed before its first checkpoint."""
    there = set(os.listdir(folder)) if os.path.isdir(folder) else None
    try:
        yield
    except BaseException:
        if not _has_steps(folder):
            for name in {"checkpoints", "logs"} - (there or set()):
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
            if there is None and os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
        raise


def _write(run, trainer, checkpoint, finished, folder, before):
    """Writes the weights, then run.json, which says that the run is there."""
    with files.replacing(_weights(folder)) as temporary:
        trainer.classifier.save_weights(temporary)
    record = {**_record(run), "attack_batch_norm": trainer.attack_batch_norm, "finished": finished}
    record |= {"iterations": int(trainer.optimizer.iterations.numpy()), "history": _curves(checkpoint.history)}
    record |= {"continued": before} if before else {}
    files.write_json(_json(folder), record | {"versions": provenance.versions()})
    checkpoint.keep_last()


def checkpoints(folder):
    """Returns the folder of an unfinished run's checkpoints."""
    return os.path.join(folder, "checkpoints")


def _has_steps(folder):
    """Returns whether there is a checkpoint to go on from."""
    found = checkpoints(folder)
    return os.path.isdir(found) and any(name.startswith("step-") for name in os.listdir(found))


def _check_goes_on(run, folder, go_on):
    """Returns after how many epochs the run had ended before, [] for a new one.

    Raises:
        ValueError: if the folder holds a run that this one cannot go on from.
    """
    is_there = os.path.exists(_json(folder))
    if not is_there and not _has_steps(folder):
        if go_on:
            raise ValueError(f"{folder} holds no run to go on with.")
        return []
    is_finished = is_there and _read(_json(folder)).get("finished", True)
    if is_finished and not (go_on and run.epochs > _read(_json(folder))["epochs"]):
        raise ValueError(
            f"{folder} holds a finished run already: choose another output folder, or go on with it for more epochs, "
            "--continue --epochs=N, with a larger N."
        )
    if not _has_steps(folder):
        raise ValueError(f"{folder} holds a run without checkpoints to go on from: choose another output folder.")
    before = _read(_json(checkpoints(folder)))
    places = ("dataset", "data_dir")  # the data themselves are compared below
    settings = {name: value for name, value in run.settings().items() if name in before and name not in places}
    differing = [f"{name}={before[name]!r}" for name, value in settings.items() if before[name] != value]
    if go_on and run.epochs > before["epochs"]:
        differing.remove(f"epochs={before['epochs']!r}")
    if differing:
        raise ValueError(
            f"{folder} holds a run of other settings ({', '.join(differing)}): go on with these, or choose another "
            f"output folder, or remove {checkpoints(folder)}."
        )
    changed = data.Description.of(before["data"]).differences(run.description) if "data" in before else []
    if changed:
        raise ValueError(
            f"The data of the run in {folder} changed: {'; '.join(changed)}. Restore them, or choose another output "
            "folder."
        )
    has_grown = before["epochs"] != run.epochs
    return [*before.get("continued", []), *([before["epochs"]] if has_grown else [])]


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _fit(run, trainer, checkpoint, steps, logs):
    """Trains from the last checkpoint on; returns whether it came to its end."""
    done = checkpoint.restore(trainer)
    if done == steps * run.epochs:  # killed after its last step
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
        return True
    data_of = functools.partial(run.training_data, done)
    strategy, averaged = trainer.distribute_strategy, AveragedWeights()
    several = strategy.num_replicas_in_sync > 1  # then each worker reads its share of the files
    try:
        trainer.fit(
            strategy.distribute_datasets_from_function(data_of) if several else data_of(),
            validation_data=run.validation_data(),
            epochs=run.epochs,
            steps_per_epoch=steps,
            initial_epoch=done // steps,
            shuffle=False,  # the dataset shuffles
            callbacks=[
                checkpoint,
                *([averaged] if run.ema else []),
                *([keras.callbacks.TensorBoard(logs, write_graph=False)] if checkpoint.is_chief else []),
            ],
            verbose=0 if not checkpoint.is_chief else "auto" if sys.stdout.isatty() else 2,
        )
    except KeyboardInterrupt:
        if not checkpoint.done:
            raise
        averaged.on_test_end()
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
        return False
    return True


def _curves(history):
    """Returns {metric: its value after each epoch} from {epoch: {metric: value}}."""
    names = dict.fromkeys(name for logs in history.values() for name in logs)
    return {name: [logs.get(name) for _, logs in sorted(history.items())] for name in names}


def load(folder):
    """Returns the `Run` of a folder and its trained network. The dataset need not be there.

    Raises:
        ValueError: if there is no run, or its files cannot be read; the message names the file.
    """
    folder = files.expanded(folder)
    if not os.path.isdir(folder):
        raise ValueError(f"There is no folder {folder}; `keras-sat train --output={folder}` would write it.")
    try:
        with open(_json(folder), encoding="utf-8") as file:
            record = json.load(file)
        names = [field.name for field in fields()]
        described = data.Description.of(record["data"]) if "data" in record else None
        _warn_of(folder, record)
        settings = {name: record[name] for name in names if name in record}  # others are younger than the run
        run = Run(**settings, record=described)
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run: {_json(folder)} is missing.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_json(folder)} is damaged: {type(error).__name__}: {error}") from error
    with _policy(run.precision):
        model = run.build()
    models.weights.load_file(model, _weights(folder))
    return run, model


def _warn_of(folder, record):
    """Says what is to be known before a run is evaluated or exported."""
    if record.get("finished") is False:
        warnings.warn(f"The training in {folder} was interrupted at step {record.get('iterations')}.", stacklevel=3)
    if "data" not in record:
        warnings.warn(
            f"{_json(folder)} does not say its classes and preprocessing: those of the dataset as it is now are taken.",
            stacklevel=3,
        )


def changes(run: Run, split: str) -> list[str]:
    """Returns in a line each what changed in a split since the run was trained; [] for another dataset, or none."""
    if not run.record or run.dataset != run.record.dataset:
        return []
    names = {part.partition("[")[0] for part in split.split("+")} & set(run.source.splits)
    now = run.record.splits | {name: run.source.fingerprint(name) for name in names}
    return run.record.differences(dataclasses.replace(run.record, splits=now))


def export(run, model, folder, path, dtype="float32"):
    """Writes the trained network of a run as a SavedModel, with its class names and what was measured of it.

    Args:
        run, model: as `load` returns them.
        folder: of the run; the robustness card takes the figures of its report.json, if it is of these weights.
        path: to write.
        dtype: "float32" or "bfloat16", to compute in.

    Raises:
        ValueError: as `export.export_saved_model`.
    """
    folder = files.expanded(folder)
    saved = os.path.join(folder, "report.json")
    measured = report.from_json(saved) if os.path.exists(saved) else None
    if measured and measured.context.get("weights_sha256") != provenance.weights_sha256(model):
        measured = None
    with open(_json(folder), encoding="utf-8") as file:
        attack_batch_norm = json.load(file).get("attack_batch_norm")
    export_lib.export_saved_model(
        model,
        path,
        labels=run.description.classes,
        preprocessing=run.description.preprocessing,
        precision=dtype,
        report=measured,
        card={"training": _published(run) | {"attack_batch_norm": attack_batch_norm}},
    )


def _published(run):
    """Returns the configuration without the folders of this machine."""
    return run.settings() | {"dataset": os.path.basename(run.dataset), "data_dir": None}


def _json(folder):
    return os.path.join(folder, "run.json")


def _weights(folder):
    return os.path.join(folder, "model.weights.h5")


@contextlib.contextmanager
def _policy(name):
    """Builds layers under another dtype policy, then restores the one before."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _trainer(run, steps):
    """Returns a compiled AdversarialModel, built for epochs of `steps` steps."""
    model = run.build()
    trainer = AdversarialModel(
        model,
        run.attack(),
        attacks.PGD(run.ball(), steps=10),
        seed=run.seed,
        attack_precision=run.attack_precision,
        objective=Free(run.replays) if run.replays else OBJECTIVES[run.objective](),
        weight_perturbation=AWP(run.awp) if run.awp else None,
    )
    if run.has_soft_labels:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=run.label_smoothing)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(_optimizer(run, model, steps), loss, metrics=["accuracy"])
    return trainer


def _optimizer(run, model, steps):
    options = {"global_clipnorm": run.clip_norm}
    if run.ema:
        options |= {"use_ema": True, "ema_momentum": run.ema, "ema_overwrite_frequency": None}
    rate = _learning_rate(run, steps * max(1, run.replays))  # the optimizer counts replays
    if run.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=run.weight_decay, **options)
        optimizer.exclude_from_weight_decay(var_names=NO_WEIGHT_DECAY)
        return optimizer
    for layer in model.layers:
        if getattr(layer, "kernel", None) is not None and run.weight_decay:
            layer.kernel.regularizer = keras.regularizers.L2(run.weight_decay / 2)
    return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **options)


def _learning_rate(run, steps):
    warmup = run.epochs / 5 if run.warmup_epochs is None else run.warmup_epochs
    warmup = min(int(warmup * steps), run.epochs * steps - 1)
    if run.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            run.warmup_from, run.epochs * steps - warmup, warmup_target=run.learning_rate, warmup_steps=warmup
        )
    boundaries = [int(epoch) * steps for epoch in run.decay_epochs.split(",")]
    return schedules.StepDecay(run.learning_rate, boundaries, warmup_steps=warmup, warmup_from=run.warmup_from)
