"""The report of a certification by randomised smoothing: a radius for each image, and what follows from the radii."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_sat import files, tables
from keras_sat.evaluation import identity, intervals
from keras_sat.typing import Path

ABSTAINS = -1  # in place of a class
COLUMNS = ("index", "label", "predicted", "successes", "not_finite", "radius")


@functools.lru_cache(maxsize=4096)
def radius(successes: int, n: int, alpha: float, sigma: float) -> float | None:
    """Returns the certified L2 radius of an image, in the unit of sigma; None if the smoothed classifier abstains.

        sigma Phi^-1(p),    p = the lower bound of the probability of the class (`intervals.clopper_pearson`)

    It abstains for p <= 1/2 (Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918, theorem 1 and section 3.2.2).

    Args:
        successes: number of noisy images that were classified as the class, 0..n.
        n: number of noisy images, >= 1.
        alpha: largest probability that the radius is too large, between 0 and 1.
        sigma: standard deviation of the noise.
    """
    p = intervals.clopper_pearson(successes, n, alpha)
    return sigma * statistics.NormalDist().inv_cdf(p) if p > 0.5 else None


@dataclasses.dataclass(frozen=True)
class CertificationReport:
    """Certified accuracy against the radius: `print(report.table())`, `report.accuracy(127.5)`. `certify` returns it.

    The smoothed classifier g returns the class that the network most likely returns for an image with Gaussian noise.
    A certified radius R says: g returns the same class for all images x' with `||x' - x||_2 < R`, whether or not x' is
    within the bounds. For each image, this is wrong with a probability of at most alpha.

    Attributes:
        settings: a dict of "sigma", "n0", "n", "alpha" and "bounds"; see `certify`.
        context: a dict of further facts that are needed to repeat the certification; see `RobustnessReport`.
        examples: the result of each image, as columns: "index" in the dataset, "label", "predicted" (the class of the
            smoothed classifier; -1 if it abstains), "successes" (how many of the n noisy images were classified as the
            class that was selected), "not_finite" (how many of the n0 + n noisy images had a logit that is NaN or
            infinite), and "radius", in the images' unit (0 if the classifier abstains).
    """

    settings: dict[str, Any]
    context: dict[str, Any]
    examples: dict[str, list]

    @classmethod
    def of(
        cls, settings: dict[str, Any], context: dict[str, Any], rows: Sequence[Sequence[int]]
    ) -> "CertificationReport":
        """Returns the report of the counts of each image.

        Args:
            settings: see the attributes.
            context: see the attributes.
            rows: for each image: index, label, selected class, successes, number of noisy images not finite; further
                entries are ignored.
        """
        radii = [radius(row[3], settings["n"], settings["alpha"], settings["sigma"]) for row in rows]
        columns = dict(zip(COLUMNS[:-1], map(list, zip(*rows))))
        columns["predicted"] = [ABSTAINS if at is None else row[2] for row, at in zip(rows, radii)]
        return cls(settings, context, columns | {"radius": [at or 0.0 for at in radii]})

    def accuracy(self, radius: float) -> float:
        """Returns the certified accuracy at a radius, 0..1.

        It is the share of images that the smoothed classifier classifies correctly for every perturbation shorter than
        `radius`. At 0 it is the accuracy of the smoothed classifier, in which abstentions count as errors.

        Args:
            radius: L2 norm, >= 0, in the images' unit.

        Raises:
            ValueError: for a negative radius.
        """
        return float(np.mean(self._certified(radius)))

    @property
    def abstained(self) -> float:
        """The share of images for which the smoothed classifier abstains, 0..1. They count as misclassified."""
        return float(np.mean(np.array(self.examples["predicted"]) == ABSTAINS))

    @property
    def average_radius(self) -> float:
        """The mean of the certified radii, in the images' unit; 0 for an image that is not classified correctly.

        It is the area under the curve of the certified accuracy (Zhai et al. 2020, arXiv:2001.02378).
        """
        return float(np.mean(np.where(self._certified(0.0), self.examples["radius"], 0.0)))

    @property
    def largest_radius(self) -> float:
        """The largest radius that n noisy images can certify, in the images' unit: if all are of one class."""
        n, alpha, sigma = (self.settings[name] for name in ("n", "alpha", "sigma"))
        return radius(n, n, alpha, sigma) or 0.0

    def _certified(self, radius):
        if not radius >= 0:
            raise ValueError(f"radius must be a number >= 0. Received: {radius!r}")
        predicted, label, radii = (np.array(self.examples[name]) for name in ("predicted", "label", "radius"))
        return (predicted != ABSTAINS) & (predicted == label) & (radii >= radius)

    def radii(self) -> list[float]:
        """Returns the radii that `table` shows by default: multiples of sigma / 2, up to the largest possible one."""
        return np.arange(0.0, self.largest_radius + 1e-9, self.settings["sigma"] / 2).tolist()

    def table(self, radii: Iterable[float] | None = None) -> str:
        """Returns the certified accuracy at some radii as a plain-text table, followed by remarks.

        Args:
            radii: in the images' unit. Default: see `radii`.
        """
        low, high = self.settings["bounds"]
        header = ("L2 radius", f"radius / {high - low:g}", "images", "certified accuracy", "95 % interval")
        rows = [header]
        for at in self.radii() if radii is None else radii:
            certified = self._certified(at)
            interval = intervals.text(intervals.wilson(int(certified.sum()), len(certified)))
            share = intervals.percent(float(certified.mean()))
            rows.append((f"{at:g}", f"{at / (high - low):.3f}", str(len(certified)), share, interval))
        return "\n".join([tables.text(*rows), *self.remarks()])

    def remarks(self) -> list[str]:
        """Returns sentences on the settings, the images without a certificate, and logits that are not finite."""
        sigma, n0, n, alpha = (self.settings[name] for name in ("sigma", "n0", "n", "alpha"))
        sentences = [
            f"Gaussian noise of sigma {sigma:g}; {n0} noisy images select a class, {n} certify it; each radius is too "
            f"large with a probability of at most {alpha:g}.",
            f"The smoothed classifier abstains for {intervals.percent(self.abstained)} of the images. The average "
            f"certified radius is {self.average_radius:.1f}; {n} noisy images certify {self.largest_radius:.1f} at "
            "most.",
        ]
        concerned = int(np.count_nonzero(self.examples["not_finite"]))
        if concerned:
            sentences.append(
                f"Warning: for {concerned} images a logit of a noisy image is NaN or infinite; it counts for no class."
            )
        return sentences

    def to_json(self, path: Path | None = None) -> str:
        """Returns the report as JSON text. With `path`, also writes it to that file."""
        columns = ",\n".join(f'    "{name}": {json.dumps(column)}' for name, column in self.examples.items())
        head = json.dumps({"settings": self.settings, "context": self.context}, indent=2)
        text = head[: head.rindex("\n}")] + ',\n  "examples": {\n' + columns + "\n  }\n}\n"
        if path is not None:
            files.write_text(path, text)
        return text

    @classmethod
    def from_json(cls, path: Path) -> "CertificationReport":
        """Returns the report that `to_json` wrote to a file.

        Raises:
            ValueError: if the file is not the report of a certification.
            OSError: if the file cannot be read.
        """
        try:
            with open(files.expanded(path), encoding="utf-8") as file:
                fields = json.load(file)
            return cls(fields["settings"], fields["context"], {name: fields["examples"][name] for name in COLUMNS})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not hold the report of a certification: {error}") from error

    @classmethod
    def merge(cls, reports: Sequence["CertificationReport"]) -> "CertificationReport":
        """Returns the report of a whole dataset from the reports of its shards.

        Args:
            reports: the reports of all shards, in any order. Missing shards are not detected.

        Raises:
            ValueError: if there is no report, if the reports have different settings, models, seeds or versions, or if
                shards have images in common.
        """
        if not reports:
            raise ValueError("There is no report to merge.")
        first = reports[0]
        facts = [{"settings": one.settings, **one.context} for one in reports]
        if not all(identity.are_alike(facts[0], one) for one in facts):
            raise ValueError(
                "The reports differ in their settings, model, dataset, seed or versions: they are not shards of one."
            )
        columns = {name: [value for one in reports for value in one.examples[name]] for name in COLUMNS}
        if len(set(columns["index"])) < len(columns["index"]):
            raise ValueError("The reports share images: they are not shards of one.")
        order = np.argsort(columns["index"])
        context = {name: value for name, value in first.context.items() if name != identity.DATASET}
        return cls(first.settings, context, {name: [column[k] for k in order] for name, column in columns.items()})
