"""The report of an evaluation: its results, and all settings that are needed to repeat it."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_sat import files, provenance, tables
from keras_sat.attacks import validation
from keras_sat.evaluation import html_report, identity, intervals
from keras_sat.evaluation import signs as signs_lib
from keras_sat.evaluation._audit import AuditReport
from keras_sat.evaluation.state import State
from keras_sat.typing import Path

# The entries of a report's context that are measured, or derived from the settings; a caller cannot give them.
MEASURED = (
    "model",
    "weights_sha256",
    identity.LOGITS,
    "targets_sha256",
    identity.DATASET,
    "seed",
    "batch_norm",
    "versions",
    "attack_precision",
    "sweep",
    "step_size",
    "attacks",
)


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """One row of a report.

    Attributes:
        name: "clean", or the attack's name.
        n: number of examples evaluated.
        correct: how many of them are classified correctly, both clean and under the attack. (For a `Corruption`: with
            the corruption.)
        accuracy: correct / n, 0..1.
        interval: (low, high), Wilson's 95 % interval of the accuracy.
        seconds: wall-clock time in seconds, including compilation.
        settings: the attack's configuration: norm, epsilon, steps, step_size, ...; empty for "clean".
        broken_by: {stage of the attack: how many examples it broke}.
        not_finite: number of examples, clean or attacked, for which a logit is NaN or infinite; they count as
            misclassified.
        reached: for a targeted attack, how many examples were classified as their target; otherwise None.
    """

    name: str
    n: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    seconds: float
    settings: dict[str, Any]
    broken_by: dict[str, int] = dataclasses.field(default_factory=dict)
    not_finite: int = 0
    reached: int | None = None

    @classmethod
    def of(
        cls,
        name: str,
        n: int,
        correct: int,
        seconds: float,
        settings: dict[str, Any],
        broken_by: dict[str, int] | None = None,
        not_finite: int = 0,
        reached: int | None = None,
    ) -> "AttackResult":
        """Returns the row with these counts, and computes the accuracy and its interval. See the attributes."""
        interval = intervals.wilson(correct, n)
        counts = (broken_by or {}, not_finite, reached)
        return cls(name, n, correct, correct / n, interval, round(seconds, 2), settings, *counts)

    def epsilon_text(self) -> str:
        """Returns the attack's epsilon as text: "8", "8/4/4" for one of each channel, "-" for no epsilon."""
        epsilon = self.settings.get("epsilon")
        return "-" if epsilon is None else "/".join(f"{one:g}" for one in np.atleast_1d(epsilon))


@dataclasses.dataclass(frozen=True)
class RobustnessReport:
    """Accuracy, clean and under attacks: `print(report.table())`, `report["PGD-50"].accuracy`, `report.to_html(path)`.

    Attributes:
        results: a list of `AttackResult`; the first is "clean".
        context: a dict of further facts that are needed to repeat the evaluation: "model", "weights_sha256", "seed",
            "batch_norm" ("frozen": inference mode), "versions", and the entries of the argument `context`.
        examples: the result of each example, as columns: "index" in the dataset, "label", "clean" (classified correctly
            without an attack), "margin" (the largest logit of a wrong class minus the logit of the label; None if a
            logit is not finite), and "attacks": for each attack "broken_by" (the stage; "" if robust; "clean" if it was
            misclassified without an attack) and "margin".
        pictures: {attack: some adversarial examples, as (index, image, adversarial image, predicted class)}. They are
            not written to JSON.
        signs: what was seen of masked gradients, a `Signs`; None in reports of former versions.
    """

    results: list[AttackResult]
    context: dict[str, Any]
    examples: dict[str, Any] = dataclasses.field(default_factory=dict)
    pictures: dict[str, list] = dataclasses.field(default_factory=dict)
    signs: signs_lib.Signs | None = None

    def __getitem__(self, name: str) -> AttackResult:
        """Returns the row of this name.

        Raises:
            KeyError: if there is none.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"The report has no row {name!r}; it has {[result.name for result in self.results]}")

    def table(self) -> str:
        """Returns the report as a plain-text table, followed by its remarks."""
        header = ("attack", "norm", "epsilon", "images", "accuracy", "95 % interval", "seconds")
        return "\n".join([tables.text(header, *map(_cells, self.results)), *self.remarks()])

    def remarks(self) -> list[str]:
        """Returns sentences: what makes the figures doubtful, targets reached, a scaled step size, masked gradients."""
        sentences = [
            f"Warning: {row.name}: for {row.not_finite} of {row.n} images a logit is NaN or infinite; these count as "
            "misclassified."
            for row in self.results
            if row.not_finite
        ]
        sentences += [
            f"{row.name}: {row.reached} of {row.n} images reached their target class."
            for row in self.results
            if row.reached is not None
        ]
        sentences += [f"Warning: {row.name}: {text}" for row in self.results if (text := _too_short(row.settings))]
        sentences += _of_labels(self.examples)
        if "step_size" in self.context:
            sentences.append(f"In each row the step size is {self.context['step_size']}.")
        return sentences + signs_lib.sentences(self.signs, self.results, self.examples)

    def worst_of(self, names: Sequence[str] | None = None, name: str = "worst case") -> "RobustnessReport":
        """Returns the report with one more row: an image is robust only if it is robust in each of some rows.

        So the rows L-inf, L2 and L1 give the robust accuracy in the union of the balls.

        Args:
            names: names of the rows. Default: the rows of attacks with a ball, without those of corruptions.
            name: name of the new row.

        Raises:
            KeyError: if there is no row of a name.
            ValueError: if no row is named, or if there is a row `name` already.
        """
        rows = [self[one] for one in (self._attacks() if names is None else names)]
        if not rows:
            raise ValueError("worst_of needs at least one row of an attack.")
        if name in [row.name for row in self.results]:
            raise ValueError(f"The report has a row {name!r} already: choose another name.")
        columns = [self.examples["attacks"][row.name] for row in rows]
        broken_by = [
            next((row.name for row, stage in zip(rows, stages) if stage), "") if clean else "clean"
            for clean, *stages in zip(self.examples["clean"], *(column["broken_by"] for column in columns))
        ]
        margins = [None if None in one else max(one) for one in zip(*(column["margin"] for column in columns))]
        worst = AttackResult.of(
            name,
            len(broken_by),
            broken_by.count(""),
            sum(row.seconds for row in rows),
            {"worst_of": [row.name for row in rows]},
            {row.name: broken_by.count(row.name) for row in rows},
            margins.count(None),
        )
        attacks = self.examples["attacks"] | {name: {"broken_by": broken_by, "margin": margins}}
        examples = self.examples | {"attacks": attacks}
        return dataclasses.replace(self, results=[*self.results, worst], examples=examples)

    def _attacks(self):
        return [row.name for row in self.results if "norm" in row.settings]

    def to_json(self, path: Path | None = None) -> str:
        """Returns the report as JSON text. With `path`, also writes it to that file."""
        fields: dict[str, Any] = {"results": [dataclasses.asdict(result) for result in self.results]}
        fields |= {"context": self.context, "signs": dataclasses.asdict(self.signs) if self.signs else None}
        text = json.dumps(fields, indent=2)
        # One line for each column: with a line for each example the file would be too long to read.
        columns = {name: column for name, column in self.examples.items() if name != "attacks"}
        lines = [f'    "{name}": {json.dumps(column)}' for name, column in columns.items()]
        lines += [f'    "attacks": {json.dumps(self.examples["attacks"])}'] if self.examples else []
        text = text[: text.rindex("\n}")] + ',\n  "examples": {\n' + ",\n".join(lines) + "\n  }\n}\n"
        if path is not None:
            files.write_text(path, text)
        return text

    def to_html(self, path: Path, audit: AuditReport | None = None, command: str | None = None) -> None:
        """Writes the report as one HTML page that needs no network, and its plots as SVG and PNG files in its folder.

        The page shows the entries "dataset", "split", "classes" (a list of names), "network" (a dict of "name", "form"
        and "activation") and "preprocessing" of the context. `keras-sat evaluate` gives them; from Python, they are
        given to `evaluate` as `context`.

        Args:
            path: the file to write, such as "report.html"; the files of plots are then "report-accuracy.svg", ...
            audit: an `AuditReport` to show, or None.
            command: the command that repeats the evaluation, to show as text, or None.

        Raises:
            ValueError: if matplotlib, which draws the plots, is not installed.
        """
        html_report.write(self, path, audit, command)


def _too_short(settings):
    """Returns a warning if the steps of a row's PGD are too short for its epsilon; None otherwise."""
    steps, step_size, epsilon = (settings.get(name) for name in ("steps", "step_size", "epsilon"))
    if None in (steps, step_size, epsilon):
        return None
    radius = float(np.max(epsilon))
    return validation.too_short(steps, step_size, radius) if steps * step_size < radius * (1 - 1e-6) else None


def _of_labels(examples):
    """Returns a warning if no image is classified correctly, or if one class may be all that the network answers."""
    labels, clean = np.array(examples.get("label", [])), np.array(examples.get("clean", []), bool)
    if not len(labels):
        return []
    if not clean.any():
        return [
            "Warning: no image is classified correctly, so none was attacked. Check the labels (0..classes-1), the "
            "weights and the preprocessing."
        ]
    (*answered,) = np.unique(labels[clean])
    if len(answered) == 1 and np.all(clean == (labels == answered[0])) and not np.all(clean):
        return [
            f"Warning: all images of class {answered[0]} are classified correctly, and no others: the network seems to "
            "answer this class always."
        ]
    return []


def from_json(path: Path) -> RobustnessReport:
    """Returns the report that `to_json` wrote to a file. It has no pictures.

    Raises:
        ValueError: if the file is not a report.
        OSError: if the file cannot be read.
    """
    try:
        with open(files.expanded(path), encoding="utf-8") as file:
            fields = json.load(file)
        if not isinstance(fields, dict) or not isinstance(fields["results"], list):
            raise ValueError("it has no list of results")
        results = [AttackResult(**{**row, "interval": tuple(row["interval"])}) for row in fields["results"]]
        counts = _counts(fields["examples"])
        for row in results:
            _check_row(row, counts.get(row.name, row.correct))
        seen = signs_lib.Signs(**fields["signs"]) if fields.get("signs") else None
        return RobustnessReport(results, fields["context"], fields["examples"], signs=seen)
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} does not hold a report of an evaluation, as `keras-sat evaluate` writes it ({_reason(error)})."
        ) from error


def _counts(examples):
    """Returns {name of a row: number of examples that are correct}."""
    counts = {name: column["broken_by"].count("") for name, column in examples.get("attacks", {}).items()}
    return counts | ({"clean": sum(examples["clean"])} if "clean" in examples else {})


def _check_row(row, count):
    """Raises ValueError if the numbers of a row contradict each other, or the number of correct examples."""
    if not 0 <= row.correct <= row.n or abs(row.accuracy - row.correct / row.n) > 1e-9:
        raise ValueError(f"{row.name}: {row.correct} of {row.n} images are not {row.accuracy!r}")
    if not np.allclose(row.interval, intervals.wilson(row.correct, row.n), atol=1e-6):
        raise ValueError(f"{row.name}: {row.interval} is not the interval of {row.correct} of {row.n} images")
    if row.correct != count:
        raise ValueError(f"{row.name}: {row.correct} images are correct, but {count} of the examples")


def _reason(error):
    return f"it has no {error}" if isinstance(error, KeyError) else error


def merge(reports: Sequence[RobustnessReport]) -> RobustnessReport:
    """Returns the report of a whole dataset from the reports of its shards.

    Args:
        reports: the reports of all shards, in any order.

    Raises:
        ValueError: if there is no report, if the reports have different attacks, models, datasets, seeds or versions,
            or if shards are missing or have examples in common.
    """
    if not reports:
        raise ValueError("There is no report to merge.")
    alike = [{"settings": {r.name: r.settings for r in report.results}, **report.context} for report in reports]
    if not all(identity.are_alike(alike[0], one) for one in alike):
        raise ValueError("The reports differ in their attacks, model, dataset, seed or versions: not shards of one.")
    index = [i for report in reports for i in report.examples["index"]]
    if len(set(index)) < len(index):
        raise ValueError("The reports share examples: they are not shards of one.")
    if max(index) >= len(index):
        missing = min(set(range(len(index))) - set(index))
        raise ValueError(f"Image {missing} is in none of the reports: the reports of all shards are needed.")
    order = sorted(range(len(index)), key=index.__getitem__)
    rows = [_sum([report[row.name] for report in reports]) for row in reports[0].results]
    pictures = {name: [p for one in reports for p in one.pictures.get(name, [])] for name in reports[0].pictures}
    signs = [report.signs for report in reports if report.signs]
    seen = functools.reduce(signs_lib.Signs.merged, signs) if len(signs) == len(reports) else None
    examples = _join([report.examples for report in reports], order)
    context = {name: value for name, value in reports[0].context.items() if name != identity.DATASET}
    return RobustnessReport(rows, context, examples, pictures, seen)


def _sum(rows):
    """Returns the row of the whole dataset from the rows of its shards."""
    broken_by = {stage: sum(row.broken_by[stage] for row in rows) for stage in rows[0].broken_by}
    n, correct, seconds, not_finite = (
        sum(getattr(row, name) for row in rows) for name in ("n", "correct", "seconds", "not_finite")
    )
    reached = None if rows[0].reached is None else sum(row.reached for row in rows)
    return AttackResult.of(rows[0].name, n, correct, seconds, rows[0].settings, broken_by, not_finite, reached)


def _join(parts, order):
    """Returns the columns of all parts joined, with their values in the given order."""
    if isinstance(parts[0], dict):
        return {name: _join([part[name] for part in parts], order) for name in parts[0]}
    joined = [value for part in parts for value in part]
    return [joined[place] for place in order]


def of_state(
    state: State,
    stages: dict[str, list[str]],
    settings: dict[str, dict[str, Any]],
    context: dict[str, Any],
    signs: signs_lib.Signs,
) -> RobustnessReport:
    """Returns the report of a finished evaluation.

    Args:
        state: the results of each example.
        stages: {name of an attack: names of its stages}.
        settings: {name of an attack: its settings}.
        context: context of the report.
        signs: what was seen of masked gradients.
    """
    results = [_clean_result(state)]
    examples = {name: getattr(state, name).tolist() for name in ("index", "label", "clean")}
    examples |= {"margin": _rounded(state.margin), "attacks": {}}
    for name, names in stages.items():
        row = state.rows[name]
        results.append(_attack_result(name, row, names, settings[name]))
        words = ["", *names, "clean"]  # indexed by broken_by: 0 is ROBUST; -1, the last one, is MISCLASSIFIED
        examples["attacks"][name] = {
            "broken_by": [words[number] for number in row.broken_by],
            "margin": _rounded(row.margin),
        }
    pictures = {name: state.rows[name].pictures for name in stages}
    return RobustnessReport(results, context, examples, pictures, signs)


def _clean_result(state):
    not_finite = int(np.isnan(state.margin).sum())
    return AttackResult.of("clean", len(state.index), int(state.clean.sum()), state.seconds, {}, not_finite=not_finite)


def _attack_result(name, row, stages, settings):
    broken_by = {stage: int(np.sum(row.broken_by == number)) for number, stage in enumerate(stages, 1)}
    return AttackResult.of(
        name,
        len(row.broken_by),
        int(row.robust().sum()),
        row.seconds,
        settings,
        broken_by,
        not_finite=int(np.isnan(row.margin).sum()),
        reached=row.reached if settings.get("targeted") else None,
    )


def _rounded(margins):
    """Returns margins for JSON: six digits, and None for NaN and infinity, which JSON does not have."""
    return [float(f"{margin:.6g}") if math.isfinite(margin) else None for margin in margins]


def _cells(result):
    norm, accuracy = result.settings.get("norm", "-"), intervals.percent(result.accuracy)
    numbers = (str(result.n), accuracy, intervals.text(result.interval), f"{result.seconds:.1f}")
    return (result.name, norm, result.epsilon_text(), *numbers)


def context(model: Any, seed: int) -> dict[str, Any]:
    """Returns the context of a report: the model, the digest of its weights, the seed and the software versions."""
    facts = provenance.facts(model)
    versions = facts.pop("versions")
    return {**facts, "seed": seed, "batch_norm": "frozen", "versions": versions}


def check_given(context: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the argument `context` of `evaluate` after a check; {} for None.

    Raises:
        ValueError: if it is not a dict of plain values, or would replace a measured fact.
    """
    context = {} if context is None else context
    if not isinstance(context, dict):
        raise ValueError(f'context must be a dict, such as {{"dataset": "cifar10"}}. Received: {context!r}')
    replaced = sorted(context.keys() & set(MEASURED))
    if replaced:
        raise ValueError(f"context must not contain {', '.join(map(repr, replaced))}: the evaluation measures these.")
    try:
        json.dumps(context)
    except TypeError as error:
        raise ValueError(f"context must be a dict of plain values, as JSON has them: {error}") from error
    return context
