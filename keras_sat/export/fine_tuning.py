"""Loads an exported SavedModel as a Keras model that can be trained."""

import os
from typing import Any

import keras

from keras_sat import deployed, files
from keras_sat.attacks import agreement
from keras_sat.export import saved_model
from keras_sat.models import classifier
from keras_sat.typing import Path


def load_for_fine_tuning(
    path: Path,
    classes: int | None = None,
    freeze: str | None = None,
    custom_objects: dict[str, Any] | None = None,
) -> keras.Model:
    """Returns the Keras model of a SavedModel that `export_saved_model` wrote.

    It is an ordinary Keras model, built from the architecture and the variables of the SavedModel. `fit` and
    `AdversarialModel` can train it, and it can be saved, attacked and exported again.

    Args:
        path: the folder of the SavedModel.
        classes: number of new classes, >= 1: a new last dense layer with random weights replaces the exported one. None
            (default) keeps the exported one.
        freeze: the layers that are not trained; see `models.classifier.freeze`. None (default): no layer, even if it
            was frozen in the export.
        custom_objects: {name: class or function} for layers that neither Keras nor this package registers.

    Raises:
        ValueError: if `classes` or `freeze` is invalid; if the folder is not such a SavedModel; if its layers are
            unknown; if the rebuilt model does not compute the same as the SavedModel (they are compared); or if it has
            no last dense layer to replace.
    """
    classifier.check_freeze(freeze)
    if classes is not None and not (isinstance(classes, int) and classes >= 1):
        raise ValueError(f"classes must be an integer >= 1, or None to keep the head. Received: {classes!r}")
    model = _rebuilt(files.expanded(path), custom_objects)
    model = model if classes is None else _with_new_head(model, classes)
    classifier.freeze(model, freeze)
    return model


def _rebuilt(path, custom_objects):
    loaded = deployed.read(path)
    file = os.path.join(path, saved_model.ARCHITECTURE)
    if not (os.path.exists(file) and hasattr(loaded, "weights")):
        raise ValueError(
            f"{path} does not say its architecture ({saved_model.ARCHITECTURE}): it was not written by "
            "export_saved_model, or from a model with a lambda or layers without a configuration. "
            "keras.layers.TFSMLayer takes it as it is."
        )
    with open(file, encoding="utf-8") as text:
        architecture = text.read()
    try:
        model = keras.models.model_from_json(architecture, custom_objects)
        classifier.set_weights(model, [weight.numpy() for weight in loaded.weights])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be rebuilt: {str(error).splitlines()[0]} A layer of your own is passed in custom_objects."
        ) from error
    _check(path, model, loaded)
    return model


def _check(path, model, loaded):
    """Raises ValueError unless the rebuilt model computes the same as the SavedModel."""
    (images,) = loaded.signatures["serving_default"].structured_input_signature[1].values()
    inputs = classifier.some_inputs(model, images.shape[1:])

    def saved(images):
        return loaded(images, training=False)

    inputs = None if inputs is None else agreement.comparable(saved, inputs)
    tolerance = agreement.LOW if classifier.computes_low(model) else agreement.EXACT
    difference = None if inputs is None else agreement.difference(saved, model, inputs, tolerance)
    if difference:
        raise ValueError(
            f"{path} cannot be rebuilt: the model made of its architecture and weights has {difference}. Does the "
            "get_config of a layer leave out an argument, or does a layer compute something when it is built?"
        )


def _with_new_head(model, classes):
    last, features = classifier.output_layer(model), classifier.features(model)
    if features is None:
        raise ValueError(f"{model.name} does not end in a dense layer: it cannot be given {classes} classes.")
    head = type(last).from_config(last.get_config() | {"units": classes})
    return keras.Model(features.inputs[0], head(features.outputs[0]), name=model.name)
