"""How `APGD` chooses its step size and moves: `Halving` for L-inf and L2, `Sparse` for L1."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from keras_sat.attacks import randomness, threats
from keras_sat.attacks.survivors import State

_MOMENTUM = 0.75  # weight of the new step; the previous step has weight 0.25
_RISES = 0.75  # share of the steps since the last checkpoint that must have raised the loss; rho in the paper
_LARGER = ((3, 0.3), (2, 0.3))  # L1: first the ball of 3 epsilon for 30 % of the steps, then that of 2 epsilon
_FIRST = 0.2  # L1: share of the values that the first steps change
_INTERVAL = 0.04  # L1: share of the steps between two checkpoints
_SPARSER = 1.5  # L1: a step changes 1 / 1.5 as many values as the best point does; and the divisor of the step size
_SAME = 0.95  # L1: the best point counts as sparser if it changes less than this share of the values of before
_SMALLEST = 10.0  # L1: the step size does not fall below epsilon / 10


def of(ball: threats.Ball) -> "Halving":
    """Returns the rules for the norm of a ball."""
    return Sparse(ball) if isinstance(ball, threats.L1Ball) else Halving(ball)


@dataclasses.dataclass(frozen=True)
class Halving:
    """Algorithm 1 of Croce and Hein 2020 (arXiv:2003.01690): steps of 2 epsilon with momentum, halved at checkpoints.

    A step size is halved if at most 75 % of the steps since the last checkpoint raised the loss, or if neither the step
    size nor the best loss changed since. The example then goes back to its best point.

    Args:
        ball: the ball in which the points are.
    """

    ball: threats.Ball

    def phases(self, steps: int) -> list[tuple[threats.Ball, int]]:
        """Returns the balls in which an attack runs one after the other, each with its number of steps."""
        return [(self.ball, steps)]

    def checkpoints(self, steps: int) -> list[int]:
        """Returns `steps` + 1 integers: after k steps, that since the last checkpoint; 0 if there is none after k."""
        return checkpoints(steps)

    def start(self, seeds: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns random points at which an attack starts, float32 [batch, height, width, channels]."""
        return self.ball.sample(seeds, images)

    def initial(self, images: tf.Tensor, points: tf.Tensor, is_first: bool) -> State:
        """Returns the part of the state that belongs to these rules; `is_first` says whether the phase is the first."""
        batch = tf.shape(images)[0]
        return {
            "previous": points,
            "step": tf.fill([batch], 2 * self.ball.radius),
            "checked_loss": tf.fill([batch], tf.float32.min),
            "halved": tf.ones([batch], tf.bool),
        }

    def checkpoint(self, window: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """Returns which examples go back to their best points, bool [batch], and the state.

        Args:
            window: the number of steps since the last checkpoint; 0 if there is no checkpoint at this step.
            state: `rises` are the steps since then that raised the loss.
        """
        is_checkpoint = window > 0
        oscillates = state["rises"] <= _RISES * tf.cast(window, tf.float32)
        stuck = ~state["halved"] & (state["checked_loss"] >= state["best_loss"])
        halve = is_checkpoint & (oscillates | stuck)
        return halve, {
            **state,
            "step": tf.where(halve, state["step"] / 2, state["step"]),
            "halved": tf.where(is_checkpoint, halve, state["halved"]),
            "checked_loss": tf.where(is_checkpoint, state["best_loss"], state["checked_loss"]),
            "rises": tf.where(is_checkpoint, 0.0, state["rises"]),
        }

    def move(self, number: tf.Tensor, points: tf.Tensor, gradient: tf.Tensor, state: State) -> State:
        """Returns the state with the next points; `number` is the number of steps so far."""
        images, step = state["images"], state["step"][:, None, None, None]
        momentum = tf.where(number > 0, _MOMENTUM, 1.0)
        moved = self.ball.project(points + step * self.ball.steepest(gradient), images)
        moved = points + momentum * (moved - points) + (1 - momentum) * (points - state["previous"])
        return {**state, "points": self.ball.project(moved, images), "previous": points}


class Sparse(Halving):
    """The L1 variant of Croce and Hein 2021 (arXiv:2103.01208), section 3, as their AutoAttack runs it.

    A step changes the values with the largest gradients, fewer of them the sparser the best point is. It starts in a
    ball of 3 epsilon, then 2 epsilon, and each phase begins at the best point of the one before.
    """

    ball: threats.L1Ball

    def phases(self, steps: int) -> list[tuple[threats.Ball, int]]:
        """Returns the balls in which an attack runs one after the other, each with its number of steps."""
        larger = [(factor * self.ball.radius, math.ceil(share * steps)) for factor, share in _LARGER]
        left = steps - sum(number for _, number in larger)
        if left <= 0 or not self.ball.radius:
            return [(self.ball, steps)]
        return [*((self.ball.with_radius(radius), number) for radius, number in larger), (self.ball, left)]

    def checkpoints(self, steps: int) -> list[int]:
        """Returns `steps` + 1 integers: after k steps, that since the last checkpoint; 0 if there is none after k."""
        interval = max(int(_INTERVAL * steps), 1)
        return [interval if step and step % interval == 0 else 0 for step in range(steps + 1)]

    def start(self, seeds: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns images plus normal noise, as wide as the bounds. The projection makes it sparse."""
        low, high = self.ball.bounds
        return images + (np.asarray(high) - low) * randomness.normal(seeds, tf.shape(images))

    def initial(self, images: tf.Tensor, points: tf.Tensor, is_first: bool) -> State:
        """Returns the part of the state that belongs to these rules. See `Halving`.

        A random start in the ball changes few values, and a search that begins as sparse as it stays near them. So the
        first phase begins with a fifth of the values, the paper's initial sparsity. (The authors' code counts the
        values of the start, and with them those that differ from the image by rounding: on ResNet-8 three times as
        many.)
        """
        changed = _changed(points, images)
        return {
            "step": tf.fill([tf.shape(images)[0]], self.ball.radius),
            "changed": changed,
            "share": tf.fill(tf.shape(changed), _FIRST) if is_first else changed / _SPARSER,
        }

    def checkpoint(self, window: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """Returns which examples go back to their best points, bool [batch], and the state. See `Halving`."""
        is_checkpoint = window > 0
        changed = _changed(state["result"], state["images"])
        sparser = is_checkpoint & (changed < _SAME * state["changed"])
        step = tf.maximum(state["step"] / _SPARSER, self.ball.radius / _SMALLEST)
        step = tf.where(sparser, self.ball.radius, step)
        return sparser, {
            **state,
            "step": tf.where(is_checkpoint, step, state["step"]),
            "changed": tf.where(is_checkpoint, changed, state["changed"]),
            "share": tf.where(is_checkpoint, changed / _SPARSER, state["share"]),
        }

    def move(self, number: tf.Tensor, points: tf.Tensor, gradient: tf.Tensor, state: State) -> State:
        """Returns the state with the next points. There is no momentum."""
        direction = self.ball.sparse(gradient, state["share"])
        moved = points + state["step"][:, None, None, None] * direction
        return {**state, "points": self.ball.project(moved, state["images"])}


def _changed(points, images):
    """Returns the share of the values of each image that differ, float32 [batch]."""
    return tf.reduce_mean(tf.cast(points != images, tf.float32), axis=(1, 2, 3))


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
