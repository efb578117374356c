"""The folder of a run: run.json (configuration, data, curves), model.weights.h5, logs/ and checkpoints/."""

import dataclasses
import json
import os
import re
import warnings
from typing import Any

import keras

from keras_sat import data, deployed, files, models, provenance
from keras_sat import export as export_lib
from keras_sat.evaluation import report
from keras_sat.run import pretrained, trained_on
from keras_sat.run.configuration import Run, dtype_policy, fields
from keras_sat.typing import Path

# The settings of runs whose run.json is older than these settings.
FORMER = {"validation": 0.0, "keep": "last", "guard": "none"}
# What run.json holds beside the settings.
RECORDED = (
    "began_with",
    "best",
    "continued",
    "data",
    "ended",
    "finished",
    "history",
    "iterations",
    "kept",
    "last",
    "versions",
)


def run_json(folder: Path) -> str:
    """Returns the path of run.json, the file that describes the run."""
    return os.path.join(folder, "run.json")


def weights(folder: Path, which: str | None = None) -> str:
    """Returns the path of the trained weights.

    Args:
        folder: the folder of the run.
        which: "best" or "last", for the weights that the run did not keep as model.weights.h5. Default: those it kept.
    """
    return os.path.join(folder, f"{which or 'model'}.weights.h5")


def best_weights(folder: Path) -> str:
    """Returns the path of the weights of the best epoch so far, which a training in progress writes."""
    return os.path.join(checkpoints(folder), "best.weights.h5")


def history(folder: Path) -> str:
    """Returns the path of the metrics of all epochs, a CSV file."""
    return os.path.join(folder, "history.csv")


def logs(folder: Path) -> str:
    """Returns the folder of the logs for TensorBoard."""
    return os.path.join(folder, "logs")


def checkpoints(folder: Path) -> str:
    """Returns the folder of the checkpoints, from which an interrupted run continues."""
    return os.path.join(folder, "checkpoints")


def has_checkpoint(folder: Path) -> bool:
    """Returns whether there is a checkpoint from which the run can continue."""
    path = checkpoints(folder)
    return os.path.isdir(path) and any(re.fullmatch(r"step-\d+\.json", name) for name in os.listdir(path))


def is_export(path: Path) -> bool:
    """Returns whether a path is an export (a SavedModel or a .tflite file), not the folder of a run."""
    return os.fspath(path).endswith(".tflite") or os.path.exists(os.path.join(path, "saved_model.pb"))


def record(run: Run) -> dict[str, Any]:
    """Returns the configuration of a run and the description of its data, as run.json stores them."""
    data_used = run.description.settings() | ({"extra": run.extra.fingerprint()} if run.extra else {})
    return run.settings() | {"data": data_used}


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the contents of run.json.

    Raises:
        ValueError: if the file is damaged.
        FileNotFoundError: if there is no such file.
    """
    return _read_json(run_json(folder))


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _advice(folder):
    """Returns what a folder without run.json is, with a space before; "" if it is unknown."""
    if os.path.isdir(os.path.join(folder, "checkpoints")):
        return " Its training has not ended: the same `keras-sat train` continues it."
    return pretrained.inside(folder)


def load(folder: Path) -> tuple[Run, keras.Model]:
    """Returns the `Run` of a folder and its trained network. The dataset is not necessary for this.

    Args:
        folder: the folder that `train` wrote.

    Raises:
        ValueError: if there is no run, or its files cannot be read; the message names the file.
    """
    folder = files.expanded(folder)
    if os.path.isfile(folder):
        raise ValueError(pretrained.advice(folder))
    if not os.path.isdir(folder):
        raise ValueError(f"There is no folder {folder}; `keras-sat train --output={folder}` would write it.")
    try:
        stored = read_record(folder)
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run: {run_json(folder)} is missing.{_advice(folder)}") from None
    try:
        run = _of_record(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run_json(folder)} is damaged: {type(error).__name__}: {error}") from error
    _warn_of(folder, stored)
    with dtype_policy(run.precision):
        model = run.build()
    models.weights.load_file(model, weights(folder))
    return run, model


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings that a run.json has, for `Run(**settings)`.

    Args:
        path: a run.json, a file of settings in the same form, or the folder of a run.

    Raises:
        ValueError: if there is no such file, it is damaged, or it has a name that is no setting.
    """
    path = files.expanded(path)
    path = run_json(path) if os.path.isdir(path) else path
    try:
        stored = _read_json(path)
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}: a run.json, or the folder of a run, was expected.") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds a {type(stored).__name__}: a dict of settings was expected, as in run.json.")
    names = [field.name for field in fields()]
    unknown = [name for name in stored if name not in (*names, *RECORDED)]
    if unknown:
        raise ValueError(
            f"{path} has {unknown[0]!r}, which is no setting. `keras-sat train --help` lists the settings."
        )
    return {name: stored[name] for name in names if name in stored}


def _of_record(stored):
    described = data.Description.of(stored["data"]) if "data" in stored else None
    # An older run.json lacks fields that were added later: these keep their defaults.
    stored = FORMER | stored
    settings = {field.name: stored[field.name] for field in fields() if field.name in stored}
    return Run(**settings, record=described)


def _warn_of(folder, stored):
    """Warns about an interrupted training, and about a run.json that does not describe its data."""
    if stored.get("finished") is False:
        warnings.warn(f"The training in {folder} was interrupted at step {stored.get('iterations')}.", stacklevel=3)
    if "data" not in stored:
        warnings.warn(
            f"{run_json(folder)} does not say its classes and preprocessing: those of the dataset as it is now are "
            "taken.",
            stacklevel=3,
        )


def with_data(run: Run, dataset: str | None = None, data_dir: str | None = None, skip_damaged: bool = False) -> Run:
    """Returns the run with another dataset, `data_dir` or `skip_damaged`. None or False changes nothing."""
    given: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir, "skip_damaged": skip_damaged}
    return dataclasses.replace(run, **{name: value for name, value in given.items() if value})


def changes(run: Run, split: str) -> list[str]:
    """Returns the changes of a split's images since the training, as a list of lines; [] if there are none.

    The list is also empty if the run has another dataset than in the training (see `with_data`).

    Args:
        run: a run, as `load` returns it.
        split: the split, such as "test[:500]". The whole splits that it refers to are compared.
    """
    if not run.record or run.dataset != run.record.dataset:
        return []
    names = {part.partition("[")[0] for part in split.split("+")} & set(run.source.splits)
    now = run.record.splits | {name: run.source.fingerprint(name) for name in names}
    return run.record.differences(dataclasses.replace(run.record, splits=now))


def export(run: Run, model: keras.Model, folder: Path, path: Path, precision: str = "float32") -> None:
    """Writes the trained network of a run as a SavedModel, with its class names and its measured robustness.

    Args:
        run: the run, as `load` returns it.
        model: the trained network, as `load` returns it.
        folder: folder of the run. If its report.json belongs to the same weights, the robustness card gets the measured
            accuracies.
        path: folder to write. It must not exist.
        precision: precision of the computation in the SavedModel: "float32" (default) or "bfloat16".

    Raises:
        ValueError: see `export.export_saved_model`.
    """
    folder = files.expanded(folder)
    stored = read_record(folder)
    training = run.settings() | {name: stored.get(name) for name in ("kept", "best", "last")}
    former = trained_on.of_record(stored)
    training[trained_on.KEY] = [one | {"dataset": os.path.basename(one["dataset"] or "")} for one in former]
    training |= {} if run.sigma is None else {"epsilon": None}  # trained on noise, without a ball
    training["attack_batch_norm"] = run.attack_batch_norm or ("batch" if run.replays else "frozen")
    without_paths = {"dataset": os.path.basename(run.dataset), "data_dir": None}  # of this machine
    paths = {name: training[name] for name in ("weights", "extra_data") if os.path.isabs(training[name] or "")}
    without_paths |= {name: os.path.basename(path) for name, path in paths.items()}
    export_lib.export_saved_model(
        model,
        path,
        labels=run.description.classes,
        preprocessing=run.description.preprocessing,
        precision=precision,
        report=_measured(folder, model),
        card={"network": run.network(model), "training": training | without_paths},
    )


def _measured(folder, model):
    """Returns the newest report of a run; None if there is no report, or if it belongs to other weights."""
    path = os.path.join(folder, "report.json")
    measured = report.from_json(path) if os.path.exists(path) else None
    is_of_model = measured and measured.context.get("weights_sha256") == provenance.weights_sha256(model)
    return measured if is_of_model else None


def check_export(run: Run, path: Path) -> None:
    """Checks that an export has the same classes as a run. Warns if it has another preprocessing, or names no classes.

    Args:
        run: the run, as `load` returns it.
        path: the folder of a SavedModel, or a .tflite file.

    Raises:
        ValueError: if the classes of the export are not the classes of the run, in the same order.
    """
    path = files.expanded(path)
    described = run.description
    labels, preprocessing = deployed.labels_of(path), deployed.preprocessing_of(path)
    if labels is None:
        warnings.warn(
            f"{path} does not name its classes (assets/labels.txt): those of the run are assumed.", stacklevel=2
        )
    elif labels != described.classes:
        pairs = zip(labels, described.classes)
        one, other = next(((a, b) for a, b in pairs if a != b), (len(labels), len(described.classes)))
        raise ValueError(f"{path} has other classes than the run: {one!r} in its labels.txt, {other!r} in run.json.")
    if preprocessing is not None and preprocessing != described.preprocessing:
        warnings.warn(
            f"{path} has another preprocessing than the run: {preprocessing}, not {described.preprocessing}. That of "
            "the run is used.",
            stacklevel=2,
        )
