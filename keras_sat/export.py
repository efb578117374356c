"""SavedModels that run wherever TensorFlow runs, without keras and without this package."""

import os

import keras
import tensorflow as tf

from keras_sat import files, training
from keras_sat.models import classifier


def export_saved_model(model, path):
    """Writes a classifier as a SavedModel folder (tag `serve`) for TF Serving or `tf.saved_model.load`.

    Two signatures, which differ in the type of `images` [batch, height, width, channels], pixels in the model's range
    (0..255 for the models of this package): `serving_default` takes float32, to which TensorFlow also converts NumPy's
    uint8 and JSON's numbers; `serving_uint8` takes uint8 tensors, a quarter of the bytes on the wire. Both return
    float32 `logits` and `probabilities`, [batch, classes].

    Args:
        model: a built Keras classifier that returns logits, or an `AdversarialModel`, of which `.model` is exported.
        path: the folder to write; must not exist.

    Raises:
        ValueError: if the model is not built or returns probabilities, or `path` exists. Nothing is written then.
    """
    if isinstance(model, training.AdversarialModel):
        model = model.model
    classifier.check(model)
    if os.path.exists(path):
        raise ValueError(f"{path} exists: choose a new folder, or remove it first.")

    def serve(images):
        logits = tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, dtype in (("serving_default", tf.float32), ("serving_uint8", tf.uint8)):
        images = tf.TensorSpec((None, *model.inputs[0].shape[1:]), dtype, name="images")
        archive.add_endpoint(name, serve, input_signature=[images])
    with files.replacing(path) as temporary:
        archive.write_out(temporary, verbose=False)
