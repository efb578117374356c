"""Checks whether a network is robust, or only hides its gradients from attacks (gradient masking)."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import data, deployed, files, losses, tables
from keras_sat.attacks import gradients, judging, validation
from keras_sat.attacks.attack import Attack
from keras_sat.attacks.pgd import FGSM, PGD
from keras_sat.attacks.square import Square
from keras_sat.attacks.threats import Ball
from keras_sat.lines import Line
from keras_sat.typing import Dataset, LogitsFunction, Path

_SLACK = 0.02  # an attack may be weaker by this share of the examples, by chance
_MUST_BREAK = 0.05  # an attack with four times epsilon must break at least this share of the examples more
_FEW = 20  # images: a check that one image decides is none
PASS, FAIL, SKIP = "pass", "FAIL", "not run"


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of an audit.

    Attributes:
        name: name of the check.
        outcome: "pass", "FAIL" or "not run".
        measured: the measured values, as text.
        meaning: an explanation of a failure.
    """

    name: str
    outcome: str
    measured: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """The results of `audit`: `report.passed`, `print(report.table())`, `report["randomness"].outcome`.

    Attributes:
        checks: a list of `Check`.
        images: the number of images that were attacked; None if it is unknown.
    """

    checks: list[Check]
    images: int | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.outcome != FAIL for check in self.checks)

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [check.name for check in self.checks if check.outcome == FAIL]

    def __getitem__(self, name: str) -> Check:
        """Returns the check of this name.

        Raises:
            KeyError: if there is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"The audit has no check {name!r}; it has {[check.name for check in self.checks]}")

    def table(self) -> str:
        """Returns the audit as plain text: a line for each check, an explanation of each failure, and the verdict."""
        lines = [tables.text(*((check.name, check.outcome, check.measured) for check in self.checks))]
        lines += [f"\n{check.name}: {check.meaning}" for check in self.checks if check.outcome == FAIL]
        return "\n".join([*lines, "", self.verdict])

    @property
    def verdict(self) -> str:
        """Sentences: which checks failed, or that none did; and whether there were too few images to tell."""
        few = self.images is not None and self.images < _FEW
        only = f" It had {self.images} images only, which is too few to tell." if few else ""
        if self.failed:
            failed = f"{', '.join(self.failed)} (of {len(self._ran())} checks)"
            return f"Audit failed: {failed}. The robust accuracy under gradient-based attacks is likely too high.{only}"
        return (
            f"Audit passed: none of {len(self._ran())} checks found gradient masking. This does not prove that there "
            f"is none.{only}"
        )

    def _ran(self):
        return [check.name for check in self.checks if check.outcome != SKIP]

    def to_json(self, path: Path) -> None:
        """Writes the audit to a JSON file. See `files.atomic_write`."""
        files.write_json(
            path,
            {
                "passed": self.passed,
                "images": self.images,
                "checks": [dataclasses.asdict(check) for check in self.checks],
            },
        )


MEANINGS = {
    "softmax in the output": "A softmax saturates, and its gradient vanishes: attack the logits.",
    "randomness": "The output is random: average gradients over it, by samples= of the attacks, or take "
    'AutoAttack(ball, version="rand").',
    "gradients": "Where a gradient is zero, not finite or missing, a gradient-based attack makes no progress: in the "
    "backward pass, replace the operation that causes it by something smooth (attacks.bpda), or attack with Square.",
    "one step or many": "An attack with many steps is weaker than one with a single step: the gradients mislead it.",
    "larger epsilon": "A larger ball contains the smaller one, so an attack must break more images in it. It does not: "
    "the gradients mislead it.",
    "unbounded epsilon": "If every image is allowed, each one can be misclassified. The attack does not find how: the "
    "gradients mislead it.",
    "black box": "A random search that sees only the logits breaks more images than PGD: the gradients mislead PGD.",
    "transfer": "Adversarial images of another network break more images than PGD on this network does: the gradients "
    "mislead PGD.",
    "loss over steps": "More steps must raise the loss, and do not: the gradients do not point upwards.",
}


def audit(
    model: LogitsFunction | Path,
    dataset: Dataset,
    ball: Ball,
    *,
    seed: int = 0,
    examples: int = 128,
    steps: int = 20,
    queries: int = 500,
    surrogate: LogitsFunction | None = None,
    progress: bool = True,
) -> AuditReport:
    """Checks whether a robust accuracy comes from robustness or from gradient masking.

    The checks are recommended by Athalye et al. (2018, arXiv:1802.00420) and Carlini et al. (2019, arXiv:1902.06705).
    On images that the model classifies correctly, they compare gradient-based attacks with a random search and, if a
    `surrogate` is given, with adversarial examples of the surrogate. A network without gradient masking passes all
    checks. Passing them does not prove robustness. The report explains each failure.

    Args:
        model: a Keras classifier, a function from images to logits [batch, classes], or the path of a SavedModel.
        dataset: see `evaluate`.
        ball: `LinfBall`, `L2Ball` or `L1Ball`, with the epsilon for which robustness is claimed.
        seed: the same seed gives the same audit. Default: 0.
        examples: largest number of correctly classified examples to use. Default: 128.
        steps: gradient steps of PGD. The check with an unbounded ball uses ten times as many. Default: 20.
        queries: queries of `Square`. Default: 500.
        surrogate: another network for the same images, whose adversarial examples the check "transfer" uses, for
            example one that was trained without the defence. None (default): this check does not run.
        progress: whether to show on stdout which check runs.

    Returns:
        An `AuditReport`.

    Raises:
        ValueError: if no example is classified correctly, or for an invalid dataset, see `evaluate`.
    """
    validation.check_ball(ball)
    line = Line(enabled=progress)
    line.show(f"Auditing for gradient masking, on up to {examples} images ...", is_due=True)
    network = gradients.inference(deployed.model_of(model))
    images, labels = _take(network, dataset, examples)
    validation.check_range(images, ball.bounds)
    auditor = _Auditor(network, images, labels, ball, seed, steps)
    questions = {
        "softmax in the output": auditor.softmax,
        "randomness": auditor.randomness,
        "gradients": auditor.gradients,
        "one step or many": auditor.one_or_many,
        "larger epsilon": auditor.larger_epsilon,
        "unbounded epsilon": auditor.unbounded,
        "black box": lambda: auditor.black_box(queries),
        "transfer": lambda: auditor.transfer(surrogate),
        "loss over steps": auditor.loss_over_steps,
    }
    checks = []
    for number, (name, ask) in enumerate(questions.items(), 1):
        line.show(f"audit: check {number} of {len(questions)}, {name}", is_due=line.is_terminal)
        checks.append(Check(name, *ask(), MEANINGS[name]))
    line.write(f"audit: {len(images)} images, {len(questions)} checks")
    return AuditReport(checks, len(images))


def _take(model, dataset, count):
    """Returns up to `count` images that the model classifies correctly, and their labels."""
    images, labels, not_finite, logits_fn = [], [], 0, None
    for x, y in data.batches(dataset, count):
        x = tf.cast(x, tf.float32)
        logits_fn = logits_fn or _as_logits(model, losses.probabilities(model, x))
        y = losses.hard_labels(y, gradients.logits(logits_fn, x[:1]).shape[-1])
        judgement = judging.judge(logits_fn, x, y)
        not_finite += int(tf.math.count_nonzero(tf.math.is_nan(judgement.margin)))
        images.append(tf.boolean_mask(x, judgement.is_correct))
        labels.append(tf.boolean_mask(y, judgement.is_correct))
        if sum(map(len, labels)) >= count:
            break
    if sum(map(len, labels)) == 0:
        raise ValueError(
            "No example is classified correctly: there is nothing to audit. Check labels, weights and preprocessing."
            + (f" (For {not_finite} a logit is NaN or infinite.)" if not_finite else "")
        )
    return tf.cast(tf.concat(images, 0)[:count], tf.float32), tf.concat(labels, 0)[:count]


class _Auditor:
    """The examples, and a method for each check that returns (outcome, measured values as text). See `Check`."""

    def __init__(self, model: Any, images: tf.Tensor, labels: tf.Tensor, ball: Ball, seed: int, steps: int) -> None:
        self.images, self.labels, self.ball, self.seed, self.steps = images, labels, ball, seed, steps
        self.raw = model
        self.probabilities = losses.probabilities(model, images)
        # The other checks need logits, because attacks raise ValueError for probabilities.
        self.model = _as_logits(model, self.probabilities)
        self.has_gradient = True
        self.attacked: dict[tuple[Attack, float | None], float] = {}

    def softmax(self) -> tuple[str, str]:
        kind = self.probabilities
        return _outcome(kind is None), "logits" if kind is None else f"probabilities ({kind})"

    def randomness(self) -> tuple[str, str]:
        outputs = [np.array(gradients.logits(self.raw, self.images)) for _ in range(3)]
        size = np.abs(outputs[0]).max() + 1e-30
        difference = max(np.abs(outputs[0] - other).max() for other in outputs[1:]) / size
        return _outcome(
            difference < 1e-4
        ), f"two passes of the same images differ by {difference:.1e} of the outputs' size"

    def gradients(self) -> tuple[str, str]:
        try:
            plain = self._gradient_norms(losses.cross_entropy)
            norms = np.stack([self._gradient_norms(loss) for loss in (losses.log_cross_entropy, losses.margin)])
        except (ValueError, LookupError) as error:
            self.has_gradient = False
            return FAIL, f"no gradient at all: {str(error).splitlines()[0][:100]}"
        zero, bad = (np.max(np.mean(are_bad, axis=1)) for are_bad in (norms == 0, ~np.isfinite(norms)))
        self.has_gradient = bad == 0
        measured = f"zero for {_percent(zero)} of the images, not finite for {_percent(bad)}"
        if np.mean(plain == 0) > zero + _SLACK:  # our attacks ascend its logarithm, which does not saturate
            share = _percent(np.mean(plain == 0))
            measured += f"; the gradient of the plain cross entropy, which other libraries ascend, is zero for {share}"
        return _outcome(zero + bad <= _SLACK), measured

    def one_or_many(self) -> tuple[str, str]:
        if not self.has_gradient:
            return SKIP, "no gradient"
        one, many = self._robust(FGSM(self.ball)), self._robust(self._pgd(), 1)
        return _outcome(
            many <= one + _SLACK
        ), f"{_percent(one)} correct after 1 step, {_percent(many)} after {self.steps}"

    def larger_epsilon(self) -> tuple[str, str]:
        if not self.has_gradient:
            return SKIP, "no gradient"
        shares = [self._robust(self._pgd(), factor) for factor in (1, 2, 4)]
        falls = all(after <= before + _SLACK for before, after in zip(shares, shares[1:]))
        moves = shares[0] - shares[-1] > _MUST_BREAK or shares[0] <= _SLACK
        text = ", ".join(map(_percent, shares))
        return _outcome(falls and moves), f"{text} correct at 1, 2 and 4 times epsilon"

    def unbounded(self) -> tuple[str, str]:
        if not self.has_gradient:
            return SKIP, "no gradient"
        low, high = map(np.asarray, self.ball.bounds)
        size = np.prod(self.images.shape[1:]) ** {"linf": 0, "l2": 0.5, "l1": 1}[self.ball.norm]
        shares = np.ones(1) if self.ball.shares is None else self.ball.shares
        reach = np.max((high - low) / np.where(shares > 0, shares, np.inf))  # of the channel with the smallest share
        robust = self._robust(self._pgd(float(reach * size), 10 * self.steps))
        return _outcome(robust <= _SLACK), f"{_percent(robust)} correct if every image is allowed"

    def black_box(self, queries: int) -> tuple[str, str]:
        searched = self._robust(Square(self.ball, queries))
        white = self._robust(self._pgd(), 1) if self.has_gradient else 1.0
        text = f"{_percent(searched)} correct after {queries} queries of Square, {_percent(white)} under PGD"
        return _outcome(white <= searched + _SLACK), text

    def transfer(self, surrogate: LogitsFunction | None) -> tuple[str, str]:
        if surrogate is None:
            return SKIP, "no surrogate was given"
        adversarial = self._pgd().for_transfer()(gradients.inference(surrogate), self.images, self.labels, self.seed)
        moved = self._correct(adversarial)
        white = self._robust(self._pgd(), 1) if self.has_gradient else 1.0
        text = f"{_percent(moved)} correct on the surrogate's adversarial images, {_percent(white)} under PGD"
        return _outcome(white <= moved + _SLACK), text

    def loss_over_steps(self) -> tuple[str, str]:
        if not self.has_gradient:
            return SKIP, "no gradient"
        values = [self._loss(self.images)]
        for steps in (1, self.steps // 4, self.steps):
            attack = PGD(self.ball, max(1, steps), self.ball.radius / max(1, self.steps // 4), random_start=False)
            values.append(self._loss(attack(self.model, self.images, self.labels, self.seed)))
        rises = all(after > before - _SLACK * abs(before) for before, after in zip(values, values[1:]))
        text = ", ".join(f"{value:.3g}" for value in values)
        counts = f"0, 1, {max(1, self.steps // 4)} and {self.steps} steps"
        return _outcome(rises and values[-1] > values[0]), f"mean margin {text} after {counts}"

    def _pgd(self, radius=None, steps=None):
        ball = self.ball if radius is None else self.ball.with_radius(radius)
        steps = steps or self.steps
        return PGD(ball, steps, max(2.5 * ball.radius / steps, 1e-12), keep="first")

    def _robust(self, attack, scale=None):
        """Returns the share of examples that stay correctly classified under an attack.

        `scale` multiplies epsilon and step size. An attack is compiled once for all scales.
        """
        if (attack, scale) not in self.attacked:
            scales = {"epsilon_scale": scale, "step_size_scale": scale}
            adversarial = attack(self.model, self.images, self.labels, self.seed, **scales)
            self.attacked[attack, scale] = self._correct(adversarial)
        return self.attacked[attack, scale]

    def _correct(self, images):
        return float(np.mean(judging.judge(self.model, images, self.labels).is_correct))

    def _loss(self, images):
        return float(tf.reduce_mean(losses.margin(self.labels, gradients.logits(self.model, images))))

    def _gradient_norms(self, loss):
        """Returns the largest absolute element of each example's gradient, for the original model, array [n]."""
        _, _, gradient = gradients.value_and_gradient(self.raw, loss, self.images, self.labels)
        return np.abs(gradient).reshape(len(self.labels), -1).max(axis=1)


_INVERSES = {"softmax": deployed.logits_of, "sigmoid": deployed.log_odds}


def _as_logits(model, probabilities):
    """Returns a model that returns logits (up to a constant), given which probabilities the model returns, or None."""
    return model if probabilities is None else lambda x: _INVERSES[probabilities](model(x))


def _outcome(is_passed):
    return PASS if is_passed else FAIL


def _percent(share):
    return f"{100 * share:.0f} %"
