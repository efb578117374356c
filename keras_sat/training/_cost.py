"""Estimates the time and memory of an adversarial training from a few of its steps."""

import dataclasses
import resource
import statistics
import time
from typing import Any

import keras
import tensorflow as tf

from keras_sat.models import classifier
from keras_sat.training.adversarial import AdversarialModel


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a training on this machine.

    Attributes:
        images_per_second: number of training images per second, the attack included.
        seconds_per_epoch: None if the dataset has an unknown or infinite length.
        memory: peak memory in MiB: of the first GPU; without a GPU, of this process since it started.
    """

    images_per_second: float
    seconds_per_epoch: float | None
    memory: float

    def __str__(self) -> str:
        epoch = "unknown" if self.seconds_per_epoch is None else f"{self.seconds_per_epoch / 60:.1f} minutes"
        return f"{self.images_per_second:.1f} images/s, {epoch} an epoch, {self.memory:.0f} MiB at the peak"


def cost(
    model: keras.Model,
    dataset: tf.data.Dataset,
    attack: Any,
    steps: int = 3,
    optimizer: str | keras.optimizers.Optimizer = "sgd",
    **options: Any,
) -> Cost:
    """Estimates the cost of a training from a few of its steps.

        print(training.cost(model, dataset, PGD(LinfBall(4), steps=1)))

    The steps change the weights of the model. Afterwards all variables get their former values, also after an error.

    The first step, which compiles, is not timed. The time to read the data is not included: all steps use one batch.

    Args:
        model: a built Keras classifier; see `AdversarialModel`.
        dataset: the training data, a tf.data.Dataset of batches (images, labels).
        attack: see `AdversarialModel`.
        steps: number of steps to time, >= 1. Their median is used.
        optimizer: optimizer, or its name, as for `compile`. Its variables count as memory.
        options: further arguments of `AdversarialModel`.

    Returns:
        A `Cost`.

    Raises:
        ValueError: see `AdversarialModel`.
    """
    before = [keras.ops.convert_to_numpy(variable) for variable in model.variables]  # seed generators included
    try:
        trainer = AdversarialModel(model, attack, **options)
        images, labels = next(iter(dataset))
        one_hot = len(labels.shape) == 2 and labels.shape[-1] > 1
        losses = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
        trainer.compile(optimizer, losses(from_logits=True))
        batches = int(dataset.cardinality())
        return of_trainer(trainer, images, labels, batches if batches > 0 else None, steps)
    finally:
        for variable, value in zip(model.variables, before):
            variable.assign(value)
        classifier.refresh(model)


def of_trainer(
    trainer: AdversarialModel, images: Any, labels: Any, steps_per_epoch: int | None = None, steps: int = 3
) -> Cost:
    """Estimates the cost of a training from a few steps of its trainer. The steps change the weights.

    Args:
        trainer: a compiled `AdversarialModel`.
        images, labels: a batch of the training; with several replicas, the part of one replica.
        steps_per_epoch: number of steps in an epoch. None: it is unknown.
        steps: see `cost`.
    """
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        trainer.train_on_batch(images, labels)
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[1:])
    images_of_step = len(images) * trainer.distribute_strategy.num_replicas_in_sync  # each replica took the batch
    return Cost(images_of_step / step, steps_per_epoch and steps_per_epoch * step, _peak_memory())


def _peak_memory():
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
