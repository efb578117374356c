"""FAB: walks along the decision boundary towards the image, to find the smallest perturbation."""

import dataclasses

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, randomness, survivors, validation
from keras_sat.attacks.attack import Attack, target_classes
from keras_sat.typing import LogitsFunction

_OVERSHOOT = 1.05  # eta in the paper: a projection goes this far beyond the plane
_BIAS = 0.1  # alpha_max in the paper: largest weight of the step that starts at the image
_BACKWARD = 0.9  # beta in the paper: share of its perturbation that an adversarial point keeps
# Relative tolerance of the projection: far below the overshoot, above the rounding error of a sum over an image.
_PRECISION = 1e-5
_FAR = 1e10  # larger than any distance


@dataclasses.dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary attack (Croce and Hein 2020, arXiv:1907.02044), with the settings of AutoAttack.

    Each step linearises the decision boundary at the point, and projects both the point and the image onto it, within
    the bounds. The next point is a weighted mean of the two, slightly beyond the boundary. A misclassified point is
    moved back towards the image. FAB needs no step size. It looks for the smallest perturbation, not for the largest
    loss in a ball. It returns the closest misclassified image, projected into the ball. If there is none, it returns
    the image itself.

    Args:
        ball: `LinfBall`, `L2Ball` or `L1Ball`: the norm to minimise, and the ball of the images that are returned.
        steps: steps of each start, >= 1.
        restarts: number of starts (for each target class), >= 1. The first starts at the image, others at a random
            point within half of epsilon.
        targets: number of target classes to aim at one after the other, the most likely first, with one gradient per
            step (FAB-T). If there are fewer other classes, all of them are tried, with a warning. 0 aims at the
            nearest boundary of all classes, which takes as many gradients per step as there are classes.
        keep: "first" is for robust accuracy: an example is finished as soon as a misclassified image is in the ball.
            "closest" is for the smallest perturbation: all examples continue to the end.
        samples: number of gradients to average in each step, >= 1, for networks with random output (EOT).

    Raises:
        ValueError: for a field with an invalid value.
    """

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    keep: str = "first"
    samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.check_integers(self, positive=("steps", "restarts", "samples"), not_negative=("targets",))
        if self.keep not in ("first", "closest"):
            raise ValueError(f'keep must be "first" or "closest". Received: {self.keep!r}')

    def __str__(self) -> str:
        return "FAB-T" if self.targets else "FAB"

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example at most. A gradient counts as two. With targets=0, ten classes are assumed."""
        gradient = (2 if self.targets else 11) * self.samples
        return (gradient + 1) * self.steps * self.restarts * max(1, self.targets)

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
            restart = number % self.restarts
            target = tf.gather(state["targets"], number // self.restarts, axis=1)
            points = tf.where(restart > 0, self._random_point(state, number), state["images"])
            walk = {**state, "target": target, "points": points}
            closest, broken = survivors.loop(step, walk, self.steps, static_shapes)
            return {**state, "result": closest, "broken": broken & (self.keep == "first")}

        def step(_, state):
            images, labels = state["images"], state["labels"]
            points = self._walk(logits_fn, state)
            wrong = losses.is_broken(labels, gradients.logits(logits_fn, points))
            distance = self.ball.distance(points, images)
            pick = (wrong & (distance < self._distance(state)))[:, None, None, None]
            drawn_back = images + _BACKWARD * (points - images)
            return {
                **state,
                "points": tf.where(wrong[:, None, None, None], drawn_back, points),
                "result": tf.where(pick, points, state["result"]),
                "broken": wrong & (distance <= self.ball.radius) & (self.keep == "first"),
            }

        targets = target_classes(logits_fn, images, labels, self.targets, str(self))
        state = survivors.initial_state(images, labels, seed, targets=targets)
        closest = survivors.loop(attempt, state, self.restarts * targets.shape[1], static_shapes)[0]
        return self.ball.project(closest, images)

    def _distance(self, state):
        """Returns the distance of the closest misclassified image so far; `_FAR` if there is none."""
        distance = self.ball.distance(state["result"], state["images"])
        return tf.where(distance > 0, distance, _FAR)

    def _random_point(self, state, number):
        noise = self.ball.sample(randomness.fold(state["seeds"], number), state["images"]) - state["images"]
        return self.ball.clip(state["images"] + noise / 2)

    def _walk(self, logits_fn, state):
        """Returns the next points."""
        images, points = state["images"], state["points"]
        # If the logits are not finite, there is no plane to project onto: the point moves towards the image.
        difference, normal = map(_finite, self._boundary(logits_fn, state))
        step = self._to_plane(points, normal, difference)
        from_image = self._to_plane(images, normal, difference + _dot(normal, images - points))
        length, other = (tf.maximum(self._norm(delta), 1e-8) for delta in (step, from_image))
        bias = tf.minimum(length / (length + other), _BIAS)
        moved = (1 - bias) * (points + _OVERSHOOT * step) + bias * (images + _OVERSHOOT * from_image)
        return self.ball.clip(moved)

    def _boundary(self, logits_fn, state):
        """Returns logits[other] - logits[label] at the points, and its gradient."""
        points, labels = state["points"], state["labels"]
        if self.targets:

            def loss(labels, logits):
                return losses.targeted_margin(labels, state["target"], logits)

            difference, _, normal = gradients.averaged(logits_fn, loss, points, labels, self.samples)
            return difference, normal
        logits, jacobian = gradients.jacobian(logits_fn, points, self.samples)
        differences = logits - tf.gather(logits, labels, axis=1, batch_dims=1)[:, None]
        normals = jacobian - tf.gather(jacobian, labels, axis=1, batch_dims=1)[:, None]
        distances = tf.abs(differences) / (1e-12 + tf.map_fn(self._dual_norm, normals))
        nearest = tf.argmax(losses.without_label(labels, -distances), axis=1)
        return (tf.gather(values, nearest, axis=1, batch_dims=1) for values in (differences, normals))

    def _to_plane(self, points, normal, value):
        """Returns the smallest step, in the ball's norm, from the points to the plane value + normal . step = 0.

        The step stays within the bounds. Pixel i moves by min(t v_i, room_i), in the direction that lowers |value|,
        with v_i = 1 for L-inf and |normal_i| for L2. The gain, sum |normal_i| min(t v_i, room_i), is concave and
        piecewise linear in t. So Newton's method climbs from t = 0 without overshooting, and ends after a few steps.
        For L1, the pixels with the largest |normal_i| move first. If even the farthest corner of the bounds does not
        reach the plane, the step leads to this corner.
        """
        low, high = self.ball.bounds
        direction = -tf.sign(normal) * tf.sign(value)[:, None, None, None]
        room = self.ball.from_channels(tf.where(direction > 0, high - points, points - low))
        weight = self.ball.to_channels(tf.abs(normal))
        goal = tf.abs(value)
        if self.ball.norm == "l1":
            return self.ball.to_channels(direction * _largest_first(weight, room, goal))
        speed = tf.ones_like(weight) if self.ball.norm == "linf" else weight

        def climb(t, _):
            moved = t[:, None, None, None] * speed
            missing = goal - tf.reduce_sum(weight * tf.minimum(moved, room), axis=(1, 2, 3))
            slope = tf.reduce_sum(tf.where(moved < room, weight * speed, 0.0), axis=(1, 2, 3))
            climbs = (missing > _PRECISION * goal) & (slope > 0)
            return tf.where(climbs, t + missing / tf.where(climbs, slope, 1.0), t), tf.reduce_any(climbs)

        t, _ = tf.while_loop(
            lambda _, climbing: climbing,
            climb,
            (tf.zeros_like(goal), tf.constant(True)),
            maximum_iterations=50,
            parallel_iterations=1,
        )
        return self.ball.to_channels(direction * tf.minimum(t[:, None, None, None] * speed, room))

    def _norm(self, delta):
        return self.ball.length(delta)[:, None, None, None]

    def _dual_norm(self, x):
        """Returns the dual norm of a gradient: the largest change that a perturbation of unit norm can cause."""
        x = self.ball.to_channels(x)
        if self.ball.norm == "linf":
            return tf.reduce_sum(tf.abs(x), axis=(1, 2, 3))
        if self.ball.norm == "l1":
            return tf.reduce_max(tf.abs(x), axis=(1, 2, 3))
        return tf.sqrt(tf.reduce_sum(tf.square(x), axis=(1, 2, 3)))


def _largest_first(weight, room, goal):
    """Returns the smallest steps, in L1, whose gain sum_i weight_i step_i is the goal: the largest weights go first.

    Each pixel moves by all of its room before the pixel of the next smaller weight moves.
    """
    weights, rooms = (tf.reshape(x, [tf.shape(x)[0], -1]) for x in (weight, room))
    order = tf.argsort(weights, axis=1, direction="DESCENDING")
    weights, rooms = (tf.gather(x, order, axis=1, batch_dims=1) for x in (weights, rooms))
    before = tf.cumsum(weights * rooms, axis=1, exclusive=True)
    steps = tf.clip_by_value(tf.math.divide_no_nan(goal[:, None] - before, weights), 0.0, rooms)
    return tf.reshape(tf.gather(steps, tf.argsort(order, axis=1), axis=1, batch_dims=1), tf.shape(weight))


def _finite(x):
    return tf.where(tf.math.is_finite(x), x, 0.0)


def _dot(x, y):
    return tf.reduce_sum(x * y, axis=(1, 2, 3))
