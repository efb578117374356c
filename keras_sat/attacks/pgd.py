"""Projected gradient descent, and FGSM, which is its single step."""

import dataclasses
import numbers
from collections.abc import Callable

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, inputs, threats


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
            misclassified image is never given up for one that is classified correctly.
        loss: what is ascended (descended, when targeted): a function of labels and logits from `keras_sat.losses`.

    Raises:
        ValueError: for a configuration that cannot be run.
    """

    ball: threats.LinfBall | threats.L2Ball
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    clean_start: float = 0.0
    restarts: int = 1
    targeted: bool = False
    keep: str = "last"
    loss: Callable = losses.cross_entropy

    def __post_init__(self):
        if not isinstance(self.ball, (threats.LinfBall, threats.L2Ball)):
            raise ValueError(f"ball must be a LinfBall or an L2Ball, such as LinfBall(4). Received: {self.ball!r}")
        for name in ("steps", "restarts"):
            if not (isinstance(getattr(self, name), numbers.Integral) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be an integer >= 1. Received: {getattr(self, name)!r}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, or None for the default. Received: {self.step_size!r}")
        if not 0 <= self.clean_start <= 1:
            raise ValueError(f"clean_start is a probability, 0..1. Received: {self.clean_start!r}")
        if self.keep not in ("last", "worst"):
            raise ValueError(f'keep must be "last" or "worst". Received: {self.keep!r}')

    @property
    def resolved_step_size(self):
        """The length of a step, in the images' unit."""
        return self.ball.default_step_size(self.steps) if self.step_size is None else self.step_size

    def __str__(self):
        return f"PGD-{self.steps}"

    def settings(self):
        """Returns the configuration as plain values for a report: what another tool needs to run the same attack."""
        return {
            **dataclasses.asdict(self.ball),
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "ball"},
            "attack": type(self).__name__,
            "norm": self.ball.norm,
            "step_size": self.resolved_step_size,
            "loss": self.loss.__name__,
        }

    def __call__(self, logits_fn, images, labels, seed=0):
        """Returns adversarial images.

        Args:
            logits_fn: a Keras model or a function, maps images to logits [batch, classes]. Pass the same object for
                every batch, not a lambda or a bound method made anew: the loop is compiled once for each object.
            images: [batch, height, width, channels], uint8 or float, within the ball's bounds.
            labels: int [batch], in 0..classes-1.
            seed: an int, or an int tensor of shape [2]: the same seed gives the same images.

        Returns:
            float32, of the shape of `images`; within the ball and the bounds to 1e-5.

        Raises:
            ValueError: for images outside the bounds or not finite, labels outside the classes, or a `logits_fn` that
                returns probabilities. (Inside a tf.function, images outside the bounds raise InvalidArgumentError.)
        """
        return inputs.run(self, logits_fn, images, labels, seed)

    def perturb(self, logits_fn, images, labels, seed):
        """The attack itself, on float32 images, int labels and a seed of shape [2] that were checked."""
        worst, worst_score = None, None
        for restart in range(self.restarts):
            restart_seed = tf.random.experimental.stateless_fold_in(seed, restart, alg=threats.RNG)
            points, score = self._one_start(logits_fn, images, labels, restart_seed)
            if self.restarts == 1:
                return points
            score = self._score(labels, gradients.logits(logits_fn, points)) if score is None else score
            if worst is not None:
                points, score = _larger(score, points, worst_score, worst)
            worst, worst_score = points, score
        return worst

    def _one_start(self, logits_fn, images, labels, seed):
        """Returns the images kept from one start, and their scores where they were needed ("worst") or None."""

        def step(points, worst, worst_score):
            _, outputs, ascent = gradients.value_and_gradient(logits_fn, self.loss, points, labels)
            if self.keep == "worst":  # the start itself may lie outside the bounds, and is then no candidate
                low, high = self.ball.bounds
                valid = tf.reduce_all((points >= low) & (points <= high), axis=(1, 2, 3))
                score = tf.where(valid, self._score(labels, outputs), tf.float32.min)
                worst, worst_score = _larger(score, points, worst_score, worst)
            sign = -1.0 if self.targeted else 1.0
            moved = points + sign * self.resolved_step_size * self.ball.steepest(ascent)
            return self.ball.project(moved, images), worst, worst_score

        start = self._start(images, seed)
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
        noise_seed, coin_seed = tf.unstack(tf.random.split(seed, 2, alg=threats.RNG))
        noisy = self.ball.sample(noise_seed, images)
        if self.clean_start == 0:
            return noisy
        return tf.where(tf.random.stateless_uniform([], coin_seed, alg=threats.RNG) < self.clean_start, images, noisy)

    def _score(self, labels, outputs):
        margin = losses.margin(labels, outputs)
        return -margin if self.targeted else margin


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
    return PGD(ball, **{"steps": 1, "step_size": ball.epsilon or None, "random_start": False, **options})
