"""Projected gradient descent, and FGSM, which is its single step."""

import dataclasses
import numbers
import warnings
from typing import Any

import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients, randomness, survivors, threats, validation
from keras_sat.attacks.attack import Attack
from keras_sat.typing import LogitsFunction, LossFunction

_SLIP = 0.05  # steps that reach less of epsilon are in another unit; a training may take short steps on purpose


@dataclasses.dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent of a loss in a ball (Madry et al., arXiv:1706.06083), as the SAT release runs it.

        x_0 = x + noise,    x_{t+1} = project(x_t + step_size * steepest(gradient of loss at x_t))

    `PGD(LinfBall(4), steps=10)(model, images, labels, seed=0)` returns the adversarial images. See `Attack.__call__`.

    Args:
        ball: `LinfBall`, `L2Ball` or `L1Ball`: epsilon, norm and bounds.
        steps: number of gradient steps, >= 1.
        step_size: length of a step in the images' unit, > 0. None takes the ball's rule: max(1 level, epsilon / steps)
            for `LinfBall`, where a level is 1 / 255 of the bounds' range; 2.5 epsilon / steps for the others.
        random_start: True starts at a uniform random point of the ball, False at the image.
        clean_start: probability, 0..1, that the whole batch starts from the clean images instead of a random point.
            (With a seed per example, each example draws for itself.) The release trains with 0.2 and evaluates with 0.
        restarts: number of independent starts, >= 1. Of the results of all starts, the one with the largest margin of a
            wrong class is returned (of the target class, if targeted).
        targeted: whether the labels are the classes to reach. Otherwise they are the classes to leave.
        keep: "last" returns the last iterate, as the paper evaluates. "worst" returns the iterate with the largest
            margin of a wrong class (of the target class, if targeted): a misclassified iterate is never replaced by
            one that is classified correctly. "first" is as strong as "worst" and costs less: an example is finished at
            its first misclassified iterate (or the first that reaches the target). The other examples continue to the
            end and return the last iterate.
        loss: function of labels and logits that the attack ascends (descends, if targeted), see `keras_sat.losses`.
            Default: `losses.log_cross_entropy`, whose steps are those of the cross entropy, and which large logits do
            not saturate.
        start_std: None (default) for the uniform random start. A number > 0 starts at the image plus normal noise of
            this standard deviation, in the images' unit. Like the uniform noise, it is projected after the first step
            only. TRADES (arXiv:1901.08573) starts with 0.001 for images in 0..1, which is 0.255 here.
        samples: number of gradients to average in each step, >= 1, for networks with random output (EOT).

    Raises:
        ValueError: for a field with an invalid value.
    """

    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    clean_start: float = 0.0
    restarts: int = 1
    targeted: bool = False
    keep: str = "last"
    loss: LossFunction = losses.log_cross_entropy
    start_std: float | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.check_integers(self, positive=("steps", "restarts", "samples"))
        self._check_length("step_size")
        self._check_length("start_std")
        if self.start_std is not None and not self.random_start:
            raise ValueError("start_std is for a random start. Received: random_start=False")
        if not 0 <= self.clean_start <= 1:
            raise ValueError(f"clean_start is a probability, 0..1. Received: {self.clean_start!r}")
        if self.keep not in ("last", "worst", "first"):
            raise ValueError(f'keep must be "last", "worst" or "first". Received: {self.keep!r}')
        if self.steps * self.resolved_step_size < _SLIP * self.ball.radius:
            warnings.warn(validation.too_short(self.steps, self.resolved_step_size, self.ball.radius), stacklevel=3)

    def _check_length(self, name):
        value = getattr(self, name)
        if value is None:
            return
        if not (isinstance(value, numbers.Real) and 0 < value < float("inf")):
            raise ValueError(f"{name} must be positive, or None for the default. Received: {value!r}")
        object.__setattr__(self, name, float(value))  # JSON cannot represent NumPy numbers

    @property
    def resolved_step_size(self) -> float:
        """The length of a step in the images' unit."""
        return self.ball.default_step_size(self.steps) if self.step_size is None else self.step_size

    def __str__(self) -> str:
        return f"PGD-{self.steps}"

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values for a report, with the step size that is really used."""
        return super().settings() | {"step_size": self.resolved_step_size}

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example at most. A gradient counts as two."""
        return 2 * self.steps * self.samples * self.restarts

    @property
    def accepts_start(self) -> bool:
        """Whether a call may choose the point at which the attack starts: yes."""
        return True

    @property
    def accepts_scale(self) -> bool:
        """Whether a call may scale epsilon and step size: yes."""
        return True

    def for_evaluation(self) -> "PGD":
        """Returns the attack without a clean start, and with the uniform random start."""
        return dataclasses.replace(self, clean_start=0.0, start_std=None)

    def for_transfer(self) -> "PGD":
        """Returns the attack with `keep="worst"`: it continues after its first success."""
        return dataclasses.replace(self, keep="worst")

    def perturb(
        self,
        logits_fn: LogitsFunction,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        start: tf.Tensor | None = None,
        *,
        static_shapes: bool = False,
        epsilon_scale: threats.Scale = 1.0,
        step_size_scale: threats.Scale = 1.0,
    ) -> tf.Tensor:
        """Runs the algorithm. See `Attack.perturb`, and `Attack.__call__` for the scales."""
        search = _Search(self, logits_fn, epsilon_scale, self.resolved_step_size * step_size_scale)
        if self.keep == "first":
            return search.until_broken(images, labels, seed, start, static_shapes)
        worst, worst_score = None, None
        for restart in range(self.restarts):
            begin = search.start(images, randomness.fold(seed, restart)) if restart or start is None else start
            if self.keep == "worst" and not (start is None and self.start_std is None):  # it may be returned
                begin = search.project(begin, images)
            points, score = search.one_start(images, labels, begin)
            if self.restarts == 1:
                return points
            score = search.score_of(points, labels) if score is None else score
            if worst is not None:
                points, score = _larger(score, points, worst_score, worst)
            worst, worst_score = points, score
        return worst


@dataclasses.dataclass(frozen=True)
class _Search:
    """A PGD attack with the values of one call: the network, and the scales, which may be tensors in a graph."""

    attack: PGD
    logits_fn: LogitsFunction
    epsilon_scale: threats.Scale
    step_size: threats.Scale

    def until_broken(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, start: tf.Tensor | None, static_shapes: bool
    ) -> tf.Tensor:
        """Returns, for each example, the first iterate that succeeds, or else the last one."""

        def attempt(number, state):
            points = self.start(state["images"], randomness.fold(state["seeds"], number))
            if start is not None:
                points = tf.where(number == 0, state["start"], points)
            points = self.project(points, state["images"])  # the start is a candidate too, so it must be valid
            begin = {**state, "points": points, "result": points}
            result, broken = survivors.loop(step, begin, self.attack.steps + 1, static_shapes)
            return {**state, "result": result, "broken": broken}

        def step(_, state):
            points, labels = state["points"], state["labels"]
            outputs, ascent = self._ascent(points, labels)
            moved = self._move(points, ascent, state["images"])
            return {**state, "points": moved, "result": points, "broken": self._score(labels, outputs) > 0}

        state = survivors.initial_state(images, labels, seed, start)
        return survivors.loop(attempt, state, self.attack.restarts, static_shapes)[0]

    def one_start(self, images: tf.Tensor, labels: tf.Tensor, start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the images that one start keeps, and their scores for `keep="worst"`, otherwise None."""

        def step(points, worst, worst_score):
            outputs, ascent = self._ascent(points, labels)
            if keeps_worst:  # a start outside the bounds is no candidate
                valid = tf.reduce_all(points == self.attack.ball.clip(points), axis=(1, 2, 3))
                score = tf.where(valid, self._score(labels, outputs), tf.float32.min)
                worst, worst_score = _larger(score, points, worst_score, worst)
            return self._move(points, ascent, images), worst, worst_score

        keeps_worst = self.attack.keep == "worst"
        lowest = tf.fill(tf.shape(labels), tf.float32.min)
        carried = (start, start, lowest) if keeps_worst else (start, (), ())
        points, worst, worst_score = tf.while_loop(
            lambda *_: True, step, carried, maximum_iterations=self.attack.steps, parallel_iterations=1
        )
        if not keeps_worst:
            return points, None
        score = self.score_of(points, labels)
        return _larger(score, points, worst_score, worst)

    def start(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns the initial points of a start, float32 [batch, height, width, channels]."""
        if not self.attack.random_start:
            return images
        noisy = self._noisy(randomness.fold(seed, 0), images)
        if self.attack.clean_start == 0:
            return noisy
        coin_seed = randomness.fold(seed, 1)
        coins = randomness.uniform(coin_seed, [1 if seed.shape.rank == 1 else tf.shape(images)[0], 1, 1, 1])
        return tf.where(coins < self.attack.clean_start, images, noisy)

    def _noisy(self, seed, images):
        ball, deviation = self.attack.ball, self.attack.start_std
        if deviation is None:
            return ball.sample(seed, images, self.epsilon_scale)
        return images + ball.to_channels(deviation * randomness.normal(seed, tf.shape(images)))

    def score_of(self, points: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns how close the points are to success, float32 [batch]; positive if they succeed."""
        return self._score(labels, gradients.logits(self.logits_fn, points))

    def _ascent(self, points, labels):
        """Returns the logits and the gradient of the loss at the points."""
        attack = self.attack
        return gradients.averaged(self.logits_fn, attack.loss, points, labels, attack.samples)[1:]

    def _move(self, points, ascent, images):
        sign = -1.0 if self.attack.targeted else 1.0
        return self.project(points + sign * self.step_size * self.attack.ball.steepest(ascent), images)

    def project(self, points: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns the points moved into the ball and the bounds."""
        return self.attack.ball.project(points, images, self.epsilon_scale)

    def _score(self, labels, outputs):
        margin = losses.margin(labels, outputs)
        if self.attack.targeted:
            return tf.where(losses.is_finite(outputs), -margin, tf.float32.min)
        return tf.where(losses.is_finite(outputs), margin, tf.float32.max)  # not finite: misclassified


def _larger(score, points, other_score, other_points):
    """Returns the points with the larger score and that score, for each example."""
    take = score > other_score
    return tf.where(take[:, None, None, None], points, other_points), tf.where(take, score, other_score)


def FGSM(ball: threats.Ball, **options: Any) -> PGD:  # noqa: N802 - the name of the attack
    """Returns the fast gradient sign method (arXiv:1412.6572): one step of length epsilon from the image itself.

    With `random_start=True` and a step size of 1.25 epsilon, it is the attack of "fast" adversarial training
    (arXiv:2001.03994).

    Args:
        ball: `LinfBall`, `L2Ball` or `L1Ball`.
        **options: further fields of `PGD`. They replace the defaults here: `steps=1`, `step_size` epsilon,
            `random_start=False`.
    """
    fields: dict[str, Any] = {"steps": 1, "step_size": ball.radius or None, "random_start": False}
    return PGD(ball, **(fields | options))
