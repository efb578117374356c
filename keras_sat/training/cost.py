"""What an adversarial training will cost, from a few of its steps."""

import dataclasses
import resource
import statistics
import time

import keras
import tensorflow as tf

from keras_sat.models import classifier
from keras_sat.training.adversarial import AdversarialModel


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a training on the machine at hand.

    Attributes:
        images_per_second: trained on, attack included.
        seconds_per_epoch: None where the dataset does not say how long it is.
        memory: peak of a step, MiB: of the first GPU, or else of this process, all it did before included.
    """

    images_per_second: float
    seconds_per_epoch: float | None
    memory: float

    def __str__(self):
        epoch = "unknown" if self.seconds_per_epoch is None else f"{self.seconds_per_epoch / 60:.1f} minutes"
        return f"{self.images_per_second:.1f} images/s, {epoch} an epoch, {self.memory:.0f} MiB at the peak"


def cost(model, attack, dataset, steps=3, optimizer="sgd", **options):
    """Estimates the cost of a training by taking some of its steps; the model is as before afterwards.

        print(training.cost(model, PGD(LinfBall(4), steps=1), dataset))

    The first step, which compiles, does not count. Reading the data does not count either: one batch is used again.

    Args:
        model, attack, options: as of `AdversarialModel`.
        dataset: of training, batches of (images, labels).
        steps: how many to time; the median counts.
        optimizer: as of `compile`; its moments count as memory.

    Returns:
        A `Cost`.
    """
    weights = model.get_weights()
    trainer = AdversarialModel(model, attack, **options)
    images, labels = next(iter(dataset))
    one_hot = len(labels.shape) == 2 and labels.shape[-1] > 1
    losses = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
    trainer.compile(optimizer, losses(from_logits=True))
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        trainer.train_on_batch(images, labels)
        seconds.append(time.perf_counter() - start)
    classifier.set_weights(model, weights)
    step = statistics.median(seconds[1:])
    batches = int(dataset.cardinality())
    return Cost(len(images) / step, batches * step if batches > 0 else None, _peak_memory())


def _peak_memory():
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
