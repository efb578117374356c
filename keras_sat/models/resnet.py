"""ResNets: ResNet and ResNeXt as the SAT release builds them, torchvision's, and those for small images."""

import dataclasses
import functools
import re
from collections.abc import Callable

import keras

from keras_sat.models import blocks
from keras_sat.models.builder import Builder, Form, builder
from keras_sat.models.normalization import SYMMETRIC


@dataclasses.dataclass(frozen=True)
class Spec:
    """The architecture of a ResNet.

    Attributes:
        block: function that applies a residual block, such as `blocks.basic`.
        stage_sizes: number of blocks in each stage.
        filters: the block's argument `filters` in each stage.
    """

    block: Callable[..., keras.KerasTensor]
    stage_sizes: tuple[int, ...]
    filters: tuple[int, ...] = (64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Stem:
    """The layers before the residual blocks.

    Attributes:
        size, strides: kernel size and stride of the convolution.
        pool: function that applies the max pooling after it; None for none.
    """

    size: int = 3
    strides: int = 1
    pool: Callable[[keras.KerasTensor], keras.KerasTensor] | None = None


def _trunk(spec, stem, style, x, activation):
    x = blocks.conv_bn(
        x, spec.filters[0], stem.size, strides=stem.strides, activation=activation, name="conv0", style=style
    )
    x = stem.pool(x) if stem.pool else x
    for group, (size, filters) in enumerate(zip(spec.stage_sizes, spec.filters)):
        for index in range(size):
            strides = 2 if group > 0 and index == 0 else 1
            x = spec.block(x, filters, strides, activation, f"group{group}_block{index}", style=style)
    return x


def _release_pool(x):
    return keras.layers.MaxPooling2D(3, 2, padding="same", name="pool0")(x)


def _torchvision_pool(x):
    """Applies 3x3 max pooling with stride 2, as if there were a border of one pixel of minus infinity on each side.

    TensorFlow's "same" padding has this border with stride 1 only. So a second pooling takes every other pixel.
    """
    x = keras.layers.MaxPooling2D(3, 1, padding="same", name="maxpool")(x)
    return keras.layers.MaxPooling2D(1, 2, name="maxpool_stride")(x)


def _torch_name(shortcut, name):
    """Returns the PyTorch name for a name of the SAT release; `shortcut` is PyTorch's name of the shortcut's layers.

    For example, group0_block1_conv2_bn becomes layer1.1.bn2; group1_block0_convshortcut becomes layer2.0.shortcut.0.
    """
    block = re.match(r"group(\d+)_block(\d+)_", name)
    prefix = f"layer{int(block[1]) + 1}.{block[2]}." if block else ""
    site = name[block.end() :] if block else name.replace("conv0", "conv1")
    if site.startswith("convshortcut"):
        return f"{prefix}{shortcut}.{1 if site.endswith('_bn') else 0}"
    return prefix + re.sub(r"^conv(\d)_(bn|act)$", r"\2\1", site)


_TORCHVISION = blocks.Style(functools.partial(_torch_name, "downsample"), epsilon=1e-5, zero_gamma=False)
_ROBUSTBENCH = blocks.Style(functools.partial(_torch_name, "shortcut"), epsilon=1e-5, zero_gamma=False)
_dense_initializer = functools.partial(keras.initializers.RandomNormal, stddev=0.01)
_LARGE, _SMALL = (224, 224, 3), (32, 32, 3)


def _form(stem, style=blocks.RELEASE, **options):
    """Returns a function from a `Spec` to a `Form`."""

    def form(spec):
        return Form(functools.partial(_trunk, spec, stem, style), kernel_initializer=_dense_initializer, **options)

    return form


_FORMS = {
    "sat": _form(Stem(7, 2, _release_pool), normalization=SYMMETRIC, input_shape=_LARGE),
    "small": _form(Stem(), _ROBUSTBENCH, input_shape=_SMALL, classes=10),
    "torchvision": _form(
        Stem(7, 2, _torchvision_pool), _TORCHVISION, normalization="imagenet", input_shape=_LARGE, head="fc"
    ),
}


def network(name: str, spec: Spec, *forms: str) -> Builder:
    """Returns the builder of a network in the given forms: "sat", "small", "torchvision". The first is the default."""
    return builder(
        name,
        {form: _FORMS[form](spec) for form in forms},
        sites=", the one after each addition included",
    )


ResNet18 = network("ResNet18", Spec(blocks.basic, (2, 2, 2, 2)), "small", "torchvision")
ResNet50 = network("ResNet50", Spec(blocks.bottleneck, (3, 4, 6, 3)), "sat", "small", "torchvision")
ResNet101 = network("ResNet101", Spec(blocks.bottleneck, (3, 4, 23, 3)), "sat", "small", "torchvision")
ResNet152 = network("ResNet152", Spec(blocks.bottleneck, (3, 8, 36, 3)), "sat", "small", "torchvision")

_WIDE = functools.partial(blocks.bottleneck, base_width=128)
WideResNet50_2 = network("WideResNet50_2", Spec(_WIDE, (3, 4, 6, 3)), "torchvision")

_BLOCK_32X4D = functools.partial(blocks.bottleneck, groups=32, base_width=4)
_BLOCK_32X8D = functools.partial(blocks.bottleneck, groups=32, base_width=8)
ResNeXt50_32x4d = network("ResNeXt50_32x4d", Spec(_BLOCK_32X4D, (3, 4, 6, 3)), "sat")
ResNeXt50_32x8d = network("ResNeXt50_32x8d", Spec(_BLOCK_32X8D, (3, 4, 6, 3)), "sat")
ResNeXt152_32x8d = network("ResNeXt152_32x8d", Spec(_BLOCK_32X8D, (3, 8, 36, 3)), "sat")


def _tiny(name, stage_sizes, stem):
    """Returns the builder of a ResNet of this package for small images, with the details of the SAT release."""
    form = _form(stem, normalization=SYMMETRIC, input_shape=_SMALL)
    spec = Spec(blocks.basic, stage_sizes, (16, 32, 64))
    return builder(name, {"sat": form(spec)}, sites=", the one after each addition included")


ResNet8 = _tiny("ResNet8", (1, 1, 1), Stem(strides=2))
ResNet20 = _tiny("ResNet20", (3, 3, 3), Stem())
