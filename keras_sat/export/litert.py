"""Converts an exported SavedModel to an int8 LiteRT (TensorFlow Lite) file for small devices."""

import json
import os
import warnings
import zipfile

import numpy as np
import tensorflow as tf

from keras_sat import deployed, files
from keras_sat.export import saved_model
from keras_sat.typing import Path

_COMPARED = 32  # number of calibration images on which both networks are compared
_TOLERANCE = 0.5  # share of the logits' standard deviation; a network with constant logits would differ by 1


def export_litert(path: Path, to: Path, images: np.ndarray) -> None:
    """Converts an exported SavedModel to an int8 LiteRT file, weights and activations (post-training quantization).

    The file has the input and the outputs of `serving_default`, with the same names and types: float32 pixels in;
    logits, probabilities and classes out. labels.txt and preprocessing.json are appended to it as a zip archive:
    `unzip` extracts them, and interpreters ignore them. An int8 network has no gradients; `evaluation.compare` measures
    how much robustness it keeps.

    Args:
        path: the folder of the SavedModel. It must be a float32 network with a fixed image size.
        to: the file to write. Its name must end in .tflite, and it must not exist.
        images: a few hundred typical images [n, height, width, channels], in the model's range, from which the ranges
            of the activations are computed.

    Raises:
        ValueError: if `to` exists or does not end in .tflite, if the SavedModel or the images cannot be converted, or
            if the logits of both networks for these images differ by more than half of their standard deviation.
    """
    path, to = files.expanded(path), check_name(to)
    if not os.path.exists(os.path.join(path, "saved_model.pb")):
        raise ValueError(f"{path} is not a SavedModel: export_saved_model writes one.")
    if _precision(path) == "bfloat16":
        raise ValueError(f"{path} computes in bfloat16: export it in float32, of which int8 is made.")
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
            f"{path} in int8 is too inaccurate: on the images for calibration its logits differ by {apart:.2g} of "
            f"their standard deviation; at most {_TOLERANCE} was expected. Give more images, of all classes, in the "
            "model's range."
        )
    with files.atomic_write(to) as temporary:
        with open(temporary, "wb") as file:
            file.write(converted)
        _append_assets(path, temporary)


def _precision(path):
    """Returns the precision of a SavedModel that `export_saved_model` wrote; None for other SavedModels."""
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
    """Returns the root mean square of the difference of the networks' logits, divided by their standard deviation."""
    run = tf.lite.Interpreter(model_content=converted).get_signature_runner("serving_default")
    logits = np.concatenate([run(images=image[None])["logits"] for image in images])
    expected = deployed.read(path).signatures["serving_default"](images=tf.constant(images))["logits"].numpy()
    return float(np.sqrt(np.mean((logits - expected) ** 2)) / max(np.std(expected), 1e-6))
