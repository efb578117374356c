"""Signs that a robust accuracy may be too high, from what an evaluation sees anyway. `audit` looks more closely."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import losses
from keras_sat.attacks import gradients
from keras_sat.attacks.attack import Attack
from keras_sat.typing import Array, LogitsFunction

IMAGES = 64  # number of images, of the first batch, that are looked at
_SAME = 1e-4  # outputs of two passes may differ by this share of their size
_ALIKE = 0.02  # outputs in batches of two sizes may differ by this share: low precision rounds in another order
_ALONE = 0.002  # share of all images that Square alone may break, as in the authors' AutoAttack
_RANDOM = "outputs that change from pass to pass"
_BATCH = "outputs that depend on the other images of a batch"
_ZERO = "gradients that are zero"
_SQUARE = "images that only a gradient-free attack breaks"


@dataclasses.dataclass(frozen=True)
class Signs:
    """What was seen on some images.

    Attributes:
        images: number of images that were looked at.
        random: whether two passes of the same images gave different outputs.
        zero_gradient: for how many of the images the gradient of a loss that an attack ascends is zero or not finite;
            None if no attack uses gradients, or if the network has none.
        depends_on_batch: whether the outputs for some images were others in another batch; None if this was not looked
            at (in reports of former versions), or if the outputs are random.
    """

    images: int
    random: bool
    zero_gradient: int | None
    depends_on_batch: bool | None = None

    def merged(self, other: "Signs") -> "Signs":
        """Returns the signs of two shards of one evaluation."""
        zero = None if self.zero_gradient is None else self.zero_gradient + (other.zero_gradient or 0)
        batch = None if self.depends_on_batch is None else self.depends_on_batch or other.depends_on_batch
        return Signs(self.images + other.images, self.random or other.random, zero, batch)


def measure(model: LogitsFunction, images: Array, labels: Array, attacks: Iterable[Attack]) -> Signs:
    """Looks at the first `IMAGES` images of a batch.

    Args:
        model: a function from images to logits [batch, classes].
        images: [batch, height, width, channels].
        labels: integers [batch].
        attacks: the attacks of the evaluation, which say the losses whose gradients are looked at.
    """
    images, labels = tf.cast(images[:IMAGES], tf.float32), tf.cast(labels[:IMAGES], tf.int32)
    first, second = (np.asarray(gradients.logits(model, images)) for _ in range(2))
    size = np.nanmax(np.abs(first), initial=0.0) + 1e-30
    is_random = not np.allclose(first, second, rtol=0, atol=_SAME * size, equal_nan=True)
    half = len(images) // 2
    alone = np.asarray(gradients.logits(model, images[:half][::-1]))[::-1] if half else first[:0]
    depends = not np.allclose(first[:half], alone, rtol=0, atol=_ALIKE * size, equal_nan=True)
    stages = [stage for attack in attacks for stage in attack.stages if stage.needs_gradients]
    ascended = {getattr(stage, "loss", losses.log_cross_entropy) for stage in stages}
    zero = _zero_gradients(model, ascended, images, labels)
    return Signs(len(images), is_random, zero, None if is_random else depends)


def _zero_gradients(model, ascended, images, labels):
    """Returns for how many images the gradient of one of the losses is zero or not finite; None without gradients."""
    try:
        found = [_has_no_ascent(model, loss, images, labels) for loss in ascended]
    except (ValueError, LookupError):  # the network has no gradient: an attack that needs it says so
        return None
    return int(np.count_nonzero(np.any(found, axis=0))) if found else None


def _has_no_ascent(model, loss, images, labels):
    loss = losses.margin if loss is losses.dlr else loss  # it has the sign of the margin, and needs three classes
    ascent = gradients.value_and_gradient(model, loss, images, labels)[2].numpy()
    largest = np.abs(ascent).reshape(len(ascent), -1).max(axis=1)
    return ~np.isfinite(largest) | (largest == 0)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What an evaluation says about one sign of masked gradients.

    Attributes:
        name: the sign, such as "gradients that are zero".
        measured: what was seen, as text, such as "0 of 64 images"; None if the sign was not looked for.
        warnings: a sentence for each warning; empty if the sign was not seen.
    """

    name: str
    measured: str | None
    warnings: list[str]


def findings(signs: Signs | None, results: Sequence[Any], examples: dict[str, Any]) -> list[Finding]:
    """Returns a finding for each sign.

    Args:
        signs: what was seen; None if nothing was looked at.
        results: the rows of a report, see `report.AttackResult`.
        examples: the results of each example, see `report.RobustnessReport`.
    """
    if signs is None or not any(examples.get("clean", [True])):  # nothing was attacked
        return [Finding(name, None, []) for name in (_RANDOM, _BATCH, _ZERO, _SQUARE)]
    return [_randomness(signs), _batch(signs), _zero(signs), _beyond_gradients(results, examples)]


def sentences(signs: Signs | None, results: Sequence[Any], examples: dict[str, Any]) -> list[str]:
    """Returns a sentence for each sign, or one that says which signs were looked for and not found.

    Args:
        signs, results, examples: see `findings`.
    """
    found = findings(signs, results, examples)
    looked = [one.name for one in found if one.measured is not None]
    warnings = [sentence for one in found for sentence in one.warnings]
    if warnings or not looked:
        return warnings
    return [f"No sign of gradient masking was found. Checked: {', '.join(looked)}.{unchecked(found, results)}"]


def unchecked(found: Sequence[Finding], results: Sequence[Any]) -> str:
    """Returns a sentence, with a space before, if attacks ran and none of them does without gradients; otherwise ""."""
    attacks = [row for row in results if "norm" in row.settings]
    if found[-1].measured is not None or not attacks or any(map(_is_without_gradients, attacks)):
        return ""
    return " Not checked: whether an attack without gradients breaks more (add square, or take autoattack)."


def _randomness(signs):
    warning = (
        "Warning: the outputs change from pass to pass: average gradients over them (samples=, or AutoAttack's version "
        '"rand").'
    )
    measured = f"{'yes' if signs.random else 'no'}, on {signs.images} images"
    return Finding(_RANDOM, measured, [warning] if signs.random else [])


def _batch(signs):
    if signs.depends_on_batch is None:
        return Finding(_BATCH, None, [])
    warning = (
        "Warning: the outputs for an image depend on the other images of its batch: the accuracies hold for this batch "
        "size and this order alone."
    )
    measured = f"{'yes' if signs.depends_on_batch else 'no'}, on {signs.images // 2} images"
    return Finding(_BATCH, measured, [warning] if signs.depends_on_batch else [])


def _zero(signs):
    if signs.zero_gradient is None:
        return Finding(_ZERO, None, [])
    warning = (
        f"Warning: for {signs.zero_gradient} of {signs.images} images the gradient is zero or not finite: "
        "gradient-based attacks make no progress on these (see attacks.bpda)."
    )
    measured = f"{signs.zero_gradient} of {signs.images} images"
    return Finding(_ZERO, measured, [warning] if signs.zero_gradient else [])


def _beyond_gradients(results, examples):
    counts = [(row, _broken_without_gradients(row, results, examples)) for row in results]
    counts = [(row, count) for row, count in counts if count is not None]
    warnings = [
        f"Warning: {row.name}: a gradient-free attack broke {count} of {row.n} images that gradient-based attacks did "
        "not: the gradients may be masked (run an audit)."
        for row, count in counts
        if count > _ALONE * row.n
    ]
    measured = "; ".join(f"{row.name}: {count} of {row.n} images" for row, count in counts)
    return Finding(_SQUARE, measured or None, warnings)


def _broken_without_gradients(row, results, examples):
    """Returns how many images a gradient-free attack broke after those by gradients; None if there is none.

    The attack is a stage of the row, or the row itself; the attacks by gradients are the stages before it, or the rows
    of the same norm and epsilon.
    """
    later = [count for name, count in list(row.broken_by.items())[1:] if name.startswith("Square")]
    if later:  # one, or two if the attack runs in low precision first
        return sum(later)
    if not _is_without_gradients(row):
        return None
    same = [other for other in results if _threat(other) == _threat(row) and not _is_without_gradients(other)]
    others = [examples["attacks"][other.name]["broken_by"] for other in same if other.name in examples["attacks"]]
    if not others:
        return None
    own = examples["attacks"][row.name]["broken_by"]
    return sum(stage not in ("", "clean") and not any(rest) for stage, *rest in zip(own, *others))


def _is_without_gradients(row):
    return row.settings.get("attack") == "Square" or "surrogate" in row.settings


def _threat(row):
    return [row.settings.get(name) for name in ("norm", "epsilon", "bounds")]
