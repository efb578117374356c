"""ResNet and ResNeXt as the SAT release builds them, and ResNets for small images."""

import dataclasses
import functools
from collections.abc import Callable

import keras

from keras_sat.models import blocks
from keras_sat.models import weights as weights_lib


@dataclasses.dataclass(frozen=True)
class Spec:
    """What tells one ResNet from another: the block, how many of it a stage has, the filters of a stage, the stem."""

    block: Callable
    stage_sizes: tuple
    filters: tuple = (64, 128, 256, 512)
    input_shape: tuple = (224, 224, 3)
    stem_size: int = 7
    stem_strides: int = 2
    max_pool: bool = True


def _trunk(x, spec, activation):
    size, strides = spec.stem_size, spec.stem_strides
    x = blocks.conv_bn(blocks.rescale(x), spec.filters[0], size, strides=strides, activation=activation, name="conv0")
    if spec.max_pool:
        x = keras.layers.MaxPooling2D(3, 2, padding="same", name="pool0")(x)
    for group, (size, filters) in enumerate(zip(spec.stage_sizes, spec.filters)):
        for index in range(size):
            strides = 2 if group > 0 and index == 0 else 1
            x = spec.block(x, filters, strides, activation, f"group{group}_block{index}")
    return x


def _head(x, include_top, pooling, classes, classifier_activation):
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        # Logits are float32 also under mixed precision.
        return keras.layers.Dense(
            classes,
            activation=classifier_activation,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype="float32",
            name="linear",
        )(x)
    pools = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
    return pools[pooling](name=f"{pooling}_pool")(x) if pooling else x


def _inputs(input_tensor, input_shape):
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
    if pooling not in (None, "avg", "max"):
        raise ValueError(f'pooling must be None, "avg" or "max". Received: {pooling!r}')
    if not (isinstance(classes, int) and classes >= 1):
        raise ValueError(f"classes must be an integer >= 1. Received: {classes!r}")
    if classifier_activation not in (None, "softmax"):
        raise ValueError(
            f'classifier_activation must be None (logits) or "softmax". Received: {classifier_activation!r}'
        )


def _builder(name, spec):
    """Returns the public function that builds the network `name`."""

    def build(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation=None,
        activation="silu",
        name=name,
    ):
        _check_head(pooling, classes, classifier_activation)
        inputs = _inputs(input_tensor, input_shape or spec.input_shape)
        outputs = _head(_trunk(inputs, spec, activation), include_top, pooling, classes, classifier_activation)
        sources = inputs if input_tensor is None else keras.utils.get_source_inputs(input_tensor)
        model = keras.Model(sources, outputs, name=name)
        weights_lib.load(model, weights)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = _DOC.format(name=name, shape=spec.input_shape)
    return build


_DOC = """Builds {name} with `activation` at every nonlinearity, the one after each addition included.

    Args:
        include_top: whether to end in global average pooling and a dense layer of `classes`.
        weights: None (random) or the path of a `.weights.h5` file of this network.
        input_tensor: a Keras tensor of pixels to build upon, in place of `input_shape`.
        input_shape: (height, width, channels), 1 or 3 channels; default {shape}. Height and width may be None. Pixels
            are 0..255, RGB, uint8 or float32; the scaling to -1..1 is in the model.
        pooling: with include_top=False, None (feature map), "avg" or "max".
        classes: number of classes.
        classifier_activation: None for logits, which attacks and training need, or "softmax".
        activation: whatever `keras_sat.activations.layer` takes: "silu", {{"name": "gelu", "approximate": False}}, ...
        name: of the model.

    Returns:
        A functional keras.Model; its logits are float32.

    Raises:
        ValueError: for arguments that fit no network, or weights that do not fit this one.
    """

ResNet50 = _builder("ResNet50", Spec(blocks.bottleneck, (3, 4, 6, 3)))
ResNet101 = _builder("ResNet101", Spec(blocks.bottleneck, (3, 4, 23, 3)))
ResNet152 = _builder("ResNet152", Spec(blocks.bottleneck, (3, 8, 36, 3)))

_BLOCK_32X4D = functools.partial(blocks.bottleneck, groups=32, base_width=4)
_BLOCK_32X8D = functools.partial(blocks.bottleneck, groups=32, base_width=8)
ResNeXt50_32x4d = _builder("ResNeXt50_32x4d", Spec(_BLOCK_32X4D, (3, 4, 6, 3)))
ResNeXt50_32x8d = _builder("ResNeXt50_32x8d", Spec(_BLOCK_32X8D, (3, 4, 6, 3)))
ResNeXt152_32x8d = _builder("ResNeXt152_32x8d", Spec(_BLOCK_32X8D, (3, 8, 36, 3)))

_small = functools.partial(Spec, blocks.basic, input_shape=(32, 32, 3), stem_size=3, stem_strides=1, max_pool=False)
ResNet8 = _builder("ResNet8", _small(stage_sizes=(1, 1, 1), filters=(16, 32, 64), stem_strides=2))
ResNet18 = _builder("ResNet18", _small(stage_sizes=(2, 2, 2, 2)))
ResNet20 = _builder("ResNet20", _small(stage_sizes=(3, 3, 3), filters=(16, 32, 64)))
