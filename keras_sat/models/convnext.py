"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545), also with the ConvStem of Singh et al. 2023 (arXiv:2303.01870).

Layers have the names of the state dict in timm: https://github.com/huggingface/pytorch-image-models
"""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np

from keras_sat import activations
from keras_sat.models.builder import Builder, Form, builder

EPSILON = 1e-6  # of layer norms
LAYER_SCALE = 1e-6  # the initial value
EXACT_GELU = {"name": "gelu", "approximate": False}


@dataclasses.dataclass(frozen=True)
class Spec:
    """The architecture of a ConvNeXt.

    Attributes:
        depths: number of blocks in each stage.
        widths: number of channels in each stage.
        stem: number of filters of each convolution of the ConvStem; the last one is the width of the first stage.
        drop_rate: probability that an example skips the last block in training (stochastic depth). It grows linearly
            from 0 at the first block.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: tuple[int, ...]
    drop_rate: float


@keras.saving.register_keras_serializable("keras_sat")
class LayerScale(keras.layers.Layer):
    """Multiplies each channel by a trained factor, `gamma` (Touvron et al. 2021, arXiv:2103.17239).

    The last axis of the input holds the channels. All factors start at 1e-6.
    """

    def build(self, input_shape: Any) -> None:
        initializer = keras.initializers.Constant(LAYER_SCALE)
        self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer=initializer)

    def call(self, inputs: Any) -> Any:
        return inputs * self.gamma


def _initializer():
    """Returns a new initializer of a kernel: the publication's truncated normal is cut at 100 standard deviations."""
    return keras.initializers.RandomNormal(stddev=0.02)


def _conv(x, filters, size, strides, name):
    return keras.layers.Conv2D(filters, size, strides, kernel_initializer=_initializer(), name=name)(x)


def _dense(x, units, name):
    return keras.layers.Dense(units, kernel_initializer=_initializer(), name=name)(x)


def _norm(x, name):
    return keras.layers.LayerNormalization(epsilon=EPSILON, name=name)(x)


def _patch_stem(spec, x, activation):
    """Applies a 4x4 convolution with stride 4, and a layer norm."""
    return _norm(_conv(x, spec.widths[0], 4, 4, "stem.0"), "stem.1")


def _conv_stem(spec, x, activation):
    """Applies 3x3 convolutions, the first two with stride 2, each with a layer norm and an activation."""
    for index, (filters, strides) in enumerate(zip(spec.stem, (2, 2, 1))):
        conv, norm, act = (f"stem.stem.{3 * index + position}" for position in range(3))
        x = keras.layers.ZeroPadding2D(1, name=f"{conv}_pad")(x)
        x = _norm(_conv(x, filters, 3, strides, conv), norm)
        x = activations.layer(activation, act)(x)
    return x


def _block(x, activation, drop_rate, name):
    """Applies a depthwise 7x7 convolution, a layer norm, and two dense layers to each pixel; and adds the input."""
    width = x.shape[-1]
    y = keras.layers.DepthwiseConv2D(7, padding="same", depthwise_initializer=_initializer(), name=f"{name}.conv_dw")(x)
    y = _dense(_norm(y, f"{name}.norm"), 4 * width, f"{name}.mlp.fc1")
    y = _dense(activations.layer(activation, f"{name}.mlp.act")(y), width, f"{name}.mlp.fc2")
    y = LayerScale(name=name)(y)
    if drop_rate > 0:
        y = keras.layers.Dropout(drop_rate, noise_shape=(None, 1, 1, 1), name=f"{name}.drop_path")(y)
    return keras.layers.Add(name=f"{name}.add")([x, y])


def _trunk(spec, stem, x, activation):
    size = x.shape[1:3]
    x = stem(spec, x, activation)
    drop_rates = iter(np.linspace(0, spec.drop_rate, sum(spec.depths)).tolist())
    for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths)):
        name = f"stages.{stage}"
        if stage > 0:
            if 1 in x.shape[1:3]:
                raise ValueError(f"ConvNeXt halves images five times: 32 x 32 pixels suffice. Received: {size}")
            x = _conv(_norm(x, f"{name}.downsample.0"), width, 2, 2, f"{name}.downsample.1")
        for index in range(depth):
            x = _block(x, activation, next(drop_rates), f"{name}.blocks.{index}")
    return x


def network(name: str, spec: Spec) -> Builder:
    """Returns the builder of a ConvNeXt. Its argument `stem` is "conv" (default) or "patch".

    With include_top=False, the network ends before the layer norm `head.norm`, which follows the average pooling.

    Args:
        name: name of the builder.
        spec: the architecture.
    """
    form = functools.partial(
        Form,
        kernel_initializer=_initializer,
        activation=EXACT_GELU,
        top=functools.partial(_norm, name="head.norm"),
        head="head.fc",
    )
    forms = {
        # The networks of Singh et al. take images in 0..1, and are trained without stochastic depth.
        "conv": form(
            functools.partial(_trunk, dataclasses.replace(spec, drop_rate=0.0), _conv_stem), normalization=None
        ),
        "patch": form(functools.partial(_trunk, spec, _patch_stem), normalization="imagenet"),
    }
    return builder(name, forms, activation=EXACT_GELU, variant="stem")


ConvNeXtTiny = network("ConvNeXtTiny", Spec((3, 3, 9, 3), (96, 192, 384, 768), (48, 96), 0.1))
ConvNeXtSmall = network("ConvNeXtSmall", Spec((3, 3, 27, 3), (96, 192, 384, 768), (48, 96), 0.4))
ConvNeXtBase = network("ConvNeXtBase", Spec((3, 3, 27, 3), (128, 256, 512, 1024), (64, 96, 128), 0.5))
ConvNeXtLarge = network("ConvNeXtLarge", Spec((3, 3, 27, 3), (192, 384, 768, 1536), (96, 144, 192), 0.5))
