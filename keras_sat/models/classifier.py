"""What training and export ask of a model: a built Keras classifier of images that returns logits."""

import keras
import numpy as np
import tensorflow as tf

from keras_sat import losses

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
_SIDES = (32, 96, 224)  # of images to try, where a model takes any size
_SQUASHING = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}


def check(model):
    """Raises ValueError unless `model` is a built Keras classifier of one input, whose one output is logits.

    Logits are told from probabilities by what the model returns (`losses.probabilities`), for random inputs. A model
    that does not say what it takes, as a subclassed one, is judged by its first batch.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "model must be a built Keras classifier; build a subclassed one by calling it on a batch of images. "
            f"Received: {model!r}"
        )
    check_interface(model)
    kind = None if not getattr(model, "inputs", None) or is_linear(output_layer(model)) else _judged(model)
    if kind:
        raise ValueError(
            f"{model.name} ends in probabilities (a {kind}), which hide the gradient from an attack. Build it with "
            "classifier_activation=None, or take keras_sat.models.without_softmax(model), and train it with a loss "
            "that has from_logits=True."
        )


def check_interface(model):
    """Raises ValueError for a model that says that it takes or returns several tensors, or not [batch, classes]."""
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    if len(inputs) > 1 or len(outputs) > 1 or (outputs and len(outputs[0].shape) != 2):
        raise ValueError(
            f"{model.name} must take images alone, and return logits [batch, classes] alone. It takes "
            f"{[tuple(tensor.shape) for tensor in inputs]} and returns {[tuple(tensor.shape) for tensor in outputs]}"
        )


def check_images(model, images):
    """Raises ValueError for a batch of images of another shape than a model says that it takes."""
    taken = getattr(model, "inputs", None)
    if taken and not tf.TensorShape(taken[0].shape[1:]).is_compatible_with(images.shape[1:]):
        raise ValueError(
            f"{model.name} takes images of shape {tuple(taken[0].shape)}: [batch, height, width, channels]. "
            f"Received: {tuple(images.shape)}"
        )


def _judged(model):
    """Returns what kind of probabilities a model returns for random inputs, or None."""
    inputs = some_inputs(model)
    return None if inputs is None else losses.probabilities(lambda x: model(x, training=False), inputs)


def some_inputs(model, shape=None):
    """Returns random inputs for a comparison; None where a model that takes any size takes none of some sizes.

    Four reach to 255, four to 1: whatever range the model is for, one of them moves it.

    Args:
        model: a functional or sequential keras.Model.
        shape: (height, width, channels), some of them None; default: that of the model.
    """
    shape = shape or model.inputs[0].shape[1:]
    for side in _SIDES if None in shape else _SIDES[:1]:
        inputs = np.random.default_rng(0).uniform(0, 255, (4, *(side if n is None else n for n in shape)))
        inputs = tf.constant(np.concatenate([inputs, inputs / 255]), tf.float32)
        try:
            model(inputs, training=False)
            return inputs
        except (ValueError, TypeError, tf.errors.InvalidArgumentError):
            continue  # too small an image
    return None


def output_layer(model):
    """Returns the layer, or the operation of keras.ops, that makes a functional model's output; None of others.

    (It need not be the last in `model.layers`: that is the one that was called last.)
    """
    outputs = getattr(model, "outputs", None)
    return outputs[0]._keras_history.operation if outputs else None


def is_linear(layer):
    """Says whether a layer is Keras' own dense layer without an activation: its output is a logit."""
    return type(layer) is keras.layers.Dense and layer.activation is keras.activations.linear


def without_softmax(model):
    """Returns the logits of a classifier that ends in a softmax, as those of keras.applications do by default.

    The softmax may be a layer, the activation of the last dense layer, or a function such as keras.ops.softmax; layers
    after it that change nothing, such as Activation("linear", dtype="float32"), are left out.
    A sigmoid at the end is taken off in the same way.

    Args:
        model: a functional or sequential keras.Model.

    Returns:
        A keras.Model, compared with `model` on random inputs. It shares all layers with it but the last one, where that
        had the softmax as its activation; then it is copied.

    Raises:
        ValueError: if the model does not end in a softmax or sigmoid that can be taken off.
    """
    logits = _before_squashing(model, model.outputs[0]) if getattr(model, "outputs", None) else None
    if logits is None:
        raise ValueError(
            f"{model.name} does not end in a softmax that can be taken off: build it without one. "
            f"Received last layer: {output_layer(model)!r}"
        )
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs  # else Keras warns of a list's structure
    stripped = keras.Model(inputs, logits, name=model.name)
    _check_stripped(model, stripped)
    return stripped


def _before_squashing(model, tensor):
    """Returns the Keras tensor that a softmax or sigmoid at the end of a model is given, or None."""
    operation, inputs = tensor._keras_history.operation, _inputs_of(tensor)
    if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
        inner = _before_squashing(operation, operation.outputs[0])
        return None if inner is None else keras.Model(operation.inputs, inner, name=operation.name)(inputs)
    if len(inputs) != 1:
        return None
    if not getattr(operation, "weights", []):
        if _squashes(operation):
            return inputs[0]
        return _before_squashing(model, inputs[0]) if _acts_as(operation, tf.identity) else None
    activation = getattr(operation, "activation", None)
    if activation is None or not _squashes(activation):
        return None
    twin = type(operation).from_config(operation.get_config() | {"activation": None})
    logits = twin(inputs[0])
    set_weights(twin, operation.get_weights())
    return logits


def _check_stripped(model, stripped):
    """Raises ValueError unless the probabilities of the logits are those of the model."""
    inputs = some_inputs(model)
    if inputs is None:
        return
    logits, probabilities, again = (
        tf.cast(one(inputs, training=False), tf.float32) for one in (stripped, model, model)
    )
    if not np.allclose(probabilities, again, equal_nan=True):  # its output is random
        return
    if logits.shape == probabilities.shape:
        for squash in _SQUASHING.values():  # 0.02: bfloat16's rounding
            if np.allclose(squash(logits), probabilities, rtol=0.02, atol=1e-5, equal_nan=True):
                return
    raise ValueError(f"{model.name} cannot be copied without its softmax: the copy computes something else.")


def _inputs_of(tensor):
    """Returns the Keras tensors that the layer of a tensor was given."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index].input_tensors


def _squashes(function):
    return any(_acts_as(function, squashing) for squashing in _SQUASHING.values())


def _acts_as(function, other):
    """Says whether a function of logits returns what another does, on random ones."""
    logits = tf.constant(np.random.default_rng(0).normal(0, 2, (4, 5)), tf.float32)
    try:
        return np.allclose(np.array(function(logits), np.float32), other(logits), atol=1e-2)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):  # it takes no logits of five classes
        return False


def head(model):
    """Returns the dense layer that makes a functional model's output, and what it is given; None for another layer."""
    last = output_layer(model)
    return (last, _inputs_of(model.outputs[0])[0]) if isinstance(last, keras.layers.Dense) else None


def features(model):
    """Returns a keras.Model from images to what the last dense layer takes; None if the model does not end in one."""
    found = head(model)
    return None if found is None else keras.Model(model.inputs[0], found[1], name=f"{model.name}_features")


def in_precision(model, policy):
    """Returns a classifier that computes in another precision: a copy with its weights, or itself where it does.

    Args:
        model: a functional or sequential keras.Model.
        policy: "float32", "mixed_bfloat16" or "mixed_float16". In low precision, layers that scale pixels stay in
            their own: bfloat16 would round pixels to whole levels.

    Raises:
        ValueError: for a model that cannot be copied, or another precision.
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
        if model.compiled:  # a clone would be compiled too, with losses and metrics that need not be known to Keras
            model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        copy = keras.models.clone_model(model, clone_function=convert, recursive=True)
        set_weights(copy, model.get_weights())
    except Exception as error:  # whatever a layer raises that cannot be made from its configuration
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{model.name} cannot be copied in {policy}: {reason}") from error
    return copy


def config_in(layer, policy):
    """Returns the configuration of a layer in a precision (None: its own); what scales pixels keeps its own in low."""
    if not isinstance(layer, keras.layers.Layer):  # an operation of keras.ops, which takes the precision of its input
        return layer.get_config()
    keeps = policy is None or (policy != "float32" and scales_pixels(layer))
    return layer.get_config() | ({} if keeps else {"dtype": policy})


def scales_pixels(layer):
    """Says whether a layer brings pixels to another range: bfloat16 would round them to whole levels first."""
    return isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization))


def set_weights(model, weights):
    """Does what Keras' set_weights does, and then `refresh`: for models and layers that were built anew."""
    model.set_weights(weights)
    refresh(model)


def refresh(model):
    """Makes the layers compute anew what they derive from their weights, after these were assigned.

    A `keras.layers.Normalization` computes with constants, which its `finalize_state` makes of its variables. A layer
    of one's own does such things in `load_own_variables`.
    """
    for layer in model._flatten_layers():
        if not layer.built or isinstance(layer, keras.Model):
            continue
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
        elif not type(layer).load_own_variables.__module__.startswith("keras."):
            stored = {}
            layer.save_own_variables(stored)
            layer.load_own_variables({name: keras.ops.convert_to_numpy(value) for name, value in stored.items()})


def computes_low(model):
    """Says whether a layer of a model computes in less than float32."""
    return any(getattr(layer, "compute_dtype", None) in ("float16", "bfloat16") for layer in model._flatten_layers())


def leaves(model):
    """Yields the layers of a model and of the models in it."""
    for layer in model.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else [layer]
