"""int8 for small devices: LiteRT (TensorFlow Lite)."""

import os
import warnings

import numpy as np
import tensorflow as tf

from keras_sat import files


def export_litert(path, to, images):
    """Converts an exported SavedModel to a LiteRT file, weights and activations in int8 (post-training).

    It takes what `serving_default` takes, float32 pixels, and returns the same outputs by the same names. An int8
    network has no gradients to attack; `evaluation.compare` shows what of its robustness is left.

    Args:
        path: folder of the SavedModel, of a fixed image size.
        to: the file to write, FILE.tflite; must not exist.
        images: some hundred typical images [n, height, width, channels], in the model's range, by which the ranges of
            the activations are set.

    Raises:
        ValueError: if `to` exists or has another ending, or the SavedModel or the images do not suit.
    """
    path, to = os.fspath(path), os.fspath(to)
    if not to.endswith(".tflite"):
        raise ValueError(f"A LiteRT file ends in .tflite. Received: {to}")
    if os.path.exists(to):
        raise ValueError(f"{to} exists: choose a new file, or remove it first.")
    if not os.path.exists(os.path.join(path, "saved_model.pb")):
        raise ValueError(f"{path} is not a SavedModel: export_saved_model writes one.")
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must have shape [n, height, width, channels]. Received shape: {images.shape}")
    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serving_default"])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"images": image[None]} for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the converter's own interpreter says that it is deprecated
        try:
            converted = converter.convert()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} cannot be converted to int8: {str(error).splitlines()[0]}") from error
    with files.replacing(to) as temporary, open(temporary, "wb") as file:
        file.write(converted)
