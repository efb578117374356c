"""What training and export ask of a model: a built Keras classifier that returns logits."""

import keras

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
            "Build it with classifier_activation=None and train it with a loss that has from_logits=True."
        )


def _last_layer(model):
    while isinstance(model, keras.Model) and model.layers:
        model = model.layers[-1]
    return model
