"""Warm-up requests: what TF Serving sends to a model that it has just loaded, before its clients may."""

import os

import numpy as np
import tensorflow as tf

FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
GREY = 127


def requests(functions, shape, images):
    """Returns {name of a signature: {name of an input: array}}.

    Args:
        functions: {name: concrete function}.
        shape: (height, width, channels) of the images; None for any.
        images: True for one grey image, an array of them, or False.

    Raises:
        ValueError: for images of another shape.
    """
    if images is False or (images is True and None in shape):
        return {}
    if images is True:
        images = np.full((1, *shape), GREY, np.uint8)
    images = np.asarray(images)
    if images.ndim != 4 or not tf.TensorShape((None, *shape)).is_compatible_with(images.shape) or not len(images):
        raise ValueError(f"warmup must be True, False or images of shape (n, *{shape}). Received: {images.shape}")
    values = {"images": images, "labels": np.zeros(len(images), np.int64)}
    if "serving_bytes" in functions:
        values["image_bytes"] = encoded(images)
    found = {}
    for name, function in functions.items():
        specs = function.structured_input_signature[0]
        found[name] = {spec.name: values[spec.name].astype(spec.dtype.as_numpy_dtype) for spec in specs}
    return found


def encoded(images):
    """Returns images as PNG files, an array of bytes."""
    return np.array([tf.io.encode_png(tf.cast(image, tf.uint8)).numpy() for image in images], object)


def write(requests, folder):
    """Writes the requests into the folder of a SavedModel, as records of TF Serving's PredictionLog."""
    if not requests:
        return
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = os.path.join(folder, FILE)
    os.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            for name, array in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
