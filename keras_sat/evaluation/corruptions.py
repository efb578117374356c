"""The common corruptions of ImageNet-C and CIFAR-10-C, computed during an evaluation, and the mean corruption error."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tensorflow as tf

from keras_sat.attacks import randomness, validation
from keras_sat.attacks.attack import Attack
from keras_sat.attacks.threats import PIXELS, plain_bounds
from keras_sat.evaluation import distortions
from keras_sat.typing import LogitsFunction

if TYPE_CHECKING:
    from keras_sat.evaluation.report import RobustnessReport

# The parameters of severities 1..5, of the authors' code (Hendrycks and Dietterich 2019, arXiv:1903.12261). Their
# meaning is in the docstrings of `distortions`. The first fifteen are the benchmark.
SEVERITIES: dict[str, dict[str, tuple]] = {
    "ImageNet-C": {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": (60, 25, 12, 5, 3),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "snow": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        # The authors' numbers are for 244 pixels, of images that have 224.
        "elastic_transform": tuple(
            tuple(share * 244 / 224 for share in shares)
            for shares in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": (25, 18, 15, 10, 7),
        "gaussian_blur": (1, 2, 3, 4, 6),
    },
    "CIFAR-10-C": {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.1),
        "shot_noise": (500, 250, 100, 75, 50),
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "elastic_transform": (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg_compression": (80, 65, 58, 50, 40),
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    },
}
NAMES = tuple(SEVERITIES["ImageNet-C"])[:15]
LARGEST_SMALL_IMAGE = 64  # pixels: up to this shorter side, the severities are CIFAR-10-C's
DIFFERS = {"frost": "The frost is generated, where the authors take parts of five photographs."}
# AlexNet's mean error over the five severities: the paper's baseline, with the digits of the authors' spreadsheet.
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def all_of(bounds: tuple = PIXELS) -> list["Corruption"]:
    """Returns the benchmark: its fifteen corruptions, each with severities 1..5. `mean_accuracy` and `mce` read it."""
    pairs = [(name, severity) for name in NAMES for severity in range(1, 6)]
    return [Corruption(name, severity, bounds) for name, severity in pairs]  # type: ignore[arg-type]  # no ball here


def mean_accuracy(report: "RobustnessReport") -> float:
    """Returns the mean accuracy over all fifteen corruptions and five severities, 0..1: RobustBench's figure.

    Args:
        report: a report with a row for each, such as that of `evaluate(model, data, corruptions.all_of())`.

    Raises:
        ValueError: if a row is missing, or there are two of one corruption and severity.
    """
    return float(np.mean(list(_accuracies(report).values())))


def mce(report: "RobustnessReport", baseline: Mapping[str, float] = ALEXNET) -> float:
    """Returns the mean corruption error, relative to a baseline: 1 is as bad as the baseline, 0 is without error.

    For each corruption, the sum of the errors over the five severities is divided by that of the baseline. The result
    is the mean over the fifteen corruptions (Hendrycks and Dietterich 2019, arXiv:1903.12261). Publications give it in
    per cent.

    Args:
        report: see `mean_accuracy`.
        baseline: {corruption: mean error over the five severities, 0..1}. Default: AlexNet's, which is for ImageNet.

    Raises:
        ValueError: if a row is missing, or the baseline lacks a corruption.
    """
    lacking = [name for name in NAMES if not baseline.get(name, 0) > 0]
    if lacking:
        raise ValueError(f"baseline must have a positive error for each corruption. It lacks: {', '.join(lacking)}")
    accuracies = _accuracies(report)
    errors = {name: np.mean([1 - accuracies[name, severity] for severity in range(1, 6)]) for name in NAMES}
    return float(np.mean([errors[name] / baseline[name] for name in NAMES]))


def _accuracies(report):
    """Returns {(corruption, severity): accuracy} of all fifteen corruptions and five severities."""
    rows = [row for row in report.results if row.settings.get("corruption") in NAMES]
    found = {(row.settings["corruption"], row.settings["severity"]): row.accuracy for row in rows}
    if len(found) < len(rows):
        raise ValueError("The report has two rows of one corruption and severity: one of each was expected.")
    lacking = [f"{name}-{severity}" for name in NAMES for severity in range(1, 6) if (name, severity) not in found]
    if lacking:
        raise ValueError(
            f"The report lacks {len(lacking)} of 75 corruptions, such as {lacking[0]}: evaluate corruptions.all_of()."
        )
    return found


@dataclasses.dataclass(frozen=True)
class Corruption(Attack):
    """A corruption of ImageNet-C or CIFAR-10-C, in place of an attack: `evaluate(model, data, Corruption("fog", 3))`.

    It does not depend on the model. Its accuracy counts all images, also those that are misclassified without the
    corruption. Each image has its own random numbers, which depend on its seed alone.

    Args:
        name: one of `NAMES`, such as "contrast", or "gaussian_blur", which is not in the benchmark.
        severity: 1..5. Default: 3.
        bounds: (low, high), the smallest and largest valid value of a pixel; each a number, or one for each channel.
            Default: (0, 255).
        severities: "ImageNet-C" (made for 224 x 224 pixels) or "CIFAR-10-C" (for 32 x 32): whose parameters the
            severities have. Default: CIFAR-10-C's if the shorter side has up to 64 pixels, otherwise ImageNet-C's.

    Raises:
        ValueError: for another name, severity or table of severities, or invalid bounds.
    """

    ball: ClassVar[None] = None  # type: ignore[misc]  # replaces the field of the base class

    name: str
    severity: int = 3
    bounds: tuple = PIXELS
    severities: str | None = None

    def __post_init__(self) -> None:
        known = SEVERITIES["ImageNet-C"]
        if self.name not in known:
            raise ValueError(f"A corruption is one of {', '.join(known)}. Received: {self.name!r}")
        if self.severities not in (None, *SEVERITIES):
            raise ValueError(f"severities must be {' or '.join(SEVERITIES)}, or None. Received: {self.severities!r}")
        if self.severity not in (1, 2, 3, 4, 5):
            raise ValueError(f"severity must be 1..5. Received: {self.severity!r}")
        bounds = plain_bounds(self.bounds)
        if bounds is None:
            raise ValueError(
                f"bounds must be two numbers, the smaller first, such as (0, 1). Received: {self.bounds!r}"
            )
        object.__setattr__(self, "bounds", bounds)

    def __str__(self) -> str:
        return f"{self.name}-{self.severity}"

    def settings(self) -> dict[str, Any]:
        """Returns the configuration as plain values, for a report."""
        whose = self.severities or f"CIFAR-10-C up to {LARGEST_SMALL_IMAGE} pixels, ImageNet-C above"
        values = {"corruption": self.name, "severity": self.severity, "bounds": self.bounds, "severities": whose}
        return values | ({"differs": DIFFERS[self.name]} if self.name in DIFFERS else {})

    @property
    def max_forward_passes(self) -> int:
        """Forward passes of one example: none."""
        return 0

    @property
    def needs_gradients(self) -> bool:
        """Whether the corruption uses gradients of the network: no."""
        return False

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
        """Returns the corrupted images. Uses neither the network nor the labels. See `Attack.perturb`."""
        validation.check_channels_last(images)
        low, high = map(np.float32, self.bounds)
        scaled = (images - low) / (high - low)
        seeds = randomness.per_example(seed, tf.shape(images)[0])
        corrupted = tf.ensure_shape(tf.numpy_function(self._corrupted, (scaled, seeds), tf.float32), images.shape)
        return low + (high - low) * tf.clip_by_value(corrupted, 0.0, 1.0)

    def _corrupted(self, images, seeds):
        """Returns the corrupted images, NumPy arrays [batch, height, width, channels] in 0..1."""
        benchmark = self.severities or ("CIFAR-10-C" if min(images.shape[1:3]) <= LARGEST_SMALL_IMAGE else "ImageNet-C")
        amount = SEVERITIES[benchmark][self.name][self.severity - 1]
        corrupted = np.empty_like(images)
        for place, (image, seed) in enumerate(zip(images.astype(np.float64), seeds)):
            random = np.random.Generator(np.random.Philox(seed.astype(np.uint32).tolist()))
            corrupted[place] = getattr(distortions, self.name)(np.clip(image, 0, 1), amount, random)
        return corrupted
