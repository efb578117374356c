"""int8 for small devices: LiteRT (TensorFlow Lite)."""

import json
import os
import warnings
import zipfile

import numpy as np
import tensorflow as tf

from keras_sat import files
from keras_sat.evaluation import deployed
from keras_sat.export import saved_model

_COMPARED = 32  # of the images for calibration
_TOLERANCE = 0.5  # of the logits' deviation: for a network that always answers the same the difference is 1


def export_litert(path, to, images):
    """Converts an exported SavedModel to a LiteRT file, weights and activations in int8 (post-training).

    It takes what `serving_default` takes, float32 pixels, and returns the same outputs by the same names. labels.txt
    and preprocessing.json lie at its end: `unzip FILE.tflite` reads them, and interpreters do not see them. An int8
    network has no gradients to attack; `evaluation.compare` shows what of its robustness is left.

    Args:
        path: folder of the SavedModel, of a fixed image size.
        to: the file to write, FILE.tflite; must not exist.
        images: some hundred typical images [n, height, width, channels], in the model's range, by which the ranges of
            the activations are set.

    Raises:
        ValueError: if `to` exists or has another ending, the SavedModel or the images do not suit, or the int8 network
            answers these images otherwise than the SavedModel.
    """
    path, to = files.expanded(path), check_name(to)
    if not os.path.exists(os.path.join(path, "saved_model.pb")):
        raise ValueError(f"{path} is not a SavedModel: export_saved_model writes one.")
    if _dtype(path) == "bfloat16":
        raise ValueError(f"{path} computes in bfloat16, which int8 cannot be made of: export it in float32.")
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must have shape [n, height, width, channels]. Received shape: {images.shape}")
    with warnings.catch_warnings(), files.without_wildcards(path) as plain:
        warnings.simplefilter("ignore", UserWarning)  # the converter's own interpreter says that it is deprecated
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


def _dtype(path):
    """Returns what a SavedModel of `export_saved_model` computes in; None for others."""
    card = os.path.join(path, saved_model.CARD)
    if not os.path.exists(card):
        return None
    with open(card, encoding="utf-8") as file:
        return json.load(file)["dtype"]


def _converted(path, images):
    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serving_default"])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"images": image[None]} for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def check_name(to: str | os.PathLike) -> str:
    """Returns the path of a LiteRT file to write.

    Raises:
        ValueError: for another ending, or a file that exists.
    """
    to = files.expanded(to)
    if not to.endswith(".tflite"):
        raise ValueError(f"A LiteRT file ends in .tflite. Received: {to}")
    if os.path.exists(to):
        raise ValueError(f"{to} exists: choose a new file, or remove it first.")
    return to


def _append_assets(path, file):
    """Appends what a SavedModel says of its classes and images: `unzip` reads it, and interpreters do not see it."""
    with zipfile.ZipFile(file, "a") as archive:
        for name in (deployed.LABELS, deployed.PREPROCESSING):
            if os.path.exists(os.path.join(path, name)):
                archive.write(os.path.join(path, name), os.path.basename(name))


def _apart(path, converted, images):
    """Returns the root mean square of what the logits of both networks differ by, over their standard deviation."""
    run = tf.lite.Interpreter(model_content=converted).get_signature_runner("serving_default")
    found = np.concatenate([run(images=image[None])["logits"] for image in images])
    expected = deployed.read(path).signatures["serving_default"](images=tf.constant(images))["logits"].numpy()
    return float(np.sqrt(np.mean((found - expected) ** 2)) / max(np.std(expected), 1e-6))
