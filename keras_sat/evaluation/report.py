"""What an evaluation found, with all that is needed to run it again."""

import dataclasses
import glob
import hashlib
import json
import math
import os
import platform

import keras
import numpy as np
import tensorflow as tf

from keras_sat import files
from keras_sat.evaluation import deployed
from keras_sat.version import __version__

QUANTILE = 1.959963984540054  # of the normal distribution, for 95 %


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """One row of a report.

    Attributes:
        name: "clean", or the attack's.
        n: examples evaluated.
        correct: of them, classified correctly (under the attack, and clean).
        accuracy: correct / n, 0..1.
        interval: (low, high), Wilson's 95 % interval of the accuracy.
        seconds: wall-clock time, compilation included.
        settings: the attack's configuration: norm, epsilon, steps, step_size, ...; empty for "clean".
        broken_by: for each stage of the attack, how many examples it broke.
        not_finite: examples, clean or attacked, for which a logit is NaN or infinite; they count as misclassified.
        reached: of a targeted attack, how many examples came to be classified as their target; else None.
    """

    name: str
    n: int
    correct: int
    accuracy: float
    interval: tuple
    seconds: float
    settings: dict
    broken_by: dict = dataclasses.field(default_factory=dict)
    not_finite: int = 0
    reached: int | None = None

    @classmethod
    def of(cls, name, n, correct, seconds, settings, broken_by=None, **more):
        """Returns the row of these counts."""
        interval = wilson(correct, n)
        return cls(name, n, correct, correct / n, interval, round(seconds, 2), settings, broken_by or {}, **more)


@dataclasses.dataclass(frozen=True)
class RobustnessReport:
    """Accuracy, clean and under attacks: `print(report.table())`, `report["PGD-50"].accuracy`, `report.to_html(path)`.

    Attributes:
        results: a list of `AttackResult`; the first is "clean".
        context: what else is needed to run it again: model, seed, batch-norm mode, versions.
        examples: what became of each example, as columns: "index" in the dataset, "label", "clean" (classified
            correctly as it is), "margin" (the largest logit of a wrong class over that of the label; None where a
            logit is not finite), and "attacks": for each, "broken_by" (the stage, "" where it stands, "clean" where it
            was not attacked) and "margin".
        pictures: some adversarial examples of each attack: (index, image, adversarial image, predicted class). They
            are not written to JSON.
    """

    results: list
    context: dict
    examples: dict = dataclasses.field(default_factory=dict)
    pictures: dict = dataclasses.field(default_factory=dict)

    def __getitem__(self, name):
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"The report has no row {name!r}; it has {[result.name for result in self.results]}")

    def table(self):
        """Returns the report as a plain-text table, and below it what is to be known of its figures."""
        header = ("attack", "norm", "epsilon", "images", "accuracy", "95 % interval", "seconds")
        rows = [header, *map(_cells, self.results)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *self.remarks()])

    def remarks(self):
        """Returns sentences on logits that are not finite, targets that were reached, and a scaled step size."""
        found = [
            f"Warning: {row.name}: for {row.not_finite} of {row.n} images a logit is NaN or infinite; these count as "
            "misclassified."
            for row in self.results
            if row.not_finite
        ]
        reached = [row for row in self.results if row.reached is not None]
        found += [f"{row.name}: {row.reached} of {row.n} images came to their target class." for row in reached]
        return found + (
            [f"In each row the step size is {self.context['step_size']}."] if "step_size" in self.context else []
        )

    def to_json(self, path=None):
        """Returns the report as JSON text; with `path`, also writes it to that file."""
        fields = {"results": [dataclasses.asdict(result) for result in self.results], "context": self.context}
        text = json.dumps(fields, indent=2)
        # A line for each column: an example is a place in it, not a page.
        columns = {name: column for name, column in self.examples.items() if name != "attacks"}
        lines = [f'    "{name}": {json.dumps(column)}' for name, column in columns.items()]
        lines += [f'    "attacks": {json.dumps(self.examples["attacks"])}'] if self.examples else []
        text = text[: text.rindex("\n}")] + ',\n  "examples": {\n' + ",\n".join(lines) + "\n  }\n}\n"
        if path is not None:
            files.write_text(path, text)
        return text

    def to_html(self, path, audit=None, command=None):
        """Writes the report as one page that needs no network, and its plots beside it as SVG and PNG files.

        Args:
            path: of the page, "report.html"; the plots are "report-accuracy.svg", ...
            audit: an `AuditReport`, to include.
            command: the command that repeats the evaluation, to show.

        Raises:
            ValueError: if matplotlib, which draws the plots, is not installed.
        """
        from keras_sat.evaluation import page

        page.write(self, path, audit, command)


def from_json(path):
    """Returns the report that `to_json` wrote to a file (without pictures).

    Raises:
        ValueError: for a file that holds none.
    """
    try:
        with open(files.expanded(path), encoding="utf-8") as file:
            fields = json.load(file)
        results = [AttackResult(**{**row, "interval": tuple(row["interval"])}) for row in fields["results"]]
        return RobustnessReport(results, fields["context"], fields["examples"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold a report: {error}") from error


def merge(reports):
    """Returns the report of a whole dataset from those of its shards.

    Raises:
        ValueError: for reports of other attacks or seeds, or shards that share examples.
    """
    if not reports:
        raise ValueError("There is no report to merge.")
    alike = [({r.name: r.settings for r in report.results}, report.context) for report in reports]
    if any(one != alike[0] for one in alike):
        raise ValueError("The reports differ in their attacks, model, seed or versions: they are no shards of one.")
    index = [i for report in reports for i in report.examples["index"]]
    if len(set(index)) < len(index):
        raise ValueError("The reports share examples: they are no shards of one.")
    order = sorted(range(len(index)), key=index.__getitem__)
    rows = [_sum([report[row.name] for report in reports]) for row in reports[0].results]
    pictures = {name: [p for one in reports for p in one.pictures.get(name, [])] for name in reports[0].pictures}
    return RobustnessReport(rows, reports[0].context, _join([report.examples for report in reports], order), pictures)


def _sum(rows):
    """Returns the row of a whole from those of its parts."""
    broken_by = {stage: sum(row.broken_by[stage] for row in rows) for stage in rows[0].broken_by}
    counts = [sum(getattr(row, name) for row in rows) for name in ("n", "correct", "seconds")]
    more = {"not_finite": sum(row.not_finite for row in rows)}
    more["reached"] = None if rows[0].reached is None else sum(row.reached for row in rows)
    return AttackResult.of(rows[0].name, *counts, rows[0].settings, broken_by, **more)


def _join(parts, order):
    """Returns the columns of all parts, one after the other, in the given order."""
    if isinstance(parts[0], dict):
        return {name: _join([part[name] for part in parts], order) for name in parts[0]}
    joined = [value for part in parts for value in part]
    return [joined[place] for place in order]


def of_state(state, rows, settings, context):
    """Returns the report of a finished evaluation.

    Args:
        state: a `State`.
        rows: {name of an attack: [names of its stages]}.
        settings: {name: settings}.
        context: of the report.
    """
    n = len(state.index)
    not_finite = int(np.isnan(state.margin).sum())
    results = [AttackResult.of("clean", n, int(state.clean.sum()), state.seconds, {}, not_finite=not_finite)]
    examples = {name: getattr(state, name).tolist() for name in ("index", "label", "clean")}
    examples |= {"margin": _rounded(state.margin), "attacks": {}}
    for name, stages in rows.items():
        row = state.rows[name]
        broken_by = {stage: int(np.sum(row.broken_by == number)) for number, stage in enumerate(stages, 1)}
        standing = int(row.standing().sum())
        more = {"not_finite": int(np.isnan(row.margin).sum())}
        more["reached"] = row.reached if settings[name].get("targeted") else None
        results.append(AttackResult.of(name, n, standing, row.seconds, settings[name], broken_by, **more))
        words = ["", *stages, "clean"]  # MISCLASSIFIED, -1, is the last
        examples["attacks"][name] = {
            "broken_by": [words[number] for number in row.broken_by],
            "margin": _rounded(row.margin),
        }
    return RobustnessReport(results, context, examples, {name: state.rows[name].pictures for name in rows})


def _rounded(margins):
    """Returns margins as JSON knows numbers: six digits, and None for what is not finite."""
    return [float(f"{margin:.6g}") if math.isfinite(margin) else None for margin in margins]


def _cells(result):
    low, high = (f"{100 * bound:.1f}" for bound in result.interval)
    norm, epsilon = result.settings.get("norm", "-"), epsilon_of(result)
    accuracy = f"{100 * result.accuracy:.1f} %"
    return (result.name, norm, epsilon, str(result.n), accuracy, f"{low} .. {high}", f"{result.seconds:.1f}")


def epsilon_of(result):
    """Returns the epsilon of a row as text; those of several channels with a stroke between them."""
    epsilon = result.settings.get("epsilon")
    return "-" if epsilon is None else "/".join(f"{one:g}" for one in np.atleast_1d(epsilon))


def wilson(correct, n):
    """Returns Wilson's 95 % interval (low, high) of a proportion (Wilson 1927, JASA 22:209)."""
    p, z2 = correct / n, QUANTILE**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = QUANTILE / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def context(model, seed):
    """Returns the part of a report that is common to its rows."""
    return {
        "model": getattr(model, "name", getattr(model, "__name__", type(model).__name__)),
        "weights_sha256": weights_sha256(model),
        "seed": seed,
        "batch_norm": "frozen",
        "versions": versions(),
    }


def weights_sha256(model):
    """Returns the sha256 of a Keras model's weights, or of a SavedModel's files; None for a function."""
    digest = hashlib.sha256()
    if isinstance(model, keras.Model):
        for weight in model.weights:
            digest.update(keras.ops.convert_to_numpy(weight).tobytes())
    elif isinstance(model, deployed.Deployed):
        for path in sorted(glob.glob(os.path.join(model.path, "**"), recursive=True)):
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    digest.update(file.read())
    else:
        return None
    return digest.hexdigest()


def versions():
    """Returns the versions of what computes."""
    return {
        "keras_sat": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }
