"""Checks, copies and changes of a Keras classifier: a built model from images to logits."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sat import internals, losses
from keras_sat.models import graph
from keras_sat.models.normalization import Normalize
from keras_sat.typing import Array

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
FREEZE = (None, "backbone", "batch_norm")  # what `freeze` accepts
_SIDES = (32, 96, 224)  # image sizes to try, where a model takes any size
_SQUASHING = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}


def check(model: Any) -> None:
    """Raises ValueError unless a model is a built Keras classifier with one input, and logits as its one output.

    Random inputs show whether the output is logits or probabilities: see `losses.probabilities`. The input shape of a
    subclassed model is unknown, so its output is not checked here; `AdversarialModel` checks it on the first batch.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "model must be a built Keras classifier; build a subclassed one by calling it on a batch of images. "
            f"Received: {model!r}"
        )
    check_interface(model)
    kind = _probabilities(model) if graph.is_functional(model) and not is_linear(output_layer(model)) else None
    if kind:
        raise ValueError(
            f"{model.name} ends in probabilities (a {kind}), which hide the gradient from an attack. Build it with "
            "classifier_activation=None, or take keras_sat.models.without_softmax(model), and train it with a loss "
            "that has from_logits=True."
        )


def check_interface(model: Any) -> None:
    """Raises ValueError for a functional model with several inputs or outputs, or an output that has not two axes."""
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    if len(inputs) > 1 or len(outputs) > 1 or (outputs and len(outputs[0].shape) != 2):
        raise ValueError(
            f"{model.name} must take images alone, and return logits [batch, classes] alone. It takes "
            f"{[tuple(tensor.shape) for tensor in inputs]} and returns {[tuple(tensor.shape) for tensor in outputs]}"
        )


def check_images(model: Any, images: Array) -> None:
    """Raises ValueError if the shape of a batch of images is not the input shape of a functional model."""
    taken = getattr(model, "inputs", None)
    if taken and not tf.TensorShape(taken[0].shape[1:]).is_compatible_with(images.shape[1:]):
        raise ValueError(
            f"{model.name} takes images of shape {tuple(taken[0].shape)}: [batch, height, width, channels]. "
            f"Received: {tuple(images.shape)}"
        )


def _probabilities(model):
    """Returns "softmax" or "sigmoid" if a model returns such probabilities for random inputs; otherwise None."""
    inputs = some_inputs(model)
    return None if inputs is None else losses.probabilities(lambda x: model(x, training=False), inputs)


def some_inputs(model: keras.Model, shape: tuple[int | None, ...] | None = None) -> tf.Tensor | None:
    """Returns 8 random images on which models can be compared: four in 0..255, and the same four in 0..1.

    One of the two ranges is usually the range that the model expects.

    Args:
        model: a functional or sequential keras.Model.
        shape: (height, width, channels). If one of them is None, sizes of 32, 96 and 224 pixels are tried. Default: the
            input shape of the model.

    Returns:
        A float32 tensor [8, height, width, channels]; None if the model fails for all of these sizes.
    """
    shape = shape or model.inputs[0].shape[1:]
    for side in _SIDES if None in shape else _SIDES[:1]:
        inputs = np.random.default_rng(0).uniform(0, 255, (4, *(side if n is None else n for n in shape)))
        inputs = tf.constant(np.concatenate([inputs, inputs / 255]), tf.float32)
        try:
            model(inputs, training=False)
            return inputs
        except (ValueError, TypeError, tf.errors.InvalidArgumentError):
            continue  # the image is too small
    return None


def output_layer(model: keras.Model) -> keras.Operation | None:
    """Returns the layer or operation of keras.ops that makes a functional model's output; None for other models.

    It is not always the last of `model.layers`, which are in the order of their first calls.
    """
    calls = graph.calls(model)
    return calls[-1].operation if calls else None


def is_linear(layer: Any) -> bool:
    """Returns whether a layer is a keras.layers.Dense, not a subclass, without an activation. It returns logits."""
    return type(layer) is keras.layers.Dense and layer.activation is keras.activations.linear


def without_softmax(model: keras.Model) -> keras.Model:
    """Returns a model that returns logits, from a classifier that ends in a softmax (like those of keras.applications).

    The softmax may be a layer, the activation of the last dense layer, or a function such as keras.ops.softmax. Layers
    after it that change nothing, such as Activation("linear", dtype="float32"), are removed too. A sigmoid at the end
    is removed in the same way.

    Args:
        model: a functional or sequential keras.Model.

    Returns:
        A keras.Model that shares the layers of `model`. A last layer whose activation was the softmax is copied. Both
        models are compared on random inputs.

    Raises:
        ValueError: if the model does not end in a softmax or sigmoid that can be removed.
    """
    changes = _without_squashing(model)
    if changes is None:
        raise ValueError(
            f"{model.name} does not end in a softmax that can be taken off: build it without one. "
            f"Received last layer: {output_layer(model)!r}"
        )
    stripped = graph.rebuild(model, changes)
    _check_stripped(model, stripped)
    return stripped


def _without_squashing(model):
    """Returns the changes for `graph.rebuild` that remove a softmax or sigmoid at the end; None if there is none."""
    calls = graph.calls(model)
    makers = {id(tensor): index for index, call in enumerate(calls) for tensor in call.outputs}
    changes, index = {}, len(calls) - 1 if calls else None
    while index is not None:
        operation, inputs, _ = calls[index]
        if graph.is_functional(operation):
            inner = _without_squashing(operation)
            return None if inner is None else changes | {index: graph.rebuild(operation, inner)}
        if len(inputs) != 1:
            return None
        if getattr(operation, "weights", []):
            logits = _without_activation(operation, inputs[0])
            return None if logits is None else changes | {index: logits}
        changes[index] = graph.skip
        if _squashes(operation):
            return changes
        if not _acts_as(operation, tf.identity):
            return None
        index = makers.get(id(inputs[0]))
    return None


def _without_activation(layer, inputs):
    """Returns a copy of a layer without its softmax or sigmoid; None if it has none."""
    activation = getattr(layer, "activation", None)
    if activation is None or not _squashes(activation):
        return None
    copy = type(layer).from_config(layer.get_config() | {"activation": None})
    copy.build(inputs.shape)
    set_weights(copy, layer.get_weights())
    return copy


def _check_stripped(model, stripped):
    """Raises ValueError unless the softmax or sigmoid of the new model's output equals the output of the model."""
    inputs = some_inputs(model)
    if inputs is None:
        return
    logits, probabilities, again = (
        tf.cast(network(inputs, training=False), tf.float32) for network in (stripped, model, model)
    )
    if not np.allclose(probabilities, again, equal_nan=True):  # the model is random, and cannot be compared
        return
    if logits.shape == probabilities.shape:
        for squash in _SQUASHING.values():  # 0.02: the rounding of bfloat16
            if np.allclose(squash(logits), probabilities, rtol=0.02, atol=1e-5, equal_nan=True):
                return
    raise ValueError(f"{model.name} cannot be copied without its softmax: the copy computes something else.")


def _squashes(function):
    return any(_acts_as(function, squashing) for squashing in _SQUASHING.values())


def _acts_as(function, other):
    """Returns whether two functions of logits return the same for random logits."""
    logits = tf.constant(np.random.default_rng(0).normal(0, 2, (4, 5)), tf.float32)
    try:
        return np.allclose(np.array(function(logits), np.float32), other(logits), atol=1e-2)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):  # the function does not accept five classes
        return False


def features(model: keras.Model) -> keras.Model | None:
    """Returns a model from images to the input of the last dense layer; None if the model does not end in one."""
    last = len(graph.calls(model)) - 1
    if not isinstance(output_layer(model), keras.layers.Dense):
        return None
    return graph.rebuild(model, {last: graph.skip}, name=f"{model.name}_features")


def in_precision(model: keras.Model, policy: str) -> keras.Model:
    """Returns a copy of a classifier that computes in another precision, with the same weights.

    Args:
        model: a functional or sequential keras.Model.
        policy: "float32", "mixed_bfloat16" or "mixed_float16". With a mixed precision, layers that scale pixels keep
            their precision: see `scales_pixels`.

    Returns:
        The copy; or `model` itself for "float32", if it already computes in float32.

    Raises:
        ValueError: for another precision, or a model that cannot be copied.
    """
    if policy not in PRECISIONS:
        raise ValueError(f"The precision must be one of {PRECISIONS}. Received: {policy!r}")
    if not isinstance(model, keras.Model):
        raise ValueError(f"Only a functional or sequential Keras model can be copied in {policy}. Received: {model!r}")
    if policy == "float32" and all(layer.compute_dtype == "float32" for layer in leaves(model)):
        return model

    def convert(layer):
        return type(layer).from_config(config_in(layer, policy))

    try:
        if model.compiled:  # Keras would compile the clone too, with losses and metrics that it may not know
            model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        copy = keras.models.clone_model(model, clone_function=convert, recursive=True)
        set_weights(copy, model.get_weights())
    except Exception as error:  # a layer that its configuration cannot rebuild may raise any exception
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{model.name} cannot be copied in {policy}: {reason}") from error
    return copy


def config_in(layer: keras.Operation, policy: str | None) -> dict[str, Any]:
    """Returns the configuration of a layer for a copy in another precision.

    Args:
        layer: a layer, or an operation of keras.ops.
        policy: a dtype policy, or None to keep the layer's policy. Layers that scale pixels accept "float32" only, and
            ignore another policy.
    """
    if not isinstance(layer, keras.layers.Layer):  # an operation computes in the precision of its inputs
        return layer.get_config()
    keeps = policy is None or (policy != "float32" and scales_pixels(layer))
    return layer.get_config() | ({} if keeps else {"dtype": policy})


def scales_pixels(layer: Any) -> bool:
    """Returns whether a layer scales pixels. It must not do so in bfloat16, which rounds pixels to whole levels."""
    return isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization, Normalize))


def set_weights(model: keras.layers.Layer, weights: list[Any]) -> None:
    """Sets the weights of a model or layer, and updates values that its layers compute from them (see `refresh`).

    Args:
        model: a keras.Model or layer.
        weights: arrays, as `get_weights()` returns them.
    """
    model.set_weights(weights)
    refresh(model)


def refresh(model: keras.layers.Layer) -> None:
    """Makes the layers of a model update values that they compute from their weights. Call it after assigning weights.

    A `keras.layers.Normalization` computes with constants, which `finalize_state` computes from its variables. Custom
    layers compute such values in `load_own_variables`.
    """
    for layer in internals.all_layers(model):
        if not layer.built or isinstance(layer, keras.Model):
            continue
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
        elif not type(layer).load_own_variables.__module__.startswith("keras."):
            stored: dict[str, Any] = {}
            layer.save_own_variables(stored)
            layer.load_own_variables({name: keras.ops.convert_to_numpy(value) for name, value in stored.items()})


def computes_low(model: keras.Model) -> bool:
    """Returns whether any layer of a model computes in float16 or bfloat16."""
    return any(
        getattr(layer, "compute_dtype", None) in ("float16", "bfloat16") for layer in internals.all_layers(model)
    )


def leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields the layers of a model. An inner model is replaced by its layers."""
    for layer in model.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else [layer]


def check_freeze(what: str | None) -> None:
    """Raises ValueError unless `freeze` accepts this value."""
    if what not in FREEZE:
        raise ValueError(f"freeze must be one of {FREEZE}. Received: {what!r}")


def freeze(model: keras.Model, what: str | None) -> None:
    """Sets which layers of a classifier are trained. Compile the model, or its `AdversarialModel`, anew after it.

    Args:
        model: the keras.Model.
        what: None: all layers are trained, also those that were frozen before. "backbone": the layer that makes the
            output is trained alone. "batch_norm": all layers except the batch norms are trained. A frozen batch norm
            also keeps its statistics, and uses them in training.

    Raises:
        ValueError: for another value of `what`.
    """
    check_freeze(what)
    _free(model)
    if what == "backbone":
        head = output_layer(model)
        for layer in model.layers:
            layer.trainable = layer is head
    elif what == "batch_norm":
        for layer in leaves(model):
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)


def _free(layer):
    """Makes a layer and all layers in it trainable. (Keras' own setter does not change the layers of a model.)"""
    layer.trainable = True
    for inner in getattr(layer, "layers", []):
        _free(inner)
