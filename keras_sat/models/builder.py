"""Makes the public builders of networks: their signature, as in keras.applications, the input and the head."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_sat.models import weights as weights_lib
from keras_sat.typing import Path

CLASSES = 1000
_DOC = """Builds {name} with `activation` at every nonlinearity{sites}.

    Args:
        include_top: whether the network ends in global average pooling and a dense layer of `classes` outputs.
        weights: None (random weights); "sat-imagenet" or another tag of `keras_sat.models.list_weights()`, downloaded
            on first use ("sat-fashion-mnist" is part of the package); or the path of a `.weights.h5` file of this
            network. If the weights of a tag have another number of classes than `classes`, the head keeps its random
            weights, with a warning.
        input_tensor: a Keras tensor of pixels that is the input of the network, in place of `input_shape`.
        input_shape: (height, width, channels), with 1 or 3 channels. Default: the input shape of the weights, or
            {shape}. Height and width may be None. Pixels are 0..255, RGB, uint8 or float32; the model scales them to
            -1..1.
        pooling: with include_top=False, the pooling of the feature map: None, "avg" or "max".
        classes: number of classes. Default: the number of classes of the weights, or 1000.
        classifier_activation: None for logits, which attacks and training need; or "softmax".
        activation: the activation at every nonlinearity, "silu" by default. See `keras_sat.activations.layer`; for
            example {{"name": "gelu", "approximate": False}}.
        name: name of the model.

    Returns:
        A functional keras.Model; its logits are float32.

    Raises:
        ValueError: for invalid arguments, or weights that do not fit this network.
    """


def builder(
    name: str,
    trunk: Callable[[keras.KerasTensor, Any], keras.KerasTensor],
    *,
    input_shape: tuple[int, int, int],
    kernel_initializer: Callable[[], keras.initializers.Initializer],
    dropout: float = 0.0,
    sites: str = "",
) -> Callable[..., keras.Model]:
    """Returns the public function that builds the network `name`.

    Args:
        name: name of the function, and the default name of its models.
        trunk: function from a Keras tensor of pixels and an activation to a feature map.
        input_shape: the default (height, width, channels).
        kernel_initializer: function that returns the initializer of the dense layer. Each model needs a new one,
            because an initializer draws its seed when it is created.
        dropout: rate of the dropout before the dense layer.
        sites: text for the docstring, about nonlinearities that a reader may not expect.
    """

    architecture, default_shape = name, input_shape

    def build(
        include_top: bool = True,
        weights: Path | None = None,
        input_tensor: keras.KerasTensor | None = None,
        input_shape: tuple[int | None, int | None, int] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: str | None = None,
        activation: Any = "silu",
        name: str = name,
    ) -> keras.Model:
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
            # The dense layer stays in float32 under mixed precision.
            outputs = keras.layers.Dense(
                classes, classifier_activation, kernel_initializer=kernel_initializer(), dtype="float32", name="linear"
            )(outputs)
        elif pooling:
            outputs = _POOLS[pooling](name=f"{pooling}_pool")(outputs)
        sources = keras.utils.get_source_inputs(inputs)
        # Keras warns at each call of a model that was made with a list of one input.
        model = keras.Model(sources[0] if len(sources) == 1 else sources, outputs, name=name)
        weights_lib.load(model, source, build_network=functools.partial(build, activation=activation))
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
