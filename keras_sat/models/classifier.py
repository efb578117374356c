"""What training and export ask of a model: a built Keras classifier that returns logits."""

import keras

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)


def check(model):
    """Raises ValueError unless `model` is a built Keras classifier whose last layer does not return probabilities."""
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "model must be a built Keras classifier; build a subclassed one by calling it on a batch of images. "
            f"Received: {model!r}"
        )
    last = _last_layer(model)
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) in PROBABILITIES:
        raise ValueError(
            f"{model.name} ends in probabilities (layer {last.name}): a softmax hides the gradient from an attack. "
            "Build it with classifier_activation=None, or take keras_sat.models.without_softmax(model), and train it "
            "with a loss that has from_logits=True."
        )


def without_softmax(model):
    """Returns the logits of a classifier that ends in a softmax, as those of keras.applications do by default.

    Args:
        model: a functional or sequential keras.Model whose last layer is a softmax, or a dense layer with one.

    Returns:
        A keras.Model; it shares all layers with `model` but a last dense layer, which is copied.

    Raises:
        ValueError: if the model does not end in such a layer.
    """
    last = model.layers[-1]
    if isinstance(last, keras.layers.Dense) and last.activation is keras.activations.softmax:
        dense = keras.layers.Dense(last.units, use_bias=last.use_bias, dtype=last.dtype_policy, name=last.name)
        logits = dense(last.input)
        dense.set_weights(last.get_weights())
    elif isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        logits = last.input
    else:
        raise ValueError(f"{model.name} does not end in a softmax. Received last layer: {last!r}")
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs  # else Keras warns of a list's structure
    return keras.Model(inputs, logits, name=model.name)


def _last_layer(model):
    while isinstance(model, keras.Model) and model.layers:
        model = model.layers[-1]
    return model


def features(model):
    """Returns a keras.Model from images to what the last dense layer takes; None if the model does not end in one."""
    last = model.layers[-1] if getattr(model, "inputs", None) and model.layers else None
    if not isinstance(last, keras.layers.Dense):
        return None
    return keras.Model(model.inputs[0], last.input, name=f"{model.name}_features")


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
        copy = keras.models.clone_model(model, clone_function=convert, recursive=True)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{model.name} cannot be copied in {policy}: {error}") from error
    copy.set_weights(model.get_weights())
    return copy


def config_in(layer, policy):
    """Returns the configuration of a layer in a precision (None: its own); what scales pixels keeps its own in low."""
    keeps = policy is None or (policy != "float32" and isinstance(layer, keras.layers.Rescaling))
    return layer.get_config() | ({} if keeps else {"dtype": policy})


def leaves(model):
    """Yields the layers of a model and of the models in it."""
    for layer in model.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else [layer]
