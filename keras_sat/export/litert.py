"""Converts an exported SavedModel to int8 for small devices: LiteRT (TensorFlow Lite)."""

import json
import os
import warnings
import zipfile

import numpy as np
import tensorflow as tf

from keras_sat import deployed, files
from keras_sat.export import saved_model
from keras_sat.typing import Path

_COMPARED = 32  # images for calibration with which the networks are compared
_TOLERANCE = 0.5  # of the logits' standard deviation; a network with constant logits would differ by 1


def export_litert(path: Path, to: Path, images: np.ndarray) -> None:
    """Converts an exported SavedModel to a LiteRT file with weights and activations in int8 (after training).

    The file takes the inputs of `serving_default`, float32 pixels, and returns the same outputs with the same names.
    labels.txt and preprocessing.json are appended to it: `unzip FILE.tflite` reads them, and interpreters ignore them.
    An int8 network has no gradients to attack; `evaluation.compare` measures how much robustness it keeps.

    Args:
        path: the folder of the SavedModel, which must have a fixed image size.
        to: the file to write, FILE.tflite; must not exist.
        images: some hundred typical images [n, height, width, channels], in the model's range, that determine the
            ranges of the activations.

    Raises:
        ValueError: if `to` exists or does not end in .tflite, the SavedModel or the images cannot be converted, or the
            int8 network's logits for these images differ too much from those of the SavedModel.
    """
    path, to = files.expanded(path), check_name(to)
    if not os.path.exists(os.path.join(path, "saved_model.pb")):
        raise ValueError(f"{path} is not a SavedModel: export_saved_model writes one.")
    if _precision(path) == "bfloat16":
        raise ValueError(f"{path} computes in bfloat16, which int8 cannot be made of: export it in float32.")
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must have shape [n, height, width, channels]. Received shape: {images.shape}")
    with warnings.catch_warnings(), files.without_wildcards(path) as plain:
        warnings.simplefilter("ignore", UserWarning)  # the converter uses an interpreter that TensorFlow has deprecated
        try:
            converted = _converted(plain, images)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} cannot be converted to int8: {str(error).splitlines()[0]}") from error
        apart = _apart(path, converted, images[:_COMPARED])
    if not apart <= _TOLERANCE:  # NaN too
        raise ValueError(
            f"{path} in int8 is another network: on the images for calibration its logits differ by {apart:.2g} of "
            f"their standard deviation, at most {_TOLERANCE} was expected. Give more images, of all classes, in the "
            "model's range."
        )
    with files.atomic_write(to) as temporary:
        with open(temporary, "wb") as file:
            file.write(converted)
        _append_assets(path, temporary)


def _precision(path):
    """Returns the precision of a SavedModel of `export_saved_model`; None for others."""
    card = os.path.join(path, saved_model.CARD)
    if not os.path.exists(card):
        return None
    with open(card, encoding="utf-8") as file:
        return json.load(file)["precision"]


def _converted(path, images):
    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serving_default"])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"images": image[None]} for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def check_name(to: Path) -> str:
    """Returns the path of a LiteRT file to write, as text.

    Raises:
        ValueError: if it does not end in .tflite, or exists.
    """
    to = files.expanded(to)
    if not to.endswith(".tflite"):
        raise ValueError(f"A LiteRT file ends in .tflite. Received: {to}")
    if os.path.exists(to):
        raise ValueError(f"{to} exists: choose a new file, or remove it first.")
    return to


def _append_assets(path, file):
    """Appends the class names and the preprocessing of a SavedModel to a LiteRT file, as a zip archive."""
    with zipfile.ZipFile(file, "a") as archive:
        for name in (deployed.LABELS, deployed.PREPROCESSING):
            if os.path.exists(os.path.join(path, name)):
                archive.write(os.path.join(path, name), os.path.basename(name))


def _apart(path, converted, images):
    """Returns the root mean square of the difference of the networks' logits, over their standard deviation."""
    run = tf.lite.Interpreter(model_content=converted).get_signature_runner("serving_default")
    logits = np.concatenate([run(images=image[None])["logits"] for image in images])
    expected = deployed.read(path).signatures["serving_default"](images=tf.constant(images))["logits"].numpy()
    return float(np.sqrt(np.mean((logits - expected) ** 2)) / max(np.std(expected), 1e-6))
