"""Exports a classifier as a SavedModel, which can be served, fine-tuned and attacked without this package."""

import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sat import deployed, files, provenance
from keras_sat.attacks import agreement
from keras_sat.evaluation import RobustnessReport, identity
from keras_sat.export import signatures as signatures_lib
from keras_sat.export import warmup as warmup_lib
from keras_sat.models import classifier
from keras_sat.preprocessing import Preprocessing
from keras_sat.training import AdversarialModel
from keras_sat.typing import Path

SIGNATURES = ("serving_default", "serving_uint8", "serving_bytes", "features", "input_gradient")
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
LABELS = deployed.LABELS
CARD = os.path.join("assets", "robustness_card.json")
PREPROCESSING = deployed.PREPROCESSING
ARCHITECTURE = os.path.join("assets", "keras_model.json")

# Entries of a report's context that are not copied to the card: the card has its own entries for the first three,
# labels.txt has the names of the classes, and the folder of the run means nothing on other machines.
_NOT_MEASURED = ("model", "weights_sha256", identity.LOGITS, "versions", "classes", "run")


def export_saved_model(
    model: keras.Model,
    path: Path,
    *,
    image_size: int | Sequence[int] | None = None,
    signatures: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    warmup: bool | np.ndarray = True,
    precision: str = "float32",
    report: RobustnessReport | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Writes a classifier as a SavedModel folder (tag `serve`) for TF Serving or `tf.saved_model.load`.

    Signatures. `images` are [batch, height, width, channels], pixels in the model's range (0..255 for the models of
    this package); all floating-point outputs are float32:

    | name              | takes                                    | returns                                          |
    |-------------------|------------------------------------------|--------------------------------------------------|
    | `serving_default` | `images` float32                         | `logits`, `probabilities` [batch, classes],      |
    |                   |                                          | `classes` int64 [batch], the most likely class   |
    | `serving_uint8`   | `images` uint8: a quarter of the bytes   | the same                                         |
    | `serving_bytes`   | `image_bytes` string [batch]: JPEG, PNG, | the same; InvalidArgument that names the indices |
    |                   | GIF, BMP, WebP, converted to pixels by   | of the files that are not images                 |
    |                   | `preprocessing`                          |                                                  |
    | `features`        | `images` float32                         | `features` [batch, n]: the input of the last     |
    |                   |                                          | dense layer                                      |
    | `input_gradient`  | `images` float32, `labels` int64 [batch] | `loss` [batch] (cross entropy) and `gradient` of |
    |                   |                                          | each loss with respect to its image              |

    In Python, `tf.saved_model.load` returns a reusable SavedModel: `loaded(images, training=False)` returns logits;
    with `training=True` batch norm and dropout are in training mode; `loaded.variables` and
    `loaded.trainable_variables` can be trained. (No signature trains the network: otherwise clients of a server could
    change its batch statistics.)

    Other files in the folder: `assets/labels.txt` (one class name in each line), `assets/preprocessing.json` (how
    images are converted to pixels), `assets/robustness_card.json` (the measured accuracies with their attacks, the
    digest of the weights, and the settings of the training), `assets/keras_model.json` (the architecture, for
    `load_for_fine_tuning`) and `assets.extra/tf_serving_warmup_requests`.

    Args:
        model: a built Keras classifier that returns logits, or an `AdversarialModel`, whose attribute `classifier` is
            exported. Mixed precision, and variables mirrored by a strategy, become plain float32.
        path: the folder to write. It must not exist.
        image_size: height and width in pixels, or one integer for both, for a model that takes images of any size.
            Without it, such a model is exported for any size, and without `serving_bytes`.
        signatures: names of the signatures to write, from the table. `serving_default` is always written. Default: all
            signatures that are possible for the model.
        labels: names of the classes, in the order of the logits. Default: no file of labels.
        preprocessing: the `preprocessing.Preprocessing` with which `serving_bytes` converts an image file to pixels.
            Use the one with which the network was trained and evaluated. Default: the whole image, resized.
        warmup: the images that TF Serving sends to each signature before it accepts requests, so that the first request
            is as fast as the others. True (default): one grey image, but none if the model takes any image size. An
            array [n, height, width, channels]: these images. False: no images. The file needs tensorflow-serving-api;
            without it a warning says how to install it, and no file is written.
        precision: "float32" (default) or "bfloat16": the precision of the computation. Weights, inputs and outputs are
            float32.
        report: a `RobustnessReport` of these weights, for the card. Default: a card without measured accuracies.
        card: a dict of further entries for the card.

    Raises:
        ValueError: if the model is not built or returns probabilities, if `path` exists, or if image size, signatures,
            labels, preprocessing, warm-up images, precision or report do not fit the model. Nothing is written then.
    """
    training = {}
    if isinstance(model, AdversarialModel):
        training = {"training": _training(model)}
        model = model.classifier
    classifier.check(model)
    path = files.expanded(path)
    if os.path.exists(path):
        raise ValueError(f"{path} exists: choose a new folder, or remove it first.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}. Received: {precision!r}")
    shape = _image_shape(model, image_size)
    network = _in_precision(model, PRECISIONS[precision], shape)
    how = _preprocessing(preprocessing, shape)
    root, functions = signatures_lib.trace(network, shape, _names(signatures, network, shape), how)
    classes = functions["serving_default"].structured_outputs["probabilities"].shape[-1]
    contents = {
        LABELS: _label_lines(labels, classes),
        CARD: json.dumps(_card(model, shape, classes, precision, report, training | (card or {})), indent=2) + "\n",
        PREPROCESSING: how and json.dumps(how.settings(), indent=2) + "\n",
        ARCHITECTURE: _architecture(network),
    }
    requests = warmup_lib.requests(functions, shape, warmup)
    with files.atomic_write(path) as temporary:
        tf.saved_model.save(root, temporary, signatures=functions)
        for name, text in contents.items():
            if text is not None:
                os.makedirs(os.path.dirname(os.path.join(temporary, name)), exist_ok=True)
                files.write_text(os.path.join(temporary, name), text)
        warmup_lib.write(requests, temporary)


def _in_precision(model, policy, shape):
    """Returns the model in a precision. Raises ValueError if a copy does not compute the same."""
    network = classifier.in_precision(model, policy)
    images = None if network is model else classifier.some_inputs(model, shape)
    images = None if images is None else agreement.comparable(model, images)
    difference = None if images is None else agreement.difference(model, network, images, agreement.LOW)
    if difference:
        raise ValueError(
            f"{model.name} cannot be exported in {policy.removeprefix('mixed_')}: its copy has {difference}. Does the "
            "get_config of a layer leave out an argument?"
        )
    return network


def _image_shape(model, image_size):
    """Returns (height, width, channels) of the images that the export takes; None for any number."""
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"{model.name} does not say which images it takes: wrap it, as in "
            f"keras.Sequential([keras.Input((224, 224, 3)), model])."
        )
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        taken = [tuple(tensor.shape) for tensor in model.inputs]
        raise ValueError(f"{model.name} must take images [batch, height, width, channels] alone. It takes: {taken}")
    *own, channels = model.inputs[0].shape[1:]
    if image_size is None:
        return (*own, channels)
    size = list(image_size) if isinstance(image_size, (tuple, list)) else [image_size, image_size]
    if len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise ValueError(f"image_size must be one or two integers >= 1, in pixels. Received: {image_size!r}")
    if any(there not in (None, asked) for there, asked in zip(own, size)):
        raise ValueError(f"{model.name} takes images of {own[0]} x {own[1]}. Received: image_size={image_size!r}")
    return (*size, channels)


def _preprocessing(given, shape):
    """Returns the Preprocessing for images of a shape; None for any size, or if they are neither grey nor RGB."""
    if given is not None and given.shape != shape:
        raise ValueError(f"The preprocessing gives images of {given.shape}; the network takes {shape}.")
    if None in shape or shape[-1] not in (1, 3):
        return None
    return given or Preprocessing(*shape)


def _names(asked, network, shape):
    """Returns the names of the signatures to write."""
    lacking = {}  # {name: why the network cannot have it}
    if None in shape:
        lacking["serving_bytes"] = "image_size is not given, to which they are resized"
    elif shape[-1] not in (1, 3):
        lacking["serving_bytes"] = f"image files are read as grey or RGB, not with {shape[-1]} channels"
    if classifier.features(network) is None:
        lacking["features"] = "the model does not end in a dense layer"
    if asked is None:
        return [name for name in SIGNATURES if name not in lacking]
    if isinstance(asked, str) or not set(asked) <= set(SIGNATURES):
        raise ValueError(f"signatures must be names out of {', '.join(SIGNATURES)}. Received: {asked!r}")
    for name in lacking.keys() & set(asked):
        raise ValueError(f"{network.name} cannot have the signature {name!r}: {lacking[name]}.")
    return ["serving_default", *(name for name in SIGNATURES[1:] if name in asked)]


def _label_lines(labels, classes):
    if labels is None:
        return None
    labels = list(labels)
    if len(labels) != classes or not all(
        isinstance(name, str) and name and not set(name) & {"\n", "\r"} for name in labels
    ):
        raise ValueError(f"labels must be {classes} names, one a class, each one line. Received: {labels!r}")
    if twice := sorted({name for name in labels if labels.count(name) > 1}):
        raise ValueError(f"labels must be different names. Received more than once: {', '.join(twice)}")
    return "\n".join(labels) + "\n"


def _training(trainer):
    """Returns the settings of the training, for the card."""
    return {
        "objective": trainer.objective.settings(),
        "attack": trainer.attack.settings(),
        "attack_batch_norm": trainer.attack_batch_norm,
    }


def _card(model, shape, classes, precision, report, more):
    """Returns the contents of the robustness card."""
    facts = provenance.facts(model)
    return {
        "model": facts["model"],
        "weights_sha256": facts["weights_sha256"],
        "precision": precision,
        "images": dict(zip(("height", "width", "channels"), shape)),
        "classes": classes,
        "measured": _measured(report, facts["weights_sha256"], model),
        "versions": facts["versions"],
        **more,
    }


def _measured(report, sha256, model):
    """Returns the accuracies of a report and its context, for the card."""
    if report is None:
        return {"batch_norm": None, "seed": None, "precision": None, "accuracy": []}
    if report.context.get("weights_sha256") != sha256:
        raise ValueError("The report is of other weights than the model's: evaluate this model.")
    if (before := report.context.get(identity.LOGITS)) is not None:
        now = identity.of({"model": model}, before["shape"])
        if not identity.are_alike({identity.LOGITS: before}, {identity.LOGITS: now}):
            raise ValueError(
                "The report is of a network with the model's weights, but other outputs (another activation or "
                "scaling): evaluate this model."
            )
    context = {name: value for name, value in report.context.items() if name not in _NOT_MEASURED}
    fields = ("name", "accuracy", "interval", "n", "settings")
    accuracy = [{name: getattr(row, name) for name in fields} for row in report.results]
    # Of the measured network. The export may compute in another: see the card's own entry.
    precision = " and ".join(sorted({layer.compute_dtype for layer in classifier.leaves(model)}))
    known = {"batch_norm": None, "seed": None, "dataset": None, "split": None, **context, "precision": precision}
    return {**known, "accuracy": accuracy}


def _architecture(network):
    """Returns the network's configuration as JSON; None for a subclassed model, or a model with a lambda."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras warns about a lambda, which cannot be loaded safely
            return network.to_json()
    except (NotImplementedError, TypeError, ValueError, UserWarning):
        return None
