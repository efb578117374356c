"""What all builders share: the signature of keras.applications, the input, the head."""

import functools

import keras

from keras_sat.models import weights as weights_lib

CLASSES = 1000
_DOC = """Builds {name} with `activation` at every nonlinearity{sites}.

    Args:
        include_top: whether to end in global average pooling and a dense layer of `classes`.
        weights: None (random); "sat-imagenet" or another tag of `keras_sat.models.list_weights()`, fetched on first
            use ("sat-fashion-mnist" lies in the package); or the path of a `.weights.h5` file of this network. With
            other classes the head stays random.
        input_tensor: a Keras tensor of pixels to build upon, in place of `input_shape`.
        input_shape: (height, width, channels), 1 or 3 channels; default: that of the weights, or {shape}. Height and
            width may be None. Pixels are 0..255, RGB, uint8 or float32; the scaling to -1..1 is in the model.
        pooling: with include_top=False, None (feature map), "avg" or "max".
        classes: number of classes; default: that of the weights, or 1000.
        classifier_activation: None for logits, which attacks and training need, or "softmax".
        activation: whatever `keras_sat.activations.layer` takes: "silu", {{"name": "gelu", "approximate": False}}, ...
        name: of the model.

    Returns:
        A functional keras.Model; its logits are float32.

    Raises:
        ValueError: for arguments that fit no network, or weights that do not fit this one.
    """


def builder(name, trunk, *, input_shape, kernel_initializer, dropout=0.0, sites=""):
    """Returns the public function that builds the network `name`.

    Args:
        name: of the function, and of the models it builds.
        trunk: maps a Keras tensor of pixels and an activation to a feature map.
        input_shape: the default one.
        kernel_initializer: makes that of the dense layer, anew for each model: it draws its seed when it is made.
        dropout: rate before the dense layer.
        sites: for the docstring, which nonlinearities one might not think of.
    """

    architecture, default_shape = name, input_shape

    def build(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=None,
        classifier_activation=None,
        activation="silu",
        name=name,
    ):
        given = input_shape if input_tensor is None else _inputs(input_tensor).shape[1:]
        source = weights_lib.resolve(weights, architecture, activation, given and tuple(given))
        defaults = weights_lib.shape_and_classes(source) if isinstance(source, dict) else (default_shape, CLASSES)
        classes = defaults[1] if classes is None else classes
        _check_head(pooling, classes, classifier_activation)
        inputs = _inputs(input_tensor, input_shape or defaults[0])
        outputs = trunk(inputs, activation)
        if include_top:
            outputs = keras.layers.GlobalAveragePooling2D(name="avg_pool")(outputs)
            outputs = keras.layers.Dropout(dropout, name="top_dropout")(outputs) if dropout else outputs
            # Logits are float32 also under mixed precision.
            outputs = keras.layers.Dense(
                classes, classifier_activation, kernel_initializer=kernel_initializer(), dtype="float32", name="linear"
            )(outputs)
        elif pooling:
            outputs = _POOLS[pooling](name=f"{pooling}_pool")(outputs)
        sources = inputs if input_tensor is None else keras.utils.get_source_inputs(input_tensor)
        model = keras.Model(sources, outputs, name=name)
        whole = functools.partial(build, activation=activation)
        weights_lib.load(model, source, whole)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = _DOC.format(name=name, shape=default_shape, sites=sites)
    return build


_POOLS = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}


def _inputs(input_tensor, input_shape=None):
    if input_tensor is None:
        inputs = keras.Input(input_shape)
    elif keras.utils.is_keras_tensor(input_tensor):
        inputs = input_tensor
    else:
        raise ValueError(f"input_tensor must be a keras.Input or another Keras tensor. Received: {input_tensor!r}")
    if inputs.shape[-1] not in (1, 3) or len(inputs.shape) != 4:
        raise ValueError(
            "The input must be an image with 1 or 3 channels, channels last, such as input_shape=(224, 224, 3). "
            f"Received input shape: {inputs.shape[1:]}"
        )
    return inputs


def _check_head(pooling, classes, classifier_activation):
    if pooling not in (None, *_POOLS):
        raise ValueError(f'pooling must be None, "avg" or "max". Received: {pooling!r}')
    if not (isinstance(classes, int) and classes >= 1):
        raise ValueError(f"classes must be an integer >= 1. Received: {classes!r}")
    if classifier_activation not in (None, "softmax"):
        raise ValueError(
            f'classifier_activation must be None (logits) or "softmax". Received: {classifier_activation!r}'
        )
