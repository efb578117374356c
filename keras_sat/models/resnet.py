"""ResNet and ResNeXt as the SAT release builds them, and ResNets for small images."""

import dataclasses
import functools
from collections.abc import Callable

import keras

from keras_sat.models import blocks
from keras_sat.models.builder import builder


@dataclasses.dataclass(frozen=True)
class Spec:
    """The architecture of a ResNet.

    Attributes:
        block: function that applies a residual block, such as `blocks.basic`.
        stage_sizes: number of blocks in each stage.
        filters: the block's argument `filters` in each stage.
        input_shape: the default (height, width, channels).
        stem_size, stem_strides: kernel size and stride of the first convolution.
        max_pool: whether a 3x3 max pooling with stride 2 follows it.
    """

    block: Callable[..., keras.KerasTensor]
    stage_sizes: tuple[int, ...]
    filters: tuple[int, ...] = (64, 128, 256, 512)
    input_shape: tuple[int, int, int] = (224, 224, 3)
    stem_size: int = 7
    stem_strides: int = 2
    max_pool: bool = True


def _trunk(spec, x, activation):
    size, strides = spec.stem_size, spec.stem_strides
    x = blocks.conv_bn(blocks.rescale(x), spec.filters[0], size, strides=strides, activation=activation, name="conv0")
    if spec.max_pool:
        x = keras.layers.MaxPooling2D(3, 2, padding="same", name="pool0")(x)
    for group, (size, filters) in enumerate(zip(spec.stage_sizes, spec.filters)):
        for index in range(size):
            strides = 2 if group > 0 and index == 0 else 1
            x = spec.block(x, filters, strides, activation, f"group{group}_block{index}")
    return x


def _resnet(name, spec):
    return builder(
        name,
        functools.partial(_trunk, spec),
        input_shape=spec.input_shape,
        kernel_initializer=functools.partial(keras.initializers.RandomNormal, stddev=0.01),
        sites=", the one after each addition included",
    )


ResNet50 = _resnet("ResNet50", Spec(blocks.bottleneck, (3, 4, 6, 3)))
ResNet101 = _resnet("ResNet101", Spec(blocks.bottleneck, (3, 4, 23, 3)))
ResNet152 = _resnet("ResNet152", Spec(blocks.bottleneck, (3, 8, 36, 3)))

_BLOCK_32X4D = functools.partial(blocks.bottleneck, groups=32, base_width=4)
_BLOCK_32X8D = functools.partial(blocks.bottleneck, groups=32, base_width=8)
ResNeXt50_32x4d = _resnet("ResNeXt50_32x4d", Spec(_BLOCK_32X4D, (3, 4, 6, 3)))
ResNeXt50_32x8d = _resnet("ResNeXt50_32x8d", Spec(_BLOCK_32X8D, (3, 4, 6, 3)))
ResNeXt152_32x8d = _resnet("ResNeXt152_32x8d", Spec(_BLOCK_32X8D, (3, 8, 36, 3)))

_small = functools.partial(Spec, blocks.basic, input_shape=(32, 32, 3), stem_size=3, stem_strides=1, max_pool=False)
ResNet8 = _resnet("ResNet8", _small(stage_sizes=(1, 1, 1), filters=(16, 32, 64), stem_strides=2))
ResNet18 = _resnet("ResNet18", _small(stage_sizes=(2, 2, 2, 2)))
ResNet20 = _resnet("ResNet20", _small(stage_sizes=(3, 3, 3), filters=(16, 32, 64)))
