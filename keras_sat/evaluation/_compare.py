"""Compares a network with its exports: clean accuracies, and accuracies on each other's adversarial examples."""

import dataclasses
import json
import os
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import data, deployed, files, losses, tables
from keras_sat.attacks import gradients, judging, randomness, validation
from keras_sat.attacks.attack import Attack
from keras_sat.evaluation import intervals, report
from keras_sat.evaluation.report import AttackResult
from keras_sat.evaluation.stages import by_name, can_attack
from keras_sat.lines import Line
from keras_sat.typing import Dataset, LogitsFunction, Path

ORIGINAL = "original"
CLEAN = "clean"
WORST = "worst of all"
EXPLANATION = """\
A row is a network that classifies the images. "from X": the share that it classifies correctly, both clean and as the
attacks on X changed them. "worst of all": both clean and as the attacks on each of the networks changed them. So "worst
of all" may be lower than the robust accuracy of `keras-sat evaluate`, which attacks one network alone."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Accuracy of several networks, clean and on each other's adversarial examples.

    Attributes:
        results: {network: {column: AttackResult}}. A column is "clean"; the name of the network that was attacked to
            make the adversarial examples; or "worst of all". An image counts as robust if it is classified correctly
            both clean and attacked. A network without gradients (int8) can be attacked only by attacks that need no
            gradients. If there is no such attack, it has no column, and its measured robust accuracy is an upper bound,
            because only adversarial examples of the other networks were used.
        warnings: sentences about networks whose accuracy is below the interval of the original, or whose logits are not
            finite.
        context: the attacks' settings, the seed, the versions, and the entries of the argument `context`.
    """

    results: dict[str, dict[str, AttackResult]]
    warnings: list[str]
    context: dict[str, Any]

    def table(self) -> str:
        """Returns the comparison as a plain-text table, followed by an explanation and its warnings."""
        columns = list(dict.fromkeys(name for rows in self.results.values() for name in rows))
        header = ("network", *(name if name in (CLEAN, WORST) else f"from {name}" for name in columns))
        lines = [(name, *(_cell(rows.get(column)) for column in columns)) for name, rows in self.results.items()]
        warned = (f"Warning: {text}" for text in self.warnings)
        return "\n".join([tables.text(header, *lines), "", EXPLANATION, *warned])

    def to_json(self, path: Path | None = None) -> str:
        """Returns the comparison as JSON text. With `path`, also writes it to that file."""
        fields = dataclasses.asdict(self)
        if path is not None:
            files.write_json(path, fields)
        return json.dumps(fields, indent=2)


def compare(
    model: LogitsFunction,
    exported: Path | dict[str, Any],
    dataset: Dataset,
    attacks: Attack | list[Attack] | dict[str, Attack],
    *,
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = True,
    context: dict[str, Any] | None = None,
) -> Comparison:
    """Measures how much of a network's robustness its exports keep.

    Each network is attacked (without gradients, only by attacks that need none), and all networks classify all
    adversarial examples. Examples transfer best if the attacks continue after the first success, as
    `PGD(ball, steps=50)` does.

    Args:
        model: the original network: a Keras classifier, or a function from images to logits.
        exported: the path of a SavedModel or LiteRT file, or a dict {name: path or model}.
        dataset: see `evaluate`.
        attacks: see `evaluate`. With several attacks, an example counts as broken if one of them breaks it.
        seed: the same seed gives the same results. Default: 0.
        batch_size: number of images in a batch, if the dataset is a pair of arrays. Default: 128.
        progress: whether to show on stdout how many images are done.
        context: see `evaluate`.

    Returns:
        A `Comparison`. Its warnings are also issued as Python warnings.

    Raises:
        ValueError: for a dataset without images, no or unreadable exports, a targeted attack, a `context` that would
            replace a measured fact, or images and labels for which `Attack.__call__` raises ValueError.
    """
    shared = report.context(model, seed) | report.check_given(context)
    comparing = _Comparing({ORIGINAL: model} | _networks(exported), _checked(attacks), seed)
    line = Line(enabled=progress)
    line.show(
        f"Attacking {len(comparing.networks)} networks; compiling the attacks (up to a minute each) ...", is_due=True
    )
    for images, labels in data.batches(dataset, batch_size):
        images = tf.cast(images, tf.float32)
        comparing.add(images, losses.hard_labels(labels, gradients.logits(model, images[:1]).shape[-1]))
        line.show(f"{comparing.images} images attacked and classified by {len(comparing.networks)} networks")
    line.write(f"{comparing.images} images attacked and classified by {len(comparing.networks)} networks")
    results = comparing.results()
    sentences = _less_accurate(results) + _not_finite(results)
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=2)
    settings = {name: attack.settings() for name, attack in comparing.attacks.items()}
    return Comparison(results, sentences, shared | {"attacks": settings})


def _networks(exported):
    """Returns {name: model} of the exports."""
    if isinstance(exported, (str, os.PathLike)):
        exported = {os.path.basename(os.path.abspath(exported)): exported}
    if not isinstance(exported, dict) or not exported or {ORIGINAL, CLEAN, WORST} & exported.keys():
        raise ValueError(
            f"exported must be a path, or a dict from names (other than {ORIGINAL!r}) to paths. Received: {exported!r}"
        )
    return {name: deployed.model_of(each) for name, each in exported.items()}


def _checked(attacks):
    """Returns {name: attack}. Raises ValueError for no attack or a targeted one."""
    named = by_name(attacks)
    if not named:
        raise ValueError("attacks must be at least one attack, such as PGD(LinfBall(4)). Received none")
    for attack in named.values():
        validation.check_untargeted(attack)
    return named


class _Comparing:
    """Collects, batch by batch, which images each network classifies correctly, clean and attacked."""

    def __init__(self, networks: dict[str, Any], attacks: dict[str, Attack], seed: int) -> None:
        self.networks, self.attacks, self._seed = networks, attacks, tf.constant([seed, 0], tf.int32)
        self._sources = {
            name: [attack for attack in attacks.values() if can_attack(attack, network)]
            for name, network in networks.items()
        }
        self._attacked = {name: gradients.inference(network) for name, network in networks.items()}
        self.images = 0
        # {(network, column): the correctly classified images of each batch}
        self._correct: dict[tuple[str, str], list[np.ndarray]] = {}
        # {(network, column): number of outputs that are not finite}
        self._not_finite: dict[tuple[str, str], int] = {}

    def add(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        """Adds a batch."""
        if self.images == 0:
            for network in self.networks.values():
                validation.check_logits(network, images, labels)
        seeds = randomness.at_places(self._seed, tf.range(self.images, self.images + len(labels)))
        self._show([images], labels, CLEAN)
        for source, attacks in self._sources.items():
            adversarial = [attack(self._attacked[source], images, labels, seeds) for attack in attacks]
            if adversarial:
                self._show(adversarial, labels, source)
        self.images += len(labels)

    def _show(self, versions, labels, column):
        """Classifies images by all networks. An image counts as correct if each of its `versions` is correct."""
        for name, network in self.networks.items():
            judgements = [judging.judge(network, images, labels) for images in versions]
            correct = np.all([judgement.is_correct for judgement in judgements], axis=0)
            self._correct.setdefault((name, column), []).append(correct)
            not_finite = sum(int(np.count_nonzero(np.isnan(judgement.margin))) for judgement in judgements)
            self._not_finite[name, column] = self._not_finite.get((name, column), 0) + not_finite

    def results(self) -> dict[str, dict[str, AttackResult]]:
        """Returns {network: {column: AttackResult}}."""
        if self.images == 0:
            raise ValueError("The dataset has no images to compare on.")
        return {name: self._rows(name) for name in self.networks}

    def _rows(self, name):
        correct = {
            column: np.concatenate(parts) for (network, column), parts in self._correct.items() if network == name
        }
        correct = {column: correct[CLEAN] & robust for column, robust in correct.items()}
        correct[WORST] = np.all(list(correct.values()), axis=0)
        return {
            column: AttackResult.of(
                column, len(row), int(row.sum()), 0.0, {}, not_finite=self._not_finite.get((name, column), 0)
            )
            for column, row in correct.items()
        }


def _less_accurate(results):
    """Returns sentences on networks whose accuracy, clean or worst, is below the interval of the original's."""
    sentences = []
    for name, rows in list(results.items())[1:]:
        for column, word in ((CLEAN, "accurate"), (WORST, "robust")):
            original = results[ORIGINAL][column]
            if rows[column].accuracy < original.interval[0]:
                sentences.append(
                    f"{name} is less {word} than the original: {intervals.percent(rows[column].accuracy)} against "
                    f"{_cell(original)}."
                )
    return sentences


def _not_finite(results):
    """Returns sentences on networks with logits that are not finite."""
    counts = {name: sum(row.not_finite for row in rows.values()) for name, rows in results.items()}
    return [
        f"{name} has a logit that is NaN or infinite for {count} of the images it was shown, clean and attacked; these "
        "count as misclassified."
        for name, count in counts.items()
        if count
    ]


def _cell(result):
    return "-" if result is None else f"{intervals.percent(result.accuracy)} ({intervals.text(result.interval)})"
