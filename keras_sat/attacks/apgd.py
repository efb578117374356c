"""Auto-PGD: projected gradient ascent that chooses its step size itself."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, inputs, randomness, survivors, threats

_MOMENTUM = 0.75  # the share of the new step; 0.25 of the last one
_RISES = 0.75  # the share of steps since the last checkpoint that must have raised the loss, rho in the paper


@dataclasses.dataclass(frozen=True)
class APGD:
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1), with the settings of the authors' AutoAttack.

    Starts with steps of 2 epsilon and momentum. At checkpoints the step of an example is halved, and it goes back to
    the best point so far, if fewer than 75 % of the steps raised the loss, or neither step nor best loss changed
    since the last checkpoint. An example is done with its first misclassified iterate.

    Args:
        ball: `LinfBall` or `L2Ball`.
        steps: gradient steps of a start, >= 1.
        restarts: number of independent starts (for each target), for those that still stand.
        loss: what is ascended: `losses.cross_entropy` or `losses.dlr`. With fewer than 3 classes there is no DLR loss,
            and the margin takes its place.
        targets: 0, or the number of target classes to try in turn, those with the largest logits first, with
            `losses.targeted_dlr` in place of `loss`. With fewer than 4 classes there is no such loss, and
            `losses.targeted_margin` takes its place; more targets than other classes are cut to these.
        eot: number of gradients to average in each step, for networks whose output is random.
        survivors: "compact" takes examples that are done out of the batch; "mask" keeps the shapes, for XLA and TPU.

    Raises:
        ValueError: for a configuration that cannot be run.
    """

    ball: threats.Ball
    steps: int = 100
    restarts: int = 1
    loss: Callable = losses.cross_entropy
    targets: int = 0
    eot: int = 1
    survivors: str = "compact"

    def __post_init__(self):
        inputs.check_fields(self, positive=("steps", "restarts", "eot"), not_negative=("targets",))

    def __str__(self):
        if self.targets:
            return "APGD-T"
        return {losses.cross_entropy: "APGD-CE", losses.dlr: "APGD-DLR"}.get(self.loss, "APGD")

    def settings(self):
        """Returns the configuration as plain values for a report."""
        loss = losses.targeted_dlr if self.targets else self.loss
        return inputs.settings(self) | {"loss": loss.__name__}

    @property
    def passes(self):
        """Forward passes that an example costs at most; a gradient counts as two."""
        return 2 * (self.steps + 1) * self.eot * self.restarts * max(1, self.targets)

    def __call__(self, logits_fn, images, labels, seed=0, start=None):
        """Returns adversarial images: as `PGD`, which see. Where none was found, the iterate of the largest loss."""
        return inputs.run(self, logits_fn, images, labels, seed, start)

    def perturb(self, logits_fn, images, labels, seed, start=None):
        """The attack itself, on float32 images, int labels and a seed of shape [2] or [batch, 2] that were checked."""

        def attempt(number, state):
            seeds = randomness.fold(state["seeds"], number)
            target = tf.gather(state["targets"], number // self.restarts, axis=1)
            points = self.ball.sample(seeds, state["images"])
            if start is not None:
                points = tf.where(number == 0, state["start"], points)
            points = self.ball.project(points, state["images"])
            result, broken = self._one_start(logits_fn, state, target, points)
            return {**state, "result": result, "broken": broken}

        targets = inputs.target_classes(self, logits_fn, images, labels)
        state = inputs.initial_state(images, labels, seed, start, targets=targets)
        return survivors.loop(attempt, state, self.restarts * targets.shape[1], self.survivors)[0]

    def _one_start(self, logits_fn, attempt, target, start):
        """Returns the misclassified iterates, or else those of the largest loss, and which are misclassified."""
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

        return survivors.loop(step, state, self.steps + 1, self.survivors)

    def _evaluate(self, logits_fn, state):
        """Returns the gradient at the points, and the state with the best points so far."""
        points, labels = state["points"], state["labels"]

        def loss_fn(labels, logits):
            return self._loss(labels, state["target"], logits)

        loss, logits, gradient = gradients.averaged(logits_fn, loss_fn, points, labels, self.eot)
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
        """Returns where to go on from, the gradient there, and the state; `window`: steps since the last checkpoint."""
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


def checkpoints(steps):
    """Returns, for the points after 0, 1, ... `steps` steps, the steps since the last checkpoint, or 0 between them.

    The first window is 22 % of the steps, each next one 3 % shorter, none shorter than 6 %.
    """
    window, shrink, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    marks, at = [0] * (steps + 1), window
    while at <= steps:
        marks[at] = window
        window = max(window - shrink, shortest)
        at += window
    return marks
