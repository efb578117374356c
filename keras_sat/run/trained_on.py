"""The images that a network was trained on before: accuracies that are measured on them are too high."""

import json
import os
from typing import Any

from keras_sat import data, export
from keras_sat.models import foreign
from keras_sat.models import weights as weights_lib
from keras_sat.run import pretrained
from keras_sat.run.configuration import Run

KEY = "trained_on"  # of the entry "began_with" of run.json


def before(run: Run) -> list[dict[str, Any]]:
    """Returns the trainings behind the weights that a run begins with, the last one first; [] if they are unknown.

    A training is a dict. "dataset", "train_split", "hold_out" and "seed" say which images it was trained on: those of
    the split but for those that were held out. "images" is {split: fingerprint}, or {} if it is unknown. Trainings are
    known of a tag, of a run and of its export, with those that came before. They are unknown of other weights.
    """
    if not run.weights:
        return []
    start = run.start
    if start.kind == pretrained.TAG:
        entry = weights_lib.find(start.model, start.activation, start.source, None, start.form)
        return of_entry(entry)
    if start.kind == foreign.SAVED_MODEL:
        settings = _read(start.source, export.saved_model.CARD).get("training") or {}
        return settings.get(KEY) or [_training(settings)]
    return [] if start.run is None else of_record(_read(start.run, "run.json"))


def of_entry(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the training of released weights, from their entry in the registry. See `before`."""
    known = {entry["evaluation"]["dataset"], (entry.get("training") or {}).get("dataset")} - {None}
    return [_training({"dataset": name}) for name in sorted(known)]


def of_record(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the training of a run, from its run.json, and those before it. See `before`."""
    return [_training(record), *((record.get("began_with") or {}).get(KEY) or [])]


def _read(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


def _training(settings):
    return {
        "dataset": settings.get("dataset"),
        "train_split": settings.get("train_split", "train"),
        "hold_out": 0 if settings.get("validation_split") else settings.get("validation", 0),
        "seed": settings.get("seed"),
        "images": _fingerprints(settings.get("data", {}).get("splits", {})),
    }


def _fingerprints(splits):
    return {split: about["sha256"] for split, about in splits.items() if "sha256" in about}


def for_validation(run: Run) -> list[str]:
    """Returns lines about images for validation that the weights were trained on; [] if there are none."""
    if not run.validates:
        return []
    own = {"train_split": run.train_split, "hold_out": run.hold_out, "seed": run.seed}
    own |= {"images": _fingerprints(run.description.splits)}  # of other images, others are held out
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
        f"The run began with weights that were trained on {training['train_split']}, which has {number} images of "
        f"{split}: the measured accuracies are too high."
        for training in trainings
        if (number := _number(run, split, training))
    ]


def shared(source: data.Folder | data.Prepared, split: str, training: dict[str, Any]) -> int:
    """Returns the number of images of a split that are in a training's split of the same dataset."""
    try:
        return data.overlap(source, split, training["train_split"])
    except ValueError:  # the split is gone
        return 0


def _number(run, split, training):
    return shared(run.source, split, training) if _is_dataset_of(run, training) else 0


def _is_dataset_of(run, training):
    """Returns whether a training had the run's dataset: by its name or path, or by the contents of a split."""
    now = _fingerprints(run.description.splits)
    return training["dataset"] == run.dataset or any(
        now.get(split) == digest for split, digest in training["images"].items()
    )
