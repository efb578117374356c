"""Projected gradient descent, and FGSM, which is its single step."""

import dataclasses
import numbers
from collections.abc import Callable

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, inputs, randomness, survivors, threats


@dataclasses.dataclass(frozen=True)
class PGD:
    """Projected gradient ascent of a loss in a ball (Madry et al., arXiv:1706.06083), as the SAT release runs it.

        x_0 = x + noise,    x_{t+1} = project(x_t + step_size * steepest(gradient of loss at x_t))

    `PGD(LinfBall(4), steps=10)(model, images, labels, seed=0)` returns the adversarial images. An attack is a frozen
    configuration: it keeps no state, and `dataclasses.replace` varies it. It runs eagerly (as one compiled loop), in
    a tf.function, under XLA and in a replica of a tf.distribute strategy.

    Args:
        ball: `LinfBall` or `L2Ball`: epsilon, norm and bounds.
        steps: number of gradient steps, >= 1.
        step_size: length of a step in the images' unit; None takes the ball's rule: max(1 pixel, epsilon / steps) for
            `LinfBall`, 2.5 epsilon / steps for `L2Ball`.
        random_start: starts at a uniform point of the ball; False starts at the image.
        clean_start: probability with which a batch (one coin for all of it) starts at the images all the same. The
            release trains with 0.2 and evaluates with 0.
        restarts: number of independent starts; an example keeps its worst result over them.
        targeted: the labels given are the classes to reach, not the classes to leave.
        keep: "last" returns the last iterate, as the paper evaluates; "worst" the worst of all iterates, for each
            example. Worst is the largest margin of a wrong class (of the target, when targeted), so that a
            misclassified image is never given up for one that is classified correctly. "first" is as strong as
            "worst" and costs less: an example is done with its first misclassified iterate (its first that is
            classified as the target), and the others are tried to the end, of all restarts.
        loss: what is ascended (descended, when targeted): a function of labels and logits from `keras_sat.losses`.
        survivors: of `keep="first"`: "compact" takes examples that are done out of the batch; "mask" keeps the
            shapes, for XLA and TPU.

    Raises:
        ValueError: for a configuration that cannot be run.
    """

    ball: threats.Ball
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    clean_start: float = 0.0
    restarts: int = 1
    targeted: bool = False
    keep: str = "last"
    loss: Callable = losses.cross_entropy
    survivors: str = "compact"

    def __post_init__(self):
        inputs.check_fields(self, positive=("steps", "restarts"))
        if self.step_size is not None and not (isinstance(self.step_size, numbers.Real) and self.step_size > 0):
            raise ValueError(f"step_size must be positive, or None for the default. Received: {self.step_size!r}")
        if self.step_size is not None:
            object.__setattr__(self, "step_size", float(self.step_size))  # NumPy's are not written as JSON
        if not 0 <= self.clean_start <= 1:
            raise ValueError(f"clean_start is a probability, 0..1. Received: {self.clean_start!r}")
        if self.keep not in ("last", "worst", "first"):
            raise ValueError(f'keep must be "last", "worst" or "first". Received: {self.keep!r}')

    @property
    def resolved_step_size(self):
        """The length of a step, in the images' unit."""
        return self.ball.default_step_size(self.steps) if self.step_size is None else self.step_size

    def __str__(self):
        return f"PGD-{self.steps}"

    def settings(self):
        """Returns the configuration as plain values for a report: what another tool needs to run the same attack."""
        return inputs.settings(self) | {"step_size": self.resolved_step_size}

    @property
    def passes(self):
        """Forward passes that an example costs at most; a gradient counts as two."""
        return 2 * self.steps * self.restarts

    def __call__(self, logits_fn, images, labels, seed=0, start=None):
        """Returns adversarial images.

        Args:
            logits_fn: a Keras model or a function, maps images to logits [batch, classes]. Pass the same object for
                every batch, not a lambda or a bound method made anew: the loop is compiled once for each object.
            images: [batch, height, width, channels], uint8 or float, within the ball's bounds.
            labels: int [batch], in 0..classes-1.
            seed: an int, or an int tensor of shape [2]: the same seed gives the same images. Of shape [batch, 2], one
                seed for each image: what becomes of it does then not depend on the batch it is in.
            start: images like `images` to begin from, such as the result for a smaller epsilon; None for the configured
                start. Further restarts begin as configured.

        Returns:
            float32, of the shape of `images`; within the ball and the bounds to 1e-5.

        Raises:
            ValueError: for images outside the bounds or not finite, labels outside the classes, or a `logits_fn` that
                returns probabilities. (Inside a tf.function, images outside the bounds raise InvalidArgumentError.)
        """
        return inputs.run(self, logits_fn, images, labels, seed, start)

    def perturb(self, logits_fn, images, labels, seed, start=None):
        """The attack itself, on float32 images, int labels and a seed of shape [2] that were checked."""
        if self.keep == "first":
            return self._until_broken(logits_fn, images, labels, seed, start)
        worst, worst_score = None, None
        for restart in range(self.restarts):
            begin = self._start(images, randomness.fold(seed, restart)) if restart or start is None else start
            points, score = self._one_start(logits_fn, images, labels, begin)
            if self.restarts == 1:
                return points
            score = self._score(labels, gradients.logits(logits_fn, points)) if score is None else score
            if worst is not None:
                points, score = _larger(score, points, worst_score, worst)
            worst, worst_score = points, score
        return worst

    def _until_broken(self, logits_fn, images, labels, seed, start):
        """Returns the first iterates that reach the aim, or else the last ones."""

        def attempt(number, state):
            points = self._start(state["images"], randomness.fold(state["seeds"], number))
            if start is not None:
                points = tf.where(number == 0, state["start"], points)
            points = self.ball.project(points, state["images"])  # as others do: the start is a candidate too
            begin = {**state, "points": points, "result": points}
            result, broken = survivors.loop(step, begin, self.steps + 1, self.survivors)
            return {**state, "result": result, "broken": broken}

        def step(_, state):
            points, labels = state["points"], state["labels"]
            _, outputs, ascent = gradients.value_and_gradient(logits_fn, self.loss, points, labels)
            moved = self._move(points, ascent, state["images"])
            return {**state, "points": moved, "result": points, "broken": self._score(labels, outputs) > 0}

        state = inputs.initial_state(images, labels, seed, start)
        return survivors.loop(attempt, state, self.restarts, self.survivors)[0]

    def _one_start(self, logits_fn, images, labels, start):
        """Returns the images kept from one start, and their scores where they were needed ("worst") or None."""

        def step(points, worst, worst_score):
            _, outputs, ascent = gradients.value_and_gradient(logits_fn, self.loss, points, labels)
            if self.keep == "worst":  # the start itself may lie outside the bounds, and is then no candidate
                valid = tf.reduce_all(points == self.ball.clip(points), axis=(1, 2, 3))
                score = tf.where(valid, self._score(labels, outputs), tf.float32.min)
                worst, worst_score = _larger(score, points, worst_score, worst)
            return self._move(points, ascent, images), worst, worst_score

        lowest = tf.fill(tf.shape(labels), tf.float32.min)
        carried = (start, start, lowest) if self.keep == "worst" else (start, (), ())
        points, worst, worst_score = tf.while_loop(
            lambda *_: True, step, carried, maximum_iterations=self.steps, parallel_iterations=1
        )
        if self.keep == "last":
            return points, None
        score = self._score(labels, gradients.logits(logits_fn, points))
        return _larger(score, points, worst_score, worst)

    def _start(self, images, seed):
        if not self.random_start:
            return images
        noisy = self.ball.sample(randomness.fold(seed, 0), images)
        if self.clean_start == 0:
            return noisy
        coin_seed = randomness.fold(seed, 1)
        coins = randomness.uniform(coin_seed, [1 if seed.shape.rank == 1 else tf.shape(images)[0], 1, 1, 1])
        return tf.where(coins < self.clean_start, images, noisy)

    def _move(self, points, ascent, images):
        sign = -1.0 if self.targeted else 1.0
        return self.ball.project(points + sign * self.resolved_step_size * self.ball.steepest(ascent), images)

    def _score(self, labels, outputs):
        margin = losses.margin(labels, outputs)
        if self.targeted:
            return tf.where(losses.is_finite(outputs), -margin, tf.float32.min)
        return tf.where(losses.is_finite(outputs), margin, tf.float32.max)  # no answer is the worst answer


def _larger(score, points, other_score, other_points):
    """Returns, for each example, the points with the larger score, and that score."""
    take = score > other_score
    return tf.where(take[:, None, None, None], points, other_points), tf.where(take, score, other_score)


def FGSM(ball, **options):  # noqa: N802 - the attack's name
    """Returns the fast gradient sign method (arXiv:1412.6572): one step of length epsilon from the image itself.

    With `random_start=True` it is the single step of "fast" adversarial training.

    Args:
        ball: `LinfBall` or `L2Ball`.
        **options: further fields of `PGD`.
    """
    return PGD(ball, **{"steps": 1, "step_size": ball.radius or None, "random_start": False, **options})
