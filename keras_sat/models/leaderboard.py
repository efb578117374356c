"""The list of pretrained weights, filtered, with the most robust networks first."""

import json
import re
from typing import Any

from keras_sat.models import weights

KEYS = ("tag", "model", "form", "activation", "image_size", "parameters", "dataset", "threat")


def list_weights(
    dataset: str | None = None, threat: str | None = None, model: str | None = None
) -> list[dict[str, Any]]:
    """Returns a dict for each set of pretrained weights, the highest robust accuracy first, unknown ones last.

    Robust accuracies compare only within one dataset and one threat model.

    Args:
        dataset: such as "CIFAR-10". Upper and lower case, and all but letters and digits, do not matter: "cifar10". The
            start of a name stands for all names that begin so ("imagenet"), unless it is a name itself. None: all.
        threat: "Linf", "L2" or "corruptions", matched in the same way. None: all.
        model: name of a builder, such as "WideResNet28_10", matched in the same way ("WideResNet"). None: all.

    Returns:
        A list of dicts with these keys:
        "tag": the argument `weights` of the builder.
        "model": the builder. "form": its argument `form`, or `stem` of a ConvNeXt.
        "activation": its argument `activation`; a configuration is JSON text, as the flag --activation takes it.
        "image_size": in pixels. "parameters": their number. "dataset", "threat": what they were trained for.
        "clean", "robust": accuracy in percent, or None. "under": the attack with which "robust" was measured.
        "unreliable": whether RobustBench doubts the figure; None if it does not say.
        "measured": whether the figures were measured with this package. If not, the authors or RobustBench report them.
        "source": where the weights come from.

        For RobustBench's networks, "robust" is the accuracy under AutoAttack, or that of an external evaluation that
        RobustBench accepted, if it is lower; "under" says which. For "sat-fashion-mnist", `weights.json` has confidence
        intervals.

    Raises:
        ValueError: if no weights have this dataset, threat model or model. The message lists those that there are.
    """
    rows = [_row(entry) for entry in weights.entries()]
    for key, wanted in {"dataset": dataset, "threat": threat, "model": model}.items():
        if wanted is not None:
            names = _matching(key, wanted, {row[key] for row in weights.entries()})
            rows = [row for row in rows if row[key] in names]
    if not rows:
        raise ValueError(f"There are no weights of dataset={dataset!r}, threat={threat!r} and model={model!r} at once.")
    return sorted(rows, key=lambda row: -1 if row["robust"] is None else row["robust"], reverse=True)


def _row(entry):
    measured = {name: row["accuracy"] for name, row in (entry["measured"] or {}).items()}
    figures = dict(entry["reported"] or measured)
    row = {key: entry.get(key) for key in KEYS} | {"form": weights.form_of(entry)}
    if not isinstance(entry["activation"], str):
        row["activation"] = json.dumps(entry["activation"])
    row["clean"] = figures.pop("clean", None)
    under, row["robust"] = list(figures.items())[-1] if figures else (None, None)
    row["under"] = under and f"{under}, {entry['attack']}"
    row["unreliable"] = entry.get("unreliable")
    return row | {"measured": not entry["reported"] and bool(measured), "source": entry["source"]}


def _matching(key, wanted, names):
    """Returns the names that a filter means: the one that it is, or else those that begin with it."""
    exact = {name for name in names if _plain(name) == _plain(wanted)}
    chosen = exact or {name for name in names if _plain(wanted) and _plain(name).startswith(_plain(wanted))}
    if not chosen:
        raise ValueError(f"There are no weights of {key} {wanted!r}; there are of {', '.join(sorted(names))}.")
    return chosen


def _plain(name):
    return re.sub("[^a-z0-9]", "", name.lower())
