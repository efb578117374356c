"""A classifier's inference function with batch norm folded into its convolutions: the same numbers, fewer passes."""

import keras
import numpy as np
from keras.ops import convert_to_numpy

_FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


class _Absorbed(keras.layers.Layer):
    """What is left of a batch norm that was folded: it is called as one, and returns what it is given."""

    def call(self, x, training=None, mask=None):
        return x


def fold(model):
    """Returns a copy of a classifier whose batch norms, in inference mode, are part of the layers before them.

        factor = gamma / sqrt(variance + epsilon),    kernel' = kernel factor,    bias' = beta + (bias - mean) factor

    It computes the same logits and gradients up to float32 rounding. It is a copy: later changes of the model do not
    reach it. A batch norm that does not follow directly a convolution or dense layer stays as it is.

    Args:
        model: a functional or sequential keras.Model.

    Returns:
        A keras.Model; or `model` itself where there is nothing to fold, or it cannot be copied.
    """
    pairs = _pairs(model)
    if not pairs:
        return model
    norms = {norm.name for norm in pairs.values()}

    def convert(layer):
        if layer.name in norms:
            return _Absorbed(name=layer.name, dtype=layer.dtype_policy)
        config = layer.get_config()
        return type(layer).from_config(config | ({"use_bias": True} if layer.name in pairs else {}))

    try:
        copy = keras.models.clone_model(model, clone_function=convert)
    except (TypeError, ValueError, NotImplementedError):  # a layer that cannot be made from its configuration
        return model
    for layer in model.layers:
        if layer.weights and layer.name not in norms:
            weights = _folded(layer, pairs[layer.name]) if layer.name in pairs else layer.get_weights()
            copy.get_layer(layer.name).set_weights(weights)
    return copy


def _pairs(model):
    """Returns {name of a layer: the batch norm that it is to take in}."""
    if not isinstance(model, keras.Model) or not hasattr(model, "get_config") or not getattr(model, "inputs", None):
        return {}
    used, found = {}, {}
    layers = [layer for layer in model.layers if len(layer._inbound_nodes) == 1]
    for layer in model.layers:
        for node in layer._inbound_nodes:
            for tensor in node.input_tensors:
                source = tensor._keras_history.operation.name
                used[source] = used.get(source, 0) + 1
    by_name = {layer.name: layer for layer in layers}
    for layer in layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        source = by_name.get(layer._inbound_nodes[0].input_tensors[0]._keras_history.operation.name)
        if _takes(source, layer) and used[source.name] == 1:
            found[source.name] = layer
    return found


def _takes(layer, norm):
    """Says whether a layer can take in the batch norm that follows it."""
    is_linear = getattr(layer, "activation", None) is keras.activations.linear
    last_axis = norm.axis in (-1, len(norm.input.shape) - 1)
    return isinstance(layer, _FOLDABLE) and is_linear and last_axis


def _folded(layer, norm):
    """Returns kernel and bias with the batch norm in them."""
    mean, variance = convert_to_numpy(norm.moving_mean), convert_to_numpy(norm.moving_variance)
    factor = (convert_to_numpy(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    bias = convert_to_numpy(layer.bias) if layer.use_bias else 0.0
    kernel = convert_to_numpy(layer.kernel)
    scaled = kernel * (factor.reshape(kernel.shape[-2:]) if isinstance(layer, keras.layers.DepthwiseConv2D) else factor)
    return [scaled, (convert_to_numpy(norm.beta) if norm.center else 0.0) + (bias - mean) * factor]
