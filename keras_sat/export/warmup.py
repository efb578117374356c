"""Warm-up requests: TF Serving sends them to a model that it has just loaded, before it accepts requests."""

import os
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from keras_sat import extras

FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
GREY = 127


def requests(
    functions: dict[str, Any], shape: tuple[int | None, int | None, int], images: bool | np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Returns {name of a signature: {name of an input: array}}.

    Args:
        functions: {name of a signature: concrete function}.
        shape: (height, width, channels) of the images; None for any height or width.
        images: True for one grey image; an array of images [n, height, width, channels]; or False for no requests. With
            True, there are no requests if height or width is None.

    Raises:
        ValueError: for images of another shape.
    """
    if images is False or (images is True and None in shape):
        return {}
    grey = np.full([1, *(n or 1 for n in shape)], GREY, np.uint8)
    images = grey if images is True else np.asarray(images)
    if images.ndim != 4 or not tf.TensorShape((None, *shape)).is_compatible_with(images.shape) or not len(images):
        raise ValueError(f"warmup must be True, False or images of shape (n, *{shape}). Received: {images.shape}")
    values = {"images": images, "labels": np.zeros(len(images), np.int64)}
    if "serving_bytes" in functions:
        values["image_bytes"] = encoded(images)
    inputs = {}
    for name, function in functions.items():
        specs = function.structured_input_signature[0]
        inputs[name] = {spec.name: values[spec.name].astype(spec.dtype.as_numpy_dtype) for spec in specs}
    return inputs


def encoded(images: np.ndarray) -> np.ndarray:
    """Returns images [n, height, width, channels], pixels 0..255, as PNG files: an array [n] of bytes."""
    return np.array([tf.io.encode_png(tf.cast(image, tf.uint8)).numpy() for image in images], object)


def write(requests: dict[str, dict[str, np.ndarray]], path: str) -> None:
    """Writes the requests into the folder of a SavedModel, as records of TF Serving's PredictionLog.

    If tensorflow-serving-api is not installed, it warns and writes nothing.
    """
    if not requests:
        return
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        warnings.warn(
            f"No warm-up requests were written: they need tensorflow-serving-api: {extras.install('serve')} (or "
            "warmup=False).",
            stacklevel=3,
        )
        return

    file = os.path.join(path, FILE)
    os.makedirs(os.path.dirname(file))
    with tf.io.TFRecordWriter(file) as writer:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            for name, array in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
