"""Keras callbacks for what goes wrong in adversarial training, and for looking at it."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_sat import data, losses
from keras_sat.attacks import gradients, inputs
from keras_sat.training import checkpoint


class RobustAccuracy(keras.callbacks.Callback):
    """Adds to the logs of an epoch the accuracy under an attack of its own, as `val_robust_accuracy`.

    `fit(validation_data=...)` does so with the trainer's `evaluation_attack`; this is for another attack, or for every
    few epochs. Give it before the callbacks that read it:

        keras.callbacks.ModelCheckpoint("best.keras", monitor="val_robust_accuracy", mode="max", save_best_only=True)

    Args:
        dataset: held out, as `evaluation.evaluate` takes it: batches of (images, labels), or a pair of arrays.
        attack: such as `PGD(LinfBall(4), steps=50, keep="first")`.
        every: number of epochs between measurements; in between the last one is repeated.
        name: in the logs.
    """

    def __init__(self, dataset, attack, every=1, name="val_robust_accuracy"):
        super().__init__()
        check_held_out(dataset, attack)
        self.dataset = dataset
        self.attack = attack
        self.every = every
        self.name = name
        self._last = None

    def on_epoch_end(self, epoch, logs=None):
        if self._last is None or (epoch + 1) % self.every == 0:
            self._last = robust_accuracy(self.model.model, self.dataset, self.attack)
        logs[self.name] = self._last


class CatastrophicOverfittingGuard(keras.callbacks.Callback):
    """Notices when training has collapsed onto weak attacks, and takes the network back to where it had not.

    With one step, adversarial training may lose all robustness within an epoch, while its accuracy on its own examples
    rises (Wong et al., arXiv:2001.03994; Andriushchenko and Flammarion, arXiv:2007.02617). Every few steps the guard
    attacks held-out images with PGD-10. When fewer than `collapse` of the best share seen before still stand, it warns,
    and restores weights, moving statistics and optimizer as they were when all was well; then it stops the training, or
    lowers the attack's step size (`trainer.step_size_factor`) and goes on.

    Args:
        dataset: held out, as `evaluation.evaluate` takes it: batches of (images, labels), or a pair of arrays; some
            hundred images.
        attack: of several steps: `PGD(ball, steps=10)`.
        every: steps between two probes.
        action: "stop", or "roll back".
        collapse: share of the best robust accuracy so far, below which the training has collapsed.
        factor: by which "roll back" multiplies the step size.

    Attributes:
        probes: {step: robust accuracy}.
        collapses: the steps at which it acted.
    """

    def __init__(self, dataset, attack, every=100, action="stop", collapse=0.5, factor=0.5):
        super().__init__()
        if action not in ("stop", "roll back"):
            raise ValueError(f'action must be "stop" or "roll back". Received: {action!r}')
        if not (0 < collapse < 1 and 0 < factor < 1):
            raise ValueError(f"collapse and factor must lie between 0 and 1. Received: {collapse!r}, {factor!r}")
        check_held_out(dataset, attack)
        self.dataset = dataset
        self.attack = attack
        self.every = every
        self.action = action
        self.collapse = collapse
        self.factor = factor
        self.probes = {}
        self.collapses = []
        self._steps = 0
        self._good = None

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self._steps % self.every == 0:
            self._probe()

    def _probe(self):
        accuracy = robust_accuracy(self.model.model, self.dataset, self.attack)
        best = max(self.probes.values(), default=0.0)
        self.probes[self._steps] = accuracy
        if accuracy >= self.collapse * best:
            self._good = checkpoint.values(self.model)
            return
        self.collapses.append(self._steps)
        factor = float(self.model.step_size_factor.numpy())
        checkpoint.assign(self.model, self._good)
        if self.action == "stop":
            self.model.stop_training = True
            then = "training ends"
        else:
            self.model.step_size_factor.assign(factor * self.factor)
            then = f"the step size is multiplied by {factor * self.factor:g} from now on"
        warnings.warn(
            f"Catastrophic overfitting at step {self._steps}: robust accuracy fell from {100 * best:.1f} % to "
            f"{100 * accuracy:.1f} %. The weights are those of the last good probe again; {then}.",
            stacklevel=2,
        )


class AveragedWeights(keras.callbacks.Callback):
    """Validates with the weights that the optimizer averages (`use_ema=True`), and gives back the others bit for bit.

    keras.callbacks.SwapEMAWeights swaps by adding and subtracting, which rounds: a run that is taken up after a
    validation would differ from one that was not interrupted.
    """

    _weights = None

    def on_test_begin(self, logs=None):
        self._weights = [keras.ops.convert_to_numpy(variable) for variable in self.model.trainable_variables]
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    def on_test_end(self, logs=None):
        if self._weights is None:
            return
        for variable, value in zip(self.model.trainable_variables, self._weights):
            variable.assign(value)
        self._weights = None


class PerturbationImages(keras.callbacks.Callback):
    """Writes images, their adversarial versions and the perturbations to TensorBoard after each epoch.

    Args:
        images: [batch, height, width, 1 or 3]; a few.
        labels: int [batch].
        attack: such as `PGD(LinfBall(4))`; the perturbations are scaled: 0 is grey.
        log_dir: TensorBoard's folder.
        every: number of epochs between two writings.
    """

    def __init__(self, images, labels, attack, log_dir, every=1):
        super().__init__()
        self.images = tf.cast(images, tf.float32)
        self.labels = labels
        self.attack = attack
        self.every = every
        self._writer = tf.summary.create_file_writer(log_dir)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        adversarial = self.attack(self.model.model, self.images, self.labels, seed=0)
        low, high = map(np.float32, self.attack.ball.bounds)
        largest = tf.reduce_max(tf.abs(adversarial - self.images)) + 1e-12
        shown = {
            "clean": (self.images - low) / (high - low),
            "adversarial": (adversarial - low) / (high - low),
            "perturbation": 0.5 + (adversarial - self.images) / (2 * largest),
        }
        with self._writer.as_default():
            for name, pictures in shown.items():
                tf.summary.image(f"attack/{name}", pictures, step=epoch, max_outputs=len(self.images))
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()


def robust_accuracy(model, dataset, attack, batch_size=128):
    """Returns the share of images that a model classifies correctly, both clean and under an attack (seed 0).

    An image for which a logit is not finite is not classified correctly.

    Args:
        model: a Keras classifier.
        dataset: as `evaluation.evaluate` takes it; a pair of arrays is cut into batches of `batch_size`.
        attack: such as `PGD(LinfBall(4))`, not targeted.

    Raises:
        ValueError: for a dataset without images, or labels that are not class numbers.
    """
    correct = count = 0
    for images, labels in data.batches(dataset, batch_size):
        logits = gradients.logits(model, tf.cast(images, tf.float32))
        labels = losses.hard_labels(labels, logits.shape[-1])
        attacked = gradients.logits(model, attack(model, images, labels, seed=0))
        stands = losses.is_correct(labels, logits) & losses.is_correct(labels, attacked)
        correct += int(tf.math.count_nonzero(stands))
        count += len(labels)
    if count == 0:
        raise ValueError("The dataset has no images to measure robust accuracy on.")
    return correct / count


def check_held_out(dataset, attack):
    """Refuses, before a training begins, a dataset or an attack that could not be used after its first epoch."""
    inputs.check_untargeted(attack)
    for _, labels in data.batches(dataset, 1):
        losses.hard_labels(labels)
        break
