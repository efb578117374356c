"""FAB: walks along the decision boundary towards the image, for the smallest perturbation."""

import dataclasses

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, inputs, randomness, survivors, threats

_OVERSHOOT = 1.05  # eta in the paper: how far beyond the plane a projection goes
_BIAS = 0.1  # alpha_max: the largest share of the step that is taken from the image itself
_BACKWARD = 0.9  # beta: how much of the perturbation an adversarial point keeps
_PRECISION = 1e-5  # of the projection: far below the overshoot, above what rounding does to a sum over an image
_FAR = 1e10  # a distance beyond all


@dataclasses.dataclass(frozen=True)
class FAB:
    """Fast adaptive boundary attack (Croce and Hein 2020, arXiv:1907.02044), with the settings of AutoAttack.

    Each step linearises the decision boundary at the point and projects both the point and the image onto it, within
    the bounds; the next point is a mean of the two, a little beyond the plane. An adversarial point is drawn back
    towards the image. It needs no step size, and seeks the smallest perturbation rather than the worst in a ball.

    Args:
        ball: `LinfBall` or `L2Ball`: the norm to be small in; what is returned lies in it.
        steps: steps of a start, >= 1.
        restarts: number of starts (for each target): the first from the image, others from a random point within half
            of epsilon.
        targets: number of target classes to aim at in turn, the likeliest first, one gradient a step (FAB-T); more
            than there are other classes are cut to these. 0 aims at the nearest boundary of all classes: as many
            gradients a step as there are classes.
        keep: "first" is done with an example whose perturbation fits into the ball, for robust accuracy; "closest"
            goes on to the end, for the smallest perturbation.
        survivors: "compact" takes examples that are done out of the batch; "mask" keeps the shapes, for XLA and TPU.

    Raises:
        ValueError: for a configuration that cannot be run.
    """

    ball: threats.Ball
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    keep: str = "first"
    survivors: str = "compact"

    def __post_init__(self):
        inputs.check_fields(self, positive=("steps", "restarts"), not_negative=("targets",))
        if self.keep not in ("first", "closest"):
            raise ValueError(f'keep must be "first" or "closest". Received: {self.keep!r}')

    def __str__(self):
        return "FAB-T" if self.targets else "FAB"

    def settings(self):
        """Returns the configuration as plain values for a report."""
        return inputs.settings(self)

    @property
    def passes(self):
        """Forward passes that an example costs at most; a gradient counts as two. (For FAB, of ten classes.)"""
        return (3 if self.targets else 12) * self.steps * self.restarts * max(1, self.targets)

    def __call__(self, logits_fn, images, labels, seed=0):
        """Returns adversarial images: as `PGD`, which see. Where none was found in the ball, the image's own point.

        The closest adversarial image that lies beyond the ball is returned projected into it.
        """
        return inputs.run(self, logits_fn, images, labels, seed)

    def perturb(self, logits_fn, images, labels, seed):
        """The attack itself, on float32 images, int labels and a seed of shape [2] or [batch, 2] that were checked."""

        def attempt(number, state):
            restart = number % self.restarts
            target = tf.gather(state["targets"], number // self.restarts, axis=1)
            points = tf.where(restart > 0, self._random_point(state, number), state["images"])
            walk = {**state, "target": target, "points": points}
            closest, broken = survivors.loop(step, walk, self.steps, self.survivors)
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

        targets = inputs.target_classes(self, logits_fn, images, labels)
        state = inputs.initial_state(images, labels, seed, targets=targets)
        closest = survivors.loop(attempt, state, self.restarts * targets.shape[1], self.survivors)[0]
        return self.ball.project(closest, images)

    def _distance(self, state):
        """Returns the distance of the closest adversarial image so far; the image itself stands for none."""
        distance = self.ball.distance(state["result"], state["images"])
        return tf.where(distance > 0, distance, _FAR)

    def _random_point(self, state, number):
        noise = self.ball.sample(randomness.fold(state["seeds"], number), state["images"]) - state["images"]
        return self.ball.clip(state["images"] + noise / 2)

    def _walk(self, logits_fn, state):
        """Returns the next points."""
        images, points = state["images"], state["points"]
        # Where the logits are not finite there is no plane to go to: the point is drawn towards the image.
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

            difference, _, normal = gradients.value_and_gradient(logits_fn, loss, points, labels)
            return difference, normal
        logits, jacobian = gradients.jacobian(logits_fn, points)
        differences = logits - tf.gather(logits, labels, axis=1, batch_dims=1)[:, None]
        normals = jacobian - tf.gather(jacobian, labels, axis=1, batch_dims=1)[:, None]
        distances = tf.abs(differences) / (1e-12 + tf.map_fn(self._dual_norm, normals))
        nearest = tf.argmax(losses.without_label(labels, -distances), axis=1)
        return (tf.gather(values, nearest, axis=1, batch_dims=1) for values in (differences, normals))

    def _to_plane(self, points, normal, value):
        """Returns the smallest step, in the ball's norm, from the points to where value + normal . step = 0.

        Within the bounds. Pixel i moves by min(t v_i, room_i), in the direction that lowers |value|, with v_i = 1 for
        L-inf and |normal_i| for L2. What that gains, sum |normal_i| min(t v_i, room_i), is concave in t, so Newton's
        method climbs from t = 0 without overshooting, and ends after few steps, for the gain is piecewise linear.
        Where even the farthest corner does not reach the plane, it is the corner.
        """
        low, high = self.ball.bounds
        direction = -tf.sign(normal) * tf.sign(value)[:, None, None, None]
        room = self.ball.narrowed(tf.where(direction > 0, high - points, points - low))
        weight = self.ball.widened(tf.abs(normal))
        speed = tf.ones_like(weight) if self.ball.norm == "linf" else weight
        goal = tf.abs(value)

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
        return self.ball.widened(direction * tf.minimum(t[:, None, None, None] * speed, room))

    def _norm(self, delta):
        return self.ball.length(delta)[:, None, None, None]

    def _dual_norm(self, x):
        """Returns the norm of gradients that bounds what a perturbation of unit norm can change: l1 for linf, or l2."""
        x = self.ball.widened(x)
        if self.ball.norm == "linf":
            return tf.reduce_sum(tf.abs(x), axis=(1, 2, 3))
        return tf.sqrt(tf.reduce_sum(tf.square(x), axis=(1, 2, 3)))


def _finite(x):
    return tf.where(tf.math.is_finite(x), x, 0.0)


def _dot(x, y):
    return tf.reduce_sum(x * y, axis=(1, 2, 3))
