"""Keras callbacks that monitor adversarial training."""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sat import data, losses
from keras_sat.attacks import Attack, gradients, judging, validation
from keras_sat.training import averaging, checkpoint, distribution
from keras_sat.typing import Array, Dataset, LogitsFunction, Path


class RobustAccuracy(keras.callbacks.Callback):
    """Measures the accuracy under a given attack, and adds it to the logs of an epoch as `val_robust_accuracy`.

    `fit(validation_data=...)` does the same with the trainer's `evaluation_attack`. Use this callback for another
    attack, or to measure only every few epochs. If the optimizer averages the weights (`use_ema=True`), the averages
    are measured, which `BestWeights` writes. Name it in the `callbacks` of a `Checkpoint`: then a resumed run measures
    after the same epochs. Pass it before the callbacks that read the value:

        keras.callbacks.ModelCheckpoint("best.keras", monitor="val_robust_accuracy", mode="max", save_best_only=True)

    Args:
        dataset: held-out images: batches of (images, labels), or a pair of arrays. See `evaluation.evaluate`.
        attack: the attack, such as `PGD(LinfBall(4), steps=50, keep="first")`.
        every: number of epochs between measurements, >= 1. In between, the last value is repeated. The first epoch is
            always measured.
        name: name of the value in the logs.

    Raises:
        ValueError: for labels that are not class numbers, or a targeted attack.
    """

    def __init__(self, dataset: Dataset, attack: Attack, every: int = 1, name: str = "val_robust_accuracy") -> None:
        super().__init__()
        check_held_out(dataset, attack)
        self.dataset = dataset
        self.attack = attack
        self.every = every
        self.name = name
        self._last: float | None = None

    def get_state(self) -> dict[str, Any]:
        """Returns the state for a `Checkpoint`: the last value."""
        return {"last": self._last}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back a state that `get_state` returned."""
        self._last = state["last"]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Measures the robust accuracy, and adds it to the logs."""
        if self._last is None or (epoch + 1) % self.every == 0:
            with averaging.averages(self.model):
                self._last = robust_accuracy(self.model.classifier, self.dataset, self.attack)
        logs[self.name] = self._last


_NOWHERE = (-1, -1)


class CatastrophicOverfittingGuard(keras.callbacks.Callback):
    """Detects catastrophic overfitting, and restores the network from before.

    Adversarial training with one step may lose all robustness within an epoch, while its `adversarial_accuracy` rises
    (Wong et al., arXiv:2001.03994; Andriushchenko and Flammarion, arXiv:2007.02617). Every few steps, this guard
    measures robust accuracy on held-out images (a probe). If it falls below `collapse` times the best value so far, the
    guard warns, and restores the weights, moving statistics and optimizer of the last good probe.

    The guard probes the weights that are trained, also if the optimizer averages them. Name it in the `callbacks` of a
    `Checkpoint`: then a resumed run makes the same probes at the same steps, and comes to the same decisions. With
    several workers, the chief's measurement decides for all.

    Args:
        dataset: a few hundred held-out images: batches of (images, labels), or a pair of arrays. See
            `evaluation.evaluate`.
        attack: an attack with several steps, such as `PGD(ball, steps=10)`.
        every: number of steps between two probes, >= 1, counted over all epochs.
        action: "stop" (default) ends the training after the weights are restored. "roll_back" continues it with a
            smaller step size of the attack (`trainer.step_size_factor`).
        collapse: share of the best robust accuracy so far, in (0, 1), below which training has collapsed.
        factor: factor in (0, 1) by which "roll_back" multiplies the step size.
        patience: number of such probes in a row after which the guard acts, >= 1. Default: 1. A training that has
            collapsed stays so; a training with a large learning rate may falter, and recover.
        beyond: factors of the attack's epsilon, > 1, such as (1.25, 1.5). At the end of each epoch, the guard measures
            robust accuracy at these epsilons too, and adds it to the logs, as `probe_accuracy_1.25_epsilon`. A network
            that was trained with one step may be robust at the epsilon of its training and no farther (partial
            catastrophic overfitting). If one of these values falls below `collapse` times its best, the guard warns; it
            does nothing else. Default: none.

    Attributes:
        probes: {step: robust accuracy}.
        probes_beyond: {factor: {step: robust accuracy}}.
        collapses: the steps at which the guard acted.

    Raises:
        ValueError: for an option out of its range, labels that are not class numbers, a targeted attack, or `beyond`
            with an attack without a ball.
    """

    def __init__(
        self,
        dataset: Dataset,
        attack: Attack,
        every: int = 100,
        action: str = "stop",
        collapse: float = 0.5,
        factor: float = 0.5,
        patience: int = 1,
        beyond: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if action not in ("stop", "roll_back"):
            raise ValueError(f'action must be "stop" or "roll_back". Received: {action!r}')
        for name, value in (("every", every), ("patience", patience)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be an integer >= 1. Received: {value!r}")
        if not (0 < collapse < 1 and 0 < factor < 1):
            raise ValueError(f"collapse and factor must lie between 0 and 1. Received: {collapse!r}, {factor!r}")
        if not all(factor > 1 for factor in beyond):
            raise ValueError(f"beyond must be factors of epsilon above 1, such as (1.25, 1.5). Received: {beyond!r}")
        check_held_out(dataset, attack)
        self.dataset = dataset
        self.attack = attack
        self.every = every
        self.action = action
        self.collapse = collapse
        self.factor = factor
        self.patience = patience
        self.probes: dict[int, float] = {}
        self.probes_beyond: dict[float, dict[int, float]] = {factor: {} for factor in beyond}
        # Made here, so that an attack whose epsilon cannot be changed is refused before the training.
        radius = attack.ball.radius if attack.ball else 0.0
        self._attacks = {factor: attack.with_radius(factor * radius) for factor in beyond}
        self.collapses: list[int] = []
        self._steps = 0
        self._low = 0  # low probes in a row
        self._good: dict[str, Any] = {}
        self._epoch = 0
        self._last = self._restored = _NOWHERE  # epoch and batch of the last step, and of the last one before a restart

    def get_state(self) -> dict[str, Any]:
        """Returns the state for a `Checkpoint`: the probes, and the state of the training at the last good one."""
        counts = {"steps": self._steps, "low": self._low, "last": list(self._last), "probes": list(self.probes.items())}
        beyond = [(factor, list(probes.items())) for factor, probes in self.probes_beyond.items()]
        return counts | {"collapses": list(self.collapses), "good": self._good, "beyond": beyond}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back a state that `get_state` returned."""
        self._steps, self._low, self._restored = state["steps"], state["low"], tuple(state["last"])
        self.probes = dict(state["probes"])
        self.probes_beyond |= {factor: dict(probes) for factor, probes in state.get("beyond", ())}
        self.collapses, self._good = list(state["collapses"]), state["good"]

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins to count. If the last good state is of another optimizer, the present state takes its place."""
        self._last, self._restored = self._restored, _NOWHERE
        if self._good and len(self._good) != len(now := checkpoint.values(self.model)):
            self._good = now

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Probes robust accuracy every few steps."""
        place = (self._epoch, batch)
        if place <= self._last:  # done before the restart, and skipped now
            return
        before, self._steps = self._steps, self._steps + batch - (self._last[1] if self._last[0] == self._epoch else -1)
        self._last = place
        if self._steps // self.every > before // self.every:
            self._probe()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Probes robust accuracy beyond the attack's epsilon, and adds it to the logs."""
        for factor, attack in self._attacks.items():
            probes, accuracy = self.probes_beyond[factor], self._accuracy(attack)
            best = max(probes.values(), default=0.0)
            logs[f"probe_accuracy_{factor:g}_epsilon"] = probes[self._steps] = accuracy
            if accuracy < self.collapse * best:
                warnings.warn(
                    f"Partial catastrophic overfitting at step {self._steps}: robust accuracy at {factor:g} times "
                    f"epsilon fell from {100 * best:.1f} % to {100 * accuracy:.1f} %. The weights are kept. More steps "
                    "of the training attack may help. PGD can miss much beyond the epsilon of training: evaluate there "
                    "with Square or AutoAttack.",
                    stacklevel=2,
                )

    def _accuracy(self, attack):
        accuracy = robust_accuracy(self.model.classifier, self.dataset, attack)
        return distribution.number_from_chief(self.model.distribute_strategy, accuracy)

    def _probe(self):
        accuracy = self._accuracy(self.attack)
        best = max(self.probes.values(), default=0.0)
        self.probes[self._steps] = accuracy
        if accuracy >= self.collapse * best:
            self._low, self._good = 0, checkpoint.values(self.model)
            return
        self._low += 1
        if self._low < self.patience:
            return
        self._low = 0
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
            f"{100 * accuracy:.1f} %. The weights of the last good probe were restored; {then}.",
            stacklevel=2,
        )


class AveragedWeights(keras.callbacks.Callback):
    """Validates with the optimizer's averaged weights (`use_ema=True`), then restores the training weights exactly.

    Before the first step, there are no averages, and the weights stay as they are.

    keras.callbacks.SwapEMAWeights exchanges both by adding and subtracting, which rounds. A run that is resumed after a
    validation would then differ from a run that was not interrupted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._averages = contextlib.ExitStack()

    def on_test_begin(self, logs: Any = None) -> None:
        """Assigns the averaged weights."""
        self._averages.enter_context(averaging.averages(self.model))

    def on_test_end(self, logs: Any = None) -> None:
        """Restores the weights of training."""
        self._averages.close()


class PerturbationImages(keras.callbacks.Callback):
    """Writes images, their adversarial versions and the perturbations to TensorBoard after each epoch.

    Args:
        images: a few images [batch, height, width, 1 or 3], in the range of the attack's bounds, such as 0..255.
        labels: integers [batch] or [batch, 1], or one-hot [batch, classes].
        attack: the attack, such as `PGD(LinfBall(4))`. Perturbations are shown scaled; 0 is grey.
        log_dir: folder of TensorBoard's logs.
        every: images are written every so many epochs. Default: 1.
    """

    def __init__(self, images: Array, labels: Array, attack: Attack, log_dir: Path, every: int = 1) -> None:
        super().__init__()
        self.images = tf.cast(images, tf.float32)
        self.labels = losses.hard_labels(labels)
        self.attack = attack
        self.every = every
        self._writer = tf.summary.create_file_writer(log_dir)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Attacks the images, and writes the results."""
        if (epoch + 1) % self.every:
            return
        adversarial = self.attack(self.model.classifier, self.images, self.labels, seed=0)
        low, high = map(np.float32, self.attack.bounds)
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

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the file."""
        self._writer.close()


def robust_accuracy(model: LogitsFunction, dataset: Dataset, attack: Attack, batch_size: int = 128) -> float:
    """Returns the share of images that a model classifies correctly, both clean and under an attack (seed 0).

    An image with a logit that is not finite counts as misclassified.

    Args:
        model: a Keras classifier.
        dataset: batches of (images, labels), or a pair of arrays, which is cut into batches of `batch_size`.
        attack: an attack that is not targeted, such as `PGD(LinfBall(4))`.
        batch_size: number of images in a batch, if the dataset is a pair of arrays.

    Raises:
        ValueError: for a dataset without images, or labels that are not class numbers.
    """
    correct = count = 0
    for images, labels in data.batches(dataset, batch_size):
        clean = tf.cast(images, tf.float32)
        labels = losses.hard_labels(labels, gradients.logits(model, clean[:1]).shape[-1])
        attacked = attack(model, images, labels, seed=0)
        robust = judging.judge(model, clean, labels).is_correct & judging.judge(model, attacked, labels).is_correct
        correct += int(tf.math.count_nonzero(robust))
        count += len(labels)
    if count == 0:
        raise ValueError("The dataset has no images to measure robust accuracy on.")
    return correct / count


def check_held_out(dataset: Dataset, attack: Attack) -> None:
    """Raises ValueError for labels or an attack that would fail only after the first epoch of a training."""
    validation.check_untargeted(attack)
    for _, labels in data.batches(dataset, 1):
        losses.hard_labels(labels)
        break
