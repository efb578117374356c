"""A training run and its folder: `run.json` (the whole configuration), `model.weights.h5`, `logs/` (TensorBoard)."""

import contextlib
import dataclasses
import json
import os
import sys

import keras

from keras_sat import activations, attacks, data, files, models
from keras_sat import export as export_lib
from keras_sat.evaluation import report
from keras_sat.models.classifier import PRECISIONS
from keras_sat.training import AdversarialModel, distribution

BALLS = {"linf": attacks.LinfBall, "l2": attacks.L2Ball}
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
    dataset: str = _flag("fashion_mnist_mini", "embedded, or any prepared TFDS classification dataset")
    data_dir: str | None = _flag(None, "folder of prepared TFDS datasets; default: TFDS' own")
    image_size: int | None = _flag(None, "resize the images to this height and width; default: as they are")
    augment: bool = _flag(
        False, "crop and flip small images at random: for long trainings; costs accuracy in short ones"
    )
    norm: str = _flag("linf", "of the attack: linf or l2")
    epsilon: float = _flag(25.5, "radius of the attack, in pixels 0..255")
    steps: int = _flag(2, "gradient steps of the training attack")
    epochs: int = _flag(8, "passes over the training split")
    batch_size: int = _flag(100, "images in a batch, over all devices")
    learning_rate: float = _flag(0.008, "peak of AdamW's warm-up and cosine decay")
    weight_decay: float = _flag(0.001, "AdamW's, on convolution and dense kernels only")
    precision: str = _flag("float32", ", ".join(PRECISIONS))
    attack_precision: str | None = _flag(
        None, f"of the training attack alone: {', '.join(PRECISIONS)}; default: precision"
    )
    strategy: str = _flag("auto", "auto, none or mirrored (every GPU of this machine)")
    seed: int = _flag(0, "the same seed gives the same run")

    def __post_init__(self):
        _expect("model", self.model, self.model in models.BUILDERS, f"one of {', '.join(models.BUILDERS)}")
        _expect("norm", self.norm, self.norm in BALLS, f"one of {', '.join(BALLS)}")
        _expect("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        is_known = self.attack_precision in (None, *PRECISIONS)
        _expect("attack_precision", self.attack_precision, is_known, f"one of {', '.join(PRECISIONS)}")
        for name in ("epochs", "batch_size", "steps"):
            _expect(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _expect("image_size", self.image_size, self.image_size is None or self.image_size >= 1, "at least 1")
        _expect("learning_rate", self.learning_rate, self.learning_rate > 0, "positive")
        _expect("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        self.ball()  # refuses an epsilon out of its range
        activations.layer(self.activation)

    def ball(self, epsilon=None):
        """Returns the threat model, of this run's epsilon or another."""
        return BALLS[self.norm](self.epsilon if epsilon is None else epsilon)

    def load_data(self, split, batch_size=None, training=False):
        """Returns the run's dataset as `keras_sat.data.load` does."""
        return data.load(
            self.dataset,
            split,
            batch_size or self.batch_size,
            image_size=self.image_size,
            training=training,
            data_dir=self.data_dir,
            seed=self.seed,
            augment=self.augment,
        )

    def evaluation_split(self):
        """Returns the name of the split to evaluate on."""
        return data.evaluation_split(self.dataset, self.data_dir)

    def calibration_images(self):
        """Returns some hundred training images, by which int8 sets its ranges."""
        images, _ = next(iter(self.load_data("train", CALIBRATION_IMAGES)))
        return images.numpy()

    def build(self):
        """Returns the untrained network for the dataset's images and classes."""
        shape, classes = data.shape_and_classes(self.dataset, self.image_size, self.data_dir)
        return models.BUILDERS[self.model](input_shape=shape, classes=classes, activation=self.activation)


def _expect(name, value, is_valid, expected):
    if not is_valid:
        raise ValueError(f"{name} must be {expected}. Received: {value!r}")


def train(run, folder):
    """Trains a network adversarially, and writes the run's folder.

    Ctrl-C ends the training early; what was trained until then is written.

    Args:
        run: a `Run`.
        folder: to write; must hold no run yet.

    Returns:
        The trained keras.Model, and whether the training ran to its end.

    Raises:
        ValueError: if the folder holds a run already, or for a dataset that cannot be had. Nothing is written then.
    """
    if os.path.exists(_json(folder)):
        raise ValueError(f"{folder} holds a run already: choose another output folder.")
    keras.utils.set_random_seed(run.seed)
    dataset = run.load_data("train", training=True)
    with _policy(run.precision), distribution.strategy(run.strategy).scope():
        trainer = _trainer(run, steps=run.epochs * int(dataset.cardinality()))
    history = keras.callbacks.History()
    try:
        trainer.fit(
            dataset,
            validation_data=run.load_data(run.evaluation_split()).take(max(1, VALIDATION_IMAGES // run.batch_size)),
            epochs=run.epochs,
            shuffle=False,  # the dataset shuffles
            callbacks=[history, keras.callbacks.TensorBoard(os.path.join(folder, "logs"), write_graph=False)],
            verbose="auto" if sys.stdout.isatty() else 2,
        )
        finished = True
    except KeyboardInterrupt:
        finished = False
    with files.replacing(_weights(folder)) as temporary:
        trainer.model.save_weights(temporary)
    record = {**dataclasses.asdict(run), "attack_batch_norm": trainer.attack_batch_norm, "finished": finished}
    record |= {"iterations": int(trainer.optimizer.iterations.numpy()), "history": history.history}
    files.write_json(_json(folder), record | {"versions": report.versions()})
    return trainer.model, finished


def load(folder):
    """Returns the `Run` of a folder and its trained network.

    Raises:
        ValueError: if there is no run, or its files cannot be read; the message names the file.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"There is no folder {folder}; `keras-sat train --output={folder}` would write it.")
    try:
        with open(_json(folder), encoding="utf-8") as file:
            record = json.load(file)
        run = Run(**{field.name: record[field.name] for field in dataclasses.fields(Run)})
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run: {_json(folder)} is missing.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_json(folder)} is damaged: {type(error).__name__}: {error}") from error
    with _policy(run.precision):
        model = run.build()
    models.weights.load_file(model, _weights(folder))
    return run, model


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
    saved = os.path.join(folder, "report.json")
    measured = report.from_json(saved) if os.path.exists(saved) else None
    if measured and measured.context.get("weights_sha256") != report.weights_sha256(model):
        measured = None
    with open(_json(folder), encoding="utf-8") as file:
        attack_batch_norm = json.load(file).get("attack_batch_norm")
    export_lib.export_saved_model(
        model,
        path,
        labels=data.class_names(run.dataset, run.data_dir),
        dtype=dtype,
        report=measured,
        card={"training": dataclasses.asdict(run) | {"attack_batch_norm": attack_batch_norm}},
    )


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
    """Returns a compiled AdversarialModel, built for `steps` steps of training."""
    attack = attacks.PGD(run.ball(), steps=run.steps)
    options = {"seed": run.seed, "attack_precision": run.attack_precision}
    trainer = AdversarialModel(run.build(), attack, dataclasses.replace(attack, steps=10), **options)
    warmup = steps // 5
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=run.learning_rate, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=run.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=NO_WEIGHT_DECAY)
    trainer.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return trainer
