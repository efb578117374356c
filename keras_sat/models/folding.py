"""A classifier's inference function with batch norm folded into its convolutions: the same numbers, fewer passes."""

import functools
from concurrent import futures

import keras
import tensorflow as tf

from keras_sat import activations
from keras_sat.models import classifier

# By exact type: a subclass may compute anything.
_FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


class _Absorbed(keras.layers.Layer):
    """What is left of a batch norm that was folded: it is called as one, and returns what it is given."""

    def call(self, x, training=None, mask=None):
        return x


class _Borrowed(keras.layers.Layer):
    """A layer of the model itself, within a copy: it needs no copying, and its variables are the live ones."""

    def __init__(self, layer):
        super().__init__(name=layer.name, dtype="float32", autocast=False)  # the layer itself casts what it is given
        self._call_it = lambda *args, **kwargs: layer(*args, **kwargs)  # Keras tracks layers, and not functions
        self._specify = lambda *args, **kwargs: layer.compute_output_spec(*args, **kwargs)
        self._takes_training = layer._call_has_training_arg
        self.built = True

    def call(self, *args, training=None, **kwargs):
        return self._call_it(*args, **kwargs, **({"training": training} if self._takes_training else {}))

    def compute_output_spec(self, *args, training=None, **kwargs):
        return self._specify(*args, **kwargs)


def fold(model):
    """Returns a copy of a classifier whose batch norms, in inference mode, are part of the layers before them.

        factor = gamma / sqrt(variance + epsilon),    kernel' = kernel factor,    bias' = beta + (bias - mean) factor

    It computes the same logits and gradients up to float32 rounding, if its layers say all that they are in their
    get_config; whoever takes figures from it compares the two first (`attacks.agreement`). It is a copy: later changes
    of the model do not reach it (`Folding` follows them). A batch norm that does not follow directly a convolution or
    dense layer of Keras stays as it is.

    Args:
        model: a functional or sequential keras.Model.

    Returns:
        A keras.Model; or `model` itself where there is nothing to fold, or it cannot be copied.
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
    """Folds a classifier that is being trained, anew for each batch that is attacked.

        folding = Folding(model)
        logits_fn = folding.bind()    # folds the variables as they are now; in a graph, once for all steps of an attack

    Layers that are not folded are the model's own, but in another precision, where they are copies.

    Args:
        model: a keras.Model.
        precision: None, the model's; or "mixed_bfloat16" or "mixed_float16", to compute in.

    Raises:
        ValueError: for another precision, or a model that cannot be copied in it.
    """

    def __init__(self, model, precision=None):
        self._model, self._pairs = model, _pairs(model)
        if precision not in (None, *classifier.PRECISIONS):
            raise ValueError(f"The precision must be one of {classifier.PRECISIONS}. Received: {precision!r}")
        # What is mixed about a precision is that variables stay float32; here there are none, and a kernel is cast once
        # for all steps of an attack.
        policy = precision and precision.removeprefix("mixed_")
        # The copy is a structure: it never holds weights. Keras would give it some with the next network's, after the
        # scope; but what is to be initialised it notes for each thread, and this one ends here.
        with futures.ThreadPoolExecutor(1) as thread:
            self._copy = thread.submit(_without_weights, model, self._pairs, policy).result()
        if self._copy is not None and _values(model, self._copy, self._pairs) is None:
            self._copy = None
        if precision is not None and self._copy is None:
            raise ValueError(f"{getattr(model, 'name', model)} cannot be copied in {precision}.")

    @property
    def is_copy(self):
        """Whether `bind` returns a copy, not the model itself."""
        return self._copy is not None

    def give_up(self):
        """Makes `bind` return the model itself from now on."""
        self._copy = None

    def bind(self):
        """Returns a function from images to logits, in inference mode; the model itself where nothing can be folded."""
        pairs = None if self._copy is None else _values(self._model, self._copy, self._pairs)
        if pairs is None:  # also for a model that was given other weights since, by LoRA, say
            return functools.partial(self._model, training=False)
        values = {id(v): tf.cast(value, v.dtype) for v, value in pairs}
        lists = [
            [values[id(v)] if id(v) in values else tf.zeros(v.shape, v.dtype) for v in variables]  # a seed, not used
            for variables in (self._copy.trainable_variables, self._copy.non_trainable_variables)
        ]
        return functools.partial(self._call, lists)

    def _call(self, lists, images):
        return self._copy.stateless_call(*lists, images, training=False)[0]


def _without_weights(model, pairs, policy):
    with keras.StatelessScope(initialize_variables=False):
        return _copied(model, pairs, policy, borrows=True)


def _copied(model, pairs, precision=None, borrows=False):
    """Returns the model without its folded batch norms; None where that cannot be.

    With weights of its own, or where it borrows with layers of the model itself, as far as they stay what they are.
    """
    if not pairs and precision is None:
        return None
    norms = set(pairs.values())

    def convert(layer):
        if not isinstance(layer, keras.layers.Layer):  # an operation, such as keras.ops.add, has no weights
            return type(layer).from_config(layer.get_config())
        if layer in norms:
            return _Absorbed(name=layer.name, dtype=precision or layer.dtype_policy)
        if type(layer) is keras.layers.Activation and layer.activation is keras.activations.mish:
            return activations.Mish(name=layer.name, dtype=precision or layer.dtype_policy)  # which says why
        if borrows and layer not in pairs and (precision is None or classifier.scales_pixels(layer)):
            return _Borrowed(layer)
        config = classifier.config_in(layer, precision)
        return type(layer).from_config(config | ({"use_bias": True} if layer in pairs else {}))

    try:
        uncompiled = keras.Model(model.inputs[0], model.outputs[0])  # a clone would be given an optimizer too
        return keras.models.clone_model(uncompiled, clone_function=convert, recursive=precision is not None)
    except Exception:  # it has no layers, or one that cannot be made from its configuration, whatever that raises
        return None


def _values(model, copy, pairs):
    """Returns [(variable of a folded copy, its value, from the model's as they are now)]; None if they do not fit."""
    found = []
    for layer, twin in _twins(model, copy):
        if twin is None:
            return None
        if layer in pairs.values():
            continue
        values = _folded(layer, pairs[layer]) if layer in pairs else [_value(v) for v in layer.weights]
        if [tuple(value.shape) for value in values] != [tuple(variable.shape) for variable in twin.weights]:
            return None
        found += zip(twin.weights, values)
    return found


def _twins(model, copy):
    """Yields the layers with weights of a model and of the models in it, each with what was made of it, or None.

    There is none where a configuration leaves out the layer's name.
    """
    named = {layer.name: layer for layer in copy.layers}
    for layer in model.layers:
        twin = named.get(layer.name)
        if isinstance(layer, keras.Model) and getattr(layer, "inputs", None) and isinstance(twin, keras.Model):
            yield from _twins(layer, twin)
        elif layer.weights and not isinstance(twin, _Borrowed):
            yield layer, twin


def _pairs(model):
    """Returns {layer: the batch norm that it is to take in}."""
    if not isinstance(model, keras.Model) or not hasattr(model, "get_config") or not getattr(model, "inputs", None):
        return {}
    used, found = {}, {}
    layers = [layer for layer in model.layers if len(layer._inbound_nodes) == 1]
    for operation in getattr(model, "operations", model.layers):  # layers, and functions of keras.ops
        for node in operation._inbound_nodes:
            for tensor in node.input_tensors:
                source = tensor._keras_history.operation.name
                used[source] = used.get(source, 0) + 1
    by_name = {layer.name: layer for layer in layers}
    for layer in layers:
        if type(layer) is not keras.layers.BatchNormalization:
            continue
        source = by_name.get(layer._inbound_nodes[0].input_tensors[0]._keras_history.operation.name)
        if _takes(source, layer) and used[source.name] == 1:
            found[source] = layer
    return found


def _takes(layer, norm):
    """Says whether a layer can take in the batch norm that follows it."""
    is_linear = getattr(layer, "activation", None) is keras.activations.linear
    is_plain = not getattr(layer, "lora_enabled", False) and getattr(layer, "quantization_mode", None) is None
    last_axis = norm.axis in (-1, len(norm.input.shape) - 1)
    channels_last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return type(layer) in _FOLDABLE and is_linear and is_plain and last_axis and channels_last


def _folded(layer, norm):
    """Returns kernel and bias with the batch norm in them."""
    mean = _value(norm.moving_mean)
    factor = tf.math.rsqrt(_value(norm.moving_variance) + norm.epsilon) * (_value(norm.gamma) if norm.scale else 1.0)
    kernel = _value(layer.kernel)
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    scaled = kernel * (tf.reshape(factor, kernel.shape[-2:]) if is_depthwise else factor)
    bias = _value(layer.bias) if layer.use_bias else 0.0
    return [scaled, (_value(norm.beta) if norm.center else 0.0) + (bias - mean) * factor]


def _value(variable):
    """Returns a Keras variable as it is now; of a mirrored one, this replica's."""
    return tf.convert_to_tensor(variable.value)
