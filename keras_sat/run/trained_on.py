"""The images that a network was trained on before: their accuracies say too much."""

from typing import Any

from keras_sat import data
from keras_sat.models import weights as weights_lib
from keras_sat.run import folder as folder_lib
from keras_sat.run import pretrained
from keras_sat.run.configuration import Run

KEY = "trained_on"  # of the entry "began_with" of run.json


def before(run: Run) -> list[dict[str, Any]]:
    """Returns the trainings behind the weights that a run begins with, the last one first; [] if they are unknown.

    A training is {"dataset", "train_split", "hold_out", "seed"}: the images of the split but for those that were held
    out. It is known of a tag, and of a run, with those that came before it. It is unknown of an export, and of a file
    that is not in the folder of its run.
    """
    if not run.weights:
        return []
    start = run.start
    if start.kind == pretrained.TAG:
        entry = weights_lib.find(start.model, start.activation, start.source, None, start.form)
        known = {entry["evaluation"]["dataset"], (entry.get("training") or {}).get("dataset")} - {None}
        return [{"dataset": name, "train_split": "train", "hold_out": 0, "seed": None} for name in sorted(known)]
    if start.run is None:
        return []
    record = folder_lib.read_record(start.run)
    held_out = 0 if record.get("validation_split") else record.get("validation", 0)
    names = ("dataset", "train_split", "seed")
    own = {name: record[name] for name in names if name in record} | {"hold_out": held_out}
    return [own, *((record.get("began_with") or {}).get(KEY) or [])]


def for_validation(run: Run) -> list[str]:
    """Returns lines about images for validation that the weights were trained on; [] if there are none."""
    if not run.validates:
        return []
    own = {"train_split": run.train_split, "hold_out": run.hold_out, "seed": run.seed}
    lines = []
    for training in before(run):
        is_held_out_alike = not run.validation_split and own.items() <= training.items()
        if not is_held_out_alike and _number(run, run.validation_split or run.train_split, training):
            lines.append(
                f"The weights were trained on {training['train_split']} of {training['dataset']}, which has images for "
                "validation too: validation accuracies are too high, and the epoch that is kept may be a wrong one."
            )
    return lines


def for_evaluation(run: Run, record: dict[str, Any], split: str) -> list[str]:
    """Returns lines about images of a split on which the weights were trained before the run.

    Args:
        run: the run.
        record: its run.json.
        split: the split of the evaluation.
    """
    trainings = (record.get("began_with") or {}).get(KEY) or []
    return [
        f"{number} images of {split} are also in {training['train_split']}, on which the weights were trained that the "
        "run began with: the measured accuracies are too high."
        for training in trainings
        if (number := _number(run, split, training))
    ]


def _number(run, split, training):
    """Returns the number of images of a split of the run's dataset that are in a training's split."""
    if training.get("dataset") != run.dataset:
        return 0
    try:
        return data.overlap(run.source, split, training["train_split"])
    except (ValueError, KeyError):  # the split is gone, or an old run.json does not name it
        return 0
