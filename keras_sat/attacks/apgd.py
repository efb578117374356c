"""Auto-PGD: projected gradient ascent that chooses its step size itself."""

import dataclasses
from typing import Any

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import apgd_steps, gradients, randomness, survivors, validation
from keras_sat.attacks.attack import Attack, target_classes
from keras_sat.typing import LogitsFunction, LossFunction


@dataclasses.dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1), with the settings of the authors' AutoAttack.

    How it chooses the step size is in `apgd_steps`; in L1 it is the variant of arXiv:2103.01208. An example is finished
    at its first misclassified iterate. If there is no such iterate, the attack returns the iterate with the largest
    loss.

    Args:
        ball: `LinfBall`, `L2Ball` or `L1Ball`.
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
        passes = sum(2 * (steps + 1) for _, steps in apgd_steps.of(self.ball).phases(self.steps))
        return passes * self.samples * self.restarts * max(1, self.targets)

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
        rules = apgd_steps.of(self.ball)

        def attempt(number, state):
            seeds = randomness.fold(state["seeds"], number)
            target = tf.gather(state["targets"], number // self.restarts, axis=1)
            points = rules.start(seeds, state["images"])
            if start is not None:
                points = tf.where(number == 0, state["start"], points)
            *larger, last = rules.phases(self.steps)
            whole = {**state, "broken": tf.zeros_like(state["broken"])}
            for phase in larger:
                is_first = phase is larger[0]
                points, _ = self._one_phase(logits_fn, whole, target, points, phase, is_first, static_shapes)
            result, broken = self._one_phase(logits_fn, state, target, points, last, not larger, static_shapes)
            return {**state, "result": result, "broken": broken}

        targets = target_classes(logits_fn, images, labels, self.targets, str(self))
        state = survivors.initial_state(images, labels, seed, start, targets=targets)
        return survivors.loop(attempt, state, self.restarts * targets.shape[1], static_shapes)[0]

    def _one_phase(self, logits_fn, attempt, target, start, phase, is_first, static_shapes):
        """Returns an iterate of each example, the misclassified one or that with the largest loss, and "broken".

        `phase` is the ball to search, and the number of steps. In a larger ball than the attack's own, no example is
        finished, and the iterate with the largest loss is returned.
        """
        ball, steps = phase
        rules, is_larger = apgd_steps.of(ball), ball != self.ball
        images = attempt["images"]
        points = ball.project(start, images)
        batch = tf.shape(images)[0]
        state = {
            **{"images": images, "labels": attempt["labels"], "target": target, "points": points},
            **{"result": points, "best_gradient": tf.zeros_like(images), "best_loss": tf.fill([batch], tf.float32.min)},
            **{"loss": tf.fill([batch], tf.float32.max), "rises": tf.zeros([batch])},
            **rules.initial(images, points, is_first),
            "broken": attempt["broken"],
        }
        windows = tf.constant(rules.checkpoints(steps))

        def step(number, state):
            gradient, state = self._evaluate(logits_fn, state, is_larger)
            back, state = rules.checkpoint(tf.gather(windows, number), state)
            back = back[:, None, None, None]
            points = tf.where(back, state["result"], state["points"])
            return rules.move(number, points, tf.where(back, state["best_gradient"], gradient), state)

        return survivors.loop(step, state, steps + 1, static_shapes)

    def _evaluate(self, logits_fn, state, is_larger):
        """Returns the gradient at the points, and the state with the best points so far."""
        points, labels = state["points"], state["labels"]

        def loss_fn(labels, logits):
            return self._loss(labels, state["target"], logits)

        loss, logits, gradient = gradients.averaged(logits_fn, loss_fn, points, labels, self.samples)
        better, broken = loss > state["best_loss"], losses.is_broken(labels, logits) & (not is_larger)
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

    def _loss(self, labels, target, logits):
        classes = logits.shape[-1]
        if self.targets:
            loss = losses.targeted_dlr if classes >= 4 else losses.targeted_margin
            return loss(labels, target, logits)
        if self.loss is losses.dlr and classes < 3:
            return losses.margin(labels, logits)
        return self.loss(labels, logits)
