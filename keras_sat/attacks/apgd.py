"""Auto-PGD: projected gradient ascent that chooses its step size itself."""

import dataclasses
from typing import Any

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, randomness, survivors, validation
from keras_sat.attacks.attack import Attack, target_classes
from keras_sat.typing import LogitsFunction, LossFunction

_MOMENTUM = 0.75  # weight of the new step; the previous step has weight 0.25
_RISES = 0.75  # share of the steps since the last checkpoint that must have raised the loss; rho in the paper


@dataclasses.dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1), with the settings of the authors' AutoAttack.

    It starts with a step size of 2 epsilon and uses momentum. At checkpoints, it halves the step size of an example and
    returns to the example's best point if at most 75 % of the steps raised the loss, or if neither step size nor best
    loss changed since the last checkpoint. An example is finished at its first misclassified iterate. If there is no
    such iterate, the attack returns the iterate with the largest loss.

    Args:
        ball: `LinfBall` or `L2Ball`.
        steps: gradient steps of a start, >= 1.
        restarts: number of independent starts (for each target class), >= 1, for examples that are still robust.
        loss: the loss to ascend: `losses.log_cross_entropy` (default; "APGD-CE") or `losses.dlr`. With fewer than 3
            classes there is no DLR loss, and the margin replaces it.
        targets: 0, or the number of target classes to try one after the other, those with the largest logits first.
            `losses.targeted_dlr` then replaces `loss`; with fewer than 4 classes, `losses.targeted_margin` does. If
            there are fewer other classes than `targets`, all other classes are tried, with a warning.
        samples: number of gradients to average in each step, >= 1, for networks with random output (EOT).

    Raises:
        ValueError: for a field with an invalid value.
    """

    steps: int = 100
    restarts: int = 1
    loss: LossFunction = losses.log_cross_entropy
    targets: int = 0
    samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.check_integers(self, positive=("steps", "restarts", "samples"), not_negative=("targets",))

    def __str__(self) -> str:
        if self.targets:
            return "APGD-T"
        ce = (losses.log_cross_entropy, losses.cross_entropy)
        known: dict[Any, str] = {**dict.fromkeys(ce, "APGD-CE"), losses.dlr: "APGD-DLR"}
        return known.get(self.loss, "APGD")

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values for a report, with the loss that is really used."""
        return super().settings() | ({"loss": losses.targeted_dlr.__name__} if self.targets else {})

    @property
    def accepts_start(self) -> bool:
        """Whether a call may choose the point at which the attack starts: yes."""
        return True

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example at most. A gradient counts as two."""
        return 2 * (self.steps + 1) * self.samples * self.restarts * max(1, self.targets)

    def perturb(
        self,
        logits_fn: LogitsFunction,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        start: tf.Tensor | None = None,
        *,
        static_shapes: bool = False,
    ) -> tf.Tensor:
        """Runs the algorithm. See `Attack.perturb`."""

        def attempt(number, state):
            seeds = randomness.fold(state["seeds"], number)
            target = tf.gather(state["targets"], number // self.restarts, axis=1)
            points = self.ball.sample(seeds, state["images"])
            if start is not None:
                points = tf.where(number == 0, state["start"], points)
            points = self.ball.project(points, state["images"])
            result, broken = self._one_start(logits_fn, state, target, points, static_shapes)
            return {**state, "result": result, "broken": broken}

        targets = target_classes(logits_fn, images, labels, self.targets, str(self))
        state = survivors.initial_state(images, labels, seed, start, targets=targets)
        return survivors.loop(attempt, state, self.restarts * targets.shape[1], static_shapes)[0]

    def _one_start(self, logits_fn, attempt, target, start, static_shapes):
        """Returns an iterate of each example, the misclassified one or that with the largest loss, and "broken"."""
        images = attempt["images"]
        none, batch = tf.zeros_like(images), tf.shape(images)[0]
        state = {
            **{"images": images, "labels": attempt["labels"], "target": target},
            **{"points": start, "previous": start},
            **{"result": start, "best_gradient": none, "best_loss": tf.fill([batch], tf.float32.min)},
            **{"loss": tf.fill([batch], tf.float32.max), "rises": tf.zeros([batch])},
            **{"step": tf.fill([batch], 2 * self.ball.radius)},
            **{"checked_loss": tf.fill([batch], tf.float32.min), "halved": tf.ones([batch], tf.bool)},
            "broken": attempt["broken"],
        }
        windows = tf.constant(checkpoints(self.steps))

        def step(number, state):
            gradient, state = self._evaluate(logits_fn, state)
            points, gradient, state = self._checkpoint(tf.gather(windows, number), gradient, state)
            momentum = tf.where(number > 0, _MOMENTUM, 1.0)
            return {**state, "points": self._move(points, gradient, momentum, state), "previous": points}

        return survivors.loop(step, state, self.steps + 1, static_shapes)

    def _evaluate(self, logits_fn, state):
        """Returns the gradient at the points, and the state with the best points so far."""
        points, labels = state["points"], state["labels"]

        def loss_fn(labels, logits):
            return self._loss(labels, state["target"], logits)

        loss, logits, gradient = gradients.averaged(logits_fn, loss_fn, points, labels, self.samples)
        better, broken = loss > state["best_loss"], losses.is_broken(labels, logits)
        pick = (better | broken)[:, None, None, None]
        return gradient, {
            **state,
            "result": tf.where(pick, points, state["result"]),
            "broken": broken,
            "best_gradient": tf.where(better[:, None, None, None], gradient, state["best_gradient"]),
            "best_loss": tf.maximum(loss, state["best_loss"]),
            "rises": state["rises"] + tf.cast(loss > state["loss"], tf.float32),
            "loss": loss,
        }

    def _checkpoint(self, window, gradient, state):
        """Returns the points to continue from, the gradient there, and the state.

        `window` is the number of steps since the last checkpoint; 0 if there is no checkpoint at this step.
        """
        is_checkpoint = window > 0
        oscillates = state["rises"] <= _RISES * tf.cast(window, tf.float32)
        stuck = ~state["halved"] & (state["checked_loss"] >= state["best_loss"])
        halve = is_checkpoint & (oscillates | stuck)
        back = halve[:, None, None, None]
        state = {
            **state,
            "step": tf.where(halve, state["step"] / 2, state["step"]),
            "halved": tf.where(is_checkpoint, halve, state["halved"]),
            "checked_loss": tf.where(is_checkpoint, state["best_loss"], state["checked_loss"]),
            "rises": tf.where(is_checkpoint, 0.0, state["rises"]),
        }
        points = tf.where(back, state["result"], state["points"])
        return points, tf.where(back, state["best_gradient"], gradient), state

    def _move(self, points, gradient, momentum, state):
        images, step = state["images"], state["step"][:, None, None, None]
        moved = self.ball.project(points + step * self.ball.steepest(gradient), images)
        moved = points + momentum * (moved - points) + (1 - momentum) * (points - state["previous"])
        return self.ball.project(moved, images)

    def _loss(self, labels, target, logits):
        classes = logits.shape[-1]
        if self.targets:
            loss = losses.targeted_dlr if classes >= 4 else losses.targeted_margin
            return loss(labels, target, logits)
        if self.loss is losses.dlr and classes < 3:
            return losses.margin(labels, logits)
        return self.loss(labels, logits)


def checkpoints(steps: int) -> list[int]:
    """Returns a list of `steps` + 1 integers that says at which steps there are checkpoints.

    Entry i is the number of steps since the previous checkpoint if there is a checkpoint after i steps, otherwise 0.
    The first checkpoint comes after 22 % of all steps. Each next interval is shorter by 3 % of all steps, but not
    shorter than 6 % of them (section 3 of the paper).
    """
    window, shrink, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    marks, at = [0] * (steps + 1), window
    while at <= steps:
        marks[at] = window
        window = max(window - shrink, shortest)
        at += window
    return marks
