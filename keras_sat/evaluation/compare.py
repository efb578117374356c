"""Does the armour survive the journey? A network beside what was exported from it, and attacks carried between them."""

import collections
import dataclasses
import json
import os
import warnings

import numpy as np
import tensorflow as tf

from keras_sat import data, files, losses
from keras_sat.attacks import Square, gradients, inputs, randomness
from keras_sat.evaluation import deployed
from keras_sat.evaluation.corruptions import Corruption
from keras_sat.evaluation.evaluate import by_name
from keras_sat.evaluation.report import AttackResult, context

ORIGINAL = "original"
WORST = "worst of all"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Accuracy of several networks, clean and on each other's adversarial examples.

    Attributes:
        results: {network: {"clean" or the network that the examples were made for, or "worst of all": AttackResult}}.
            An image counts as robust if it is classified correctly both clean and attacked. A network without
            gradients (int8) makes examples only for attacks that need none, so its own column may be missing, and
            what it withstands is only what was tried.
        warnings: sentences about networks that are less robust than the original by more than its interval.
        context: the attacks' settings, seed and versions.
    """

    results: dict
    warnings: list
    context: dict

    def table(self):
        """Returns the comparison as a plain-text table, and its warnings."""
        columns = list(dict.fromkeys(name for rows in self.results.values() for name in rows))
        header = ("network", *(name if name in ("clean", WORST) else f"from {name}" for name in columns))
        rows = [header] + [(name, *(_cell(rows.get(at)) for at in columns)) for name, rows in self.results.items()]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"Warning: {text}" for text in self.warnings)])

    def to_json(self, path=None):
        """Returns the comparison as JSON text; with `path`, also writes it to that file."""
        fields = dataclasses.asdict(self)
        if path is not None:
            files.write_json(path, fields)
        return json.dumps(fields, indent=2)


def compare(model, exported, dataset, attacks, *, seed=0, batch_size=128):
    """Measures what is left of a network's robustness after export, with attacks carried over from each to each.

    Every network is attacked by itself, as far as it has gradients, and every adversarial example is shown to all. For
    the strongest transfer give attacks that go on after the first success, such as `PGD(ball, steps=50)`.

    Args:
        model: the original: a Keras classifier, or a function, from images to logits.
        exported: a path, or a dict from names to paths, of SavedModels and LiteRT files; or models.
        dataset: as `evaluate` takes it.
        attacks: as `evaluate` takes them; an example broken by any of them counts as broken.
        seed: the same seed gives the same figures.
        batch_size: images in a batch, where the dataset is a pair of arrays.

    Returns:
        A `Comparison`. Its warnings are also given as Python warnings.

    Raises:
        ValueError: for a dataset without images, no or unreadable exports, or what the attacks refuse.
    """
    networks = {ORIGINAL: model} | _networks(exported)
    attacks = by_name(attacks)
    if not attacks:
        raise ValueError("attacks must be at least one attack, such as PGD(LinfBall(4)). Received none")
    for attack in attacks.values():
        inputs.check_untargeted(attack)
    sources = {name: [a for a in attacks.values() if _can(network, a)] for name, network in networks.items()}
    clean, robust, not_finite = {name: [] for name in networks}, {}, collections.Counter()
    first = 0
    for images, labels in data.batches(dataset, batch_size):
        images = tf.cast(images, tf.float32)
        labels = losses.hard_labels(labels, gradients.logits(model, images[:1]).shape[-1])
        if first == 0:
            for network in networks.values():
                inputs.check_logits(network, images, labels)
        for name, network in networks.items():
            clean[name].append(_correct(network, images, labels, not_finite, (name, "clean")))
        seeds = tf.range(first, first + len(labels))
        for source in sources:
            found = [attack(networks[source], images, labels, _seeds(seed, seeds)) for attack in sources[source]]
            for name, network in networks.items() if found else ():
                standing = [_correct(network, x, labels, not_finite, (name, source)) for x in found]
                robust.setdefault((name, source), []).append(np.all(standing, axis=0))
        first += len(labels)
    if first == 0:
        raise ValueError("The dataset has no images to compare on.")
    results = _results(networks, clean, robust, not_finite)
    found = _warnings(results) + [
        f"{name} has a logit that is NaN or infinite for {sum(row.not_finite for row in rows.values())} of the images "
        "it was shown, clean and attacked; these count as misclassified."
        for name, rows in results.items()
        if any(row.not_finite for row in rows.values())
    ]
    for text in found:
        warnings.warn(text, stacklevel=2)
    settings = {name: attack.settings() for name, attack in attacks.items()}
    return Comparison(results, found, context(model, seed) | {"attacks": settings})


def _networks(exported):
    if isinstance(exported, (str, os.PathLike)):
        exported = {os.path.basename(os.path.abspath(exported)): exported}
    if not isinstance(exported, dict) or not exported or {ORIGINAL, "clean", WORST} & exported.keys():
        raise ValueError(
            f"exported must be a path, or a dict from names (other than {ORIGINAL!r}) to paths. Received: {exported!r}"
        )
    return {name: deployed.model_of(what) for name, what in exported.items()}


def _can(network, attack):
    return getattr(network, "has_gradients", True) or isinstance(attack, (Square, Corruption))


def _seeds(seed, places):
    one = tf.constant([seed, 0], tf.int32)
    return tf.stack([tf.fill(places.shape, randomness.fold(one, 0)[0]), places], axis=1)


def _correct(network, images, labels, not_finite, key):
    """Returns which images are classified correctly; adds to a counter how many have a logit that is not finite."""
    logits = gradients.logits(network, images)
    not_finite[key] += int(tf.math.count_nonzero(~losses.is_finite(logits)))
    return losses.is_correct(labels, logits).numpy()


def _results(networks, clean, robust, not_finite):
    """Returns {network: {column: AttackResult}}."""
    results = {}
    for name in networks:
        right = np.concatenate(clean[name])
        rows = {"clean": right}
        for source in networks:
            if (name, source) in robust:
                rows[source] = right & np.concatenate(robust[name, source])
        rows[WORST] = np.all(list(rows.values()), axis=0)
        counts = {column: (len(row), int(row.sum())) for column, row in rows.items()}
        results[name] = {
            column: AttackResult.of(column, *count, 0.0, {}, not_finite=not_finite[name, column])
            for column, count in counts.items()
        }
    return results


def _warnings(results):
    """Says which networks are less accurate, clean or at worst, than the low end of the original's interval."""
    found = []
    for name, rows in list(results.items())[1:]:
        for column, what in (("clean", "accurate"), (WORST, "robust")):
            original = results[ORIGINAL][column]
            if rows[column].accuracy < original.interval[0]:
                found.append(
                    f"{name} is less {what} than the original: {100 * rows[column].accuracy:.1f} % against "
                    f"{100 * original.accuracy:.1f} % ({100 * original.interval[0]:.1f} .. "
                    f"{100 * original.interval[1]:.1f})."
                )
    return found


def _cell(result):
    if result is None:
        return "-"
    low, high = (f"{100 * bound:.1f}" for bound in result.interval)
    return f"{100 * result.accuracy:.1f} % ({low} .. {high})"
