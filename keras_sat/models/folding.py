"""Folds the batch norms of a classifier, in inference mode, into its convolutions: the same logits, faster."""

import collections
import functools
import inspect
from typing import Any

import keras
import tensorflow as tf

from keras_sat import activations, internals
from keras_sat.models import classifier, graph
from keras_sat.typing import LogitsFunction

__all__ = ["Folding", "fold"]

# The types themselves: a subclass may compute something else.
_FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


class _Identity(keras.layers.Layer):
    """Takes the place of a batch norm that was folded. It returns its input."""

    def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
        return x


class _SharedLayer(keras.layers.Layer):
    """Calls a layer of the original model from within a copy, so that the copy uses its live variables."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        super().__init__(name=layer.name, dtype="float32", autocast=False)  # the layer itself casts its input
        # Functions, because Keras would track a layer as part of the copy.
        self._call_layer = lambda *args, **kwargs: layer(*args, **kwargs)
        self._layer_spec = lambda *args, **kwargs: layer.compute_output_spec(*args, **kwargs)
        self._takes_training = "training" in inspect.signature(layer.call).parameters
        self.built = True

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return self._call_layer(*args, **kwargs, **({"training": training} if self._takes_training else {}))

    def compute_output_spec(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return self._layer_spec(*args, **kwargs)


def fold(model: keras.Model) -> keras.Model:
    """Returns a copy of a classifier in which batch norms, in inference mode, are part of the layers before them.

        factor = gamma / sqrt(variance + epsilon),    kernel' = kernel factor,    bias' = beta + (bias - mean) factor

    A batch norm is folded if it directly follows a convolution or dense layer of Keras. If the `get_config` of each
    layer is complete, the copy computes the same logits and gradients, up to float32 rounding. Compare the two before
    you rely on the copy: `evaluate` and `AdversarialModel` do it with `attacks.agreement`.

    The copy has its own weights. Later changes of the model's weights do not change the copy; use `Folding` for that.

    Args:
        model: a functional or sequential keras.Model.

    Returns:
        The copy; or `model` itself if there is nothing to fold, or if the model cannot be copied.
    """
    pairs = _pairs(model)
    copy = _copied(model, pairs)
    if copy is None:
        return model
    values = _values(model, copy, pairs)
    if values is None:
        return model
    for variable, value in values:
        variable.assign(value)
    classifier.refresh(copy)
    return copy


class Folding:
    """Folds the batch norms of a classifier that is being trained. Each call of `bind` uses the current weights.

        folding = Folding(model)
        logits_fn = folding.bind()    # in a graph: folded once, for all steps of an attack

    Layers that are not folded are shared with the model. With `precision`, they are copies.

    Args:
        model: a keras.Model.
        precision: "mixed_bfloat16" or "mixed_float16" to compute in that precision; None for the model's precision.

    Raises:
        ValueError: for another precision, or a model that cannot be copied in this precision.
    """

    def __init__(self, model: keras.Model, precision: str | None = None) -> None:
        self._model, self._pairs = model, _pairs(model)
        if precision not in (None, *classifier.PRECISIONS):
            raise ValueError(f"The precision must be one of {classifier.PRECISIONS}. Received: {precision!r}")
        # The copy has no variables that a mixed precision would keep in float32. Its kernels are cast once, for all
        # steps of an attack.
        policy = precision and precision.removeprefix("mixed_")
        self._copy = internals.without_weights(functools.partial(_copied, borrows=True), model, self._pairs, policy)
        if self._copy is not None and _values(model, self._copy, self._pairs) is None:
            self._copy = None
        if precision is not None and self._copy is None:
            raise ValueError(f"{getattr(model, 'name', model)} cannot be copied in {precision}.")

    @property
    def is_copy(self) -> bool:
        """Whether `bind` returns a copy, and not the model itself."""
        return self._copy is not None

    def give_up(self) -> None:
        """Makes `bind` return the model itself from now on."""
        self._copy = None

    def bind(self) -> LogitsFunction:
        """Returns the model in inference mode, folded with its current weights, as a function from images to logits.

        If nothing can be folded, it is the model itself.
        """
        pairs = None if self._copy is None else _values(self._model, self._copy, self._pairs)
        if pairs is None:  # also if layers got additional weights in the meantime, for example by LoRA
            return functools.partial(self._model, training=False)
        values = {id(variable): tf.cast(value, variable.dtype) for variable, value in pairs}
        # All other variables are states of seed generators, which inference does not use: zeros replace them.
        lists = [
            [values[id(v)] if id(v) in values else tf.zeros(v.shape, v.dtype) for v in variables]
            for variables in (self._copy.trainable_variables, self._copy.non_trainable_variables)
        ]
        return functools.partial(self._call, lists)

    def _call(self, lists, images):
        return self._copy.stateless_call(*lists, images, training=False)[0]


def _copied(model, pairs, precision=None, borrows=False):
    """Returns a copy of the model without its folded batch norms; None if nothing changes or a copy is impossible.

    Args:
        model: the keras.Model.
        pairs: see `_pairs`.
        precision: dtype policy of the copy; None keeps each layer's own.
        borrows: True shares the layers that need no change with the model. False copies all layers.
    """
    if not pairs and precision is None:
        return None
    norms = set(pairs.values())

    def convert(layer):
        if not isinstance(layer, keras.layers.Layer):  # an operation such as keras.ops.add, without weights
            return type(layer).from_config(layer.get_config())
        if layer in norms:
            return _Identity(name=layer.name, dtype=precision or layer.dtype_policy)
        if type(layer) is keras.layers.Activation and layer.activation is keras.activations.mish:
            return activations.Mish(name=layer.name, dtype=precision or layer.dtype_policy)  # see activations.Mish
        if borrows and layer not in pairs and (precision is None or classifier.scales_pixels(layer)):
            return _SharedLayer(layer)
        config = classifier.config_in(layer, precision)
        return type(layer).from_config(config | ({"use_bias": True} if layer in pairs else {}))

    try:
        uncompiled = keras.Model(model.inputs[0], model.outputs[0])  # a clone of a compiled model would be compiled too
        return keras.models.clone_model(uncompiled, clone_function=convert, recursive=precision is not None)
    except Exception:  # no layers, or a layer that its configuration cannot rebuild: layers may raise any exception
        return None


def _values(model, copy, pairs):
    """Returns [(variable of a folded copy, its value from the model's current weights)]; None if they do not fit."""
    pairs_of_copy = []
    for layer, twin in _twins(model, copy):
        if twin is None:
            return None
        if layer in pairs.values():
            continue
        values = _folded(layer, pairs[layer]) if layer in pairs else [_value(v) for v in layer.weights]
        if [tuple(value.shape) for value in values] != [tuple(variable.shape) for variable in twin.weights]:
            return None
        pairs_of_copy += zip(twin.weights, values)
    return pairs_of_copy


def _twins(model, copy):
    """Yields (layer, its counterpart in the copy) for all layers with weights, also for layers of inner models.

    The counterpart is None if the layer's `get_config` does not return its name.
    """
    named = {layer.name: layer for layer in copy.layers}
    for layer in model.layers:
        twin = named.get(layer.name)
        if graph.is_functional(layer) and isinstance(twin, keras.Model):
            yield from _twins(layer, twin)
        elif layer.weights and not isinstance(twin, _SharedLayer):
            yield layer, twin


def _pairs(model):
    """Returns {layer: the batch norm that directly follows it and can be folded into it}."""
    calls = graph.calls(model)
    makers = {id(tensor): call.operation for call in calls for tensor in call.outputs}
    times_used = collections.Counter(id(tensor) for call in calls for tensor in call.inputs)
    times_called = collections.Counter(call.operation for call in calls)
    pairs = {}
    for norm, inputs, _ in calls:
        if type(norm) is not keras.layers.BatchNormalization:
            continue
        layer = makers.get(id(inputs[0]))
        is_alone = times_used[id(inputs[0])] == times_called[layer] == times_called[norm] == 1
        if is_alone and _takes(layer, norm):
            pairs[layer] = norm
    return pairs


def _takes(layer, norm):
    """Returns whether the batch norm that follows a layer can be folded into it."""
    is_linear = getattr(layer, "activation", None) is keras.activations.linear
    is_plain = not getattr(layer, "lora_enabled", False) and getattr(layer, "quantization_mode", None) is None
    last_axis = norm.axis in (-1, len(norm.input.shape) - 1)
    channels_last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return type(layer) in _FOLDABLE and is_linear and is_plain and last_axis and channels_last


def _folded(layer, norm):
    """Returns the kernel and bias of a layer with the batch norm folded into them."""
    mean = _value(norm.moving_mean)
    factor = tf.math.rsqrt(_value(norm.moving_variance) + norm.epsilon) * (_value(norm.gamma) if norm.scale else 1.0)
    kernel = _value(layer.kernel)
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    scaled = kernel * (tf.reshape(factor, kernel.shape[-2:]) if is_depthwise else factor)
    bias = _value(layer.bias) if layer.use_bias else 0.0
    return [scaled, (_value(norm.beta) if norm.center else 0.0) + (bias - mean) * factor]


def _value(variable):
    """Returns the current value of a Keras variable; for a mirrored variable, the value of this replica."""
    return tf.convert_to_tensor(variable.value)
