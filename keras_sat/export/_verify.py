"""Verifies that a SavedModel computes the same as the Keras model."""

import json
import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_sat import deployed, files, losses
from keras_sat.attacks import gradients
from keras_sat.export import fine_tuning, reload, saved_model, signatures, warmup
from keras_sat.models import classifier
from keras_sat.preprocessing import Preprocessing
from keras_sat.typing import Path

IMAGES = 4
SIZE = 32  # height and width of the images for a model that takes any size
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def verify(path: Path, model: keras.Model | None = None) -> dict[str, dict[str, float]]:
    """Loads a SavedModel in a fresh process, without keras, and compares every signature with the Keras model.

    Args:
        path: the folder, written by `export_saved_model`.
        model: the Keras model that was exported. Default: the model that `load_for_fine_tuning` loads from the folder.

    Returns:
        {signature: {output: the largest difference, as a share of the output's range}}.

    Raises:
        ValueError: if the folder was not written by `export_saved_model`, if a signature cannot be called, or if an
            output differs by more than 1e-4 (bfloat16: 5e-2) of its range. `classes` may differ only if the two largest
            logits are closer than that.
    """
    path = files.expanded(path)
    with _opened(os.path.join(path, saved_model.CARD)) as file:
        card = json.load(file)
    if model is None:
        model = fine_tuning.load_for_fine_tuning(path)
    network = classifier.in_precision(model, saved_model.PRECISIONS[card["precision"]])
    shape = [card["images"][name] or SIZE for name in ("height", "width", "channels")]
    inputs = _inputs(deployed.read(path).signatures, shape)
    outputs = _outputs(path, inputs)
    expected = _expected(network, inputs, deployed.preprocessing_of(path), shape)
    tolerance = TOLERANCE[card["precision"]]
    differences = {}
    for name in inputs:
        differences[name] = {output: _difference(expected, outputs, name, output) for output in expected[name]}
        for output, difference in differences[name].items():
            if not difference <= tolerance:  # NaN too
                raise ValueError(
                    f"{path}: signature {name!r}, output {output!r}, differs from the Keras model by {difference:.2g} "
                    f"of its range; at most {tolerance:g} was expected."
                )
    return differences


def _opened(path):
    try:
        return open(path, encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"There is no {path}: the SavedModel was not written by export_saved_model.") from None


def _inputs(functions, shape):
    """Returns {signature: {input: array}}, with the same random images for all signatures."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, *shape)).astype(np.uint8)
    functions = {name: function for name, function in functions.items() if name in saved_model.SIGNATURES}
    values = {"images": images, "labels": np.zeros(IMAGES, np.int64)}
    if "serving_bytes" in functions:
        values["image_bytes"] = warmup.encoded(images)
    inputs = {}
    for name, function in functions.items():
        specs = function.structured_input_signature[1]
        inputs[name] = {key: values[key].astype(spec.dtype.as_numpy_dtype) for key, spec in specs.items()}
    return inputs


def _outputs(path, inputs):
    """Returns {signature: {output: array}}, computed by another process with TensorFlow alone."""
    with tempfile.TemporaryDirectory() as folder, files.without_wildcards(path) as path:
        asked, answered = os.path.join(folder, "inputs.npz"), os.path.join(folder, "outputs.npz")
        np.savez(asked, **{f"{name}/{key}": value for name, given in inputs.items() for key, value in given.items()})
        done = subprocess.run(
            [sys.executable, reload.__file__, path, asked, answered], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"{path} cannot be loaded and called by TensorFlow alone:\n{done.stderr[-2000:]}")
        with np.load(answered) as arrays:
            outputs = {}
            for key in arrays.files:
                name, output = key.split("/")
                outputs.setdefault(name, {})[output] = arrays[key]
    return outputs


def _expected(network, inputs, preprocessing, shape):
    """Returns {signature: {output: array}}, computed by Keras."""

    def infer(images):
        return network(images, training=False)

    def classified(pixels):
        logits = keras.ops.convert_to_numpy(tf.cast(infer(tf.cast(pixels, tf.float32)), tf.float32))
        return {"logits": logits} | {k: v.numpy() for k, v in signatures.classified(tf.constant(logits)).items()}

    pixels = tf.cast(inputs["serving_default"]["images"], tf.float32)
    expected = {name: classified(pixels) for name in inputs if name.startswith("serving_")}
    if "serving_bytes" in inputs:
        preprocessing = preprocessing or Preprocessing(*shape)
        encoded = inputs["serving_bytes"]["image_bytes"]
        expected["serving_bytes"] = classified(tf.stack([preprocessing(tf.constant(image)) for image in encoded]))
    if "features" in inputs:
        features = classifier.features(network)(pixels, training=False)
        expected["features"] = {"features": tf.cast(features, tf.float32).numpy()}
    if "input_gradient" in inputs:
        labels = tf.constant(inputs["input_gradient"]["labels"])
        loss, _, gradient = gradients.value_and_gradient(
            lambda images: signatures.of_sigmoid(infer(images)), losses.cross_entropy, pixels, labels
        )
        expected["input_gradient"] = {"loss": loss.numpy(), "gradient": gradient.numpy()}
    return expected


def _difference(expected, outputs, name, output):
    """Returns the largest difference of an output as a share of its range; NaN if output or shape do not match."""
    one, other = expected[name][output], outputs.get(name, {}).get(output)
    if other is None or one.shape != other.shape:
        return float("nan")
    if output == "classes":  # compares the logits of the classes, because two classes may be equally likely
        logits = expected[name]["logits"]
        logits = np.concatenate([0 * logits, logits], -1) if logits.shape[-1] == 1 else logits
        other, one = np.take_along_axis(logits, other[:, None], -1)[:, 0], logits.max(-1)
        return float(np.max(one - other) / (np.ptp(logits) or 1.0))
    return float(np.max(np.abs(one - other)) / (np.ptp(one) or 1.0))
