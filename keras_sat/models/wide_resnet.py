"""Residual networks with pre-activation: WideResNet (arXiv:1605.07146) and PreActResNet (arXiv:1603.05027).

In a block, a batch norm and an activation come before each convolution. The published variants, `form=`, differ in
padding, shortcuts and names of layers.
"""

import dataclasses
import functools
import re
from typing import Any

import keras

from keras_sat import activations
from keras_sat.models import blocks
from keras_sat.models.builder import Builder, Form, builder
from keras_sat.models.normalization import Normalization

EPSILON = 1e-5  # of batch norms, as in PyTorch


@dataclasses.dataclass(frozen=True)
class Variant:
    """What the published variants do in different ways. Layers have the names of the published state dict.

    Attributes:
        stem: name of the first convolution.
        block: name of a block, with {group} and {index}, which count from 0, or {number}, which is the group from 1.
        sites: names, in a block, of its first batch norm, first convolution, second batch norm, second convolution, and
            the convolution of the shortcut.
        head: name of the dense layer.
        norm: name of the batch norm after all blocks; None: there is none, and no activation.
        padding: padding of convolutions with stride 2: see `blocks.conv`.
        momentum: momentum of the batch norms.
        shortcut_size: kernel size of the convolution of the shortcut.
        activated_shortcut: whether this convolution takes the block's input after batch norm and activation. The
            alternative is the block's input itself.
        normalization: the published normalization.
        activation: the activation of most published checkpoints.
    """

    stem: str
    block: str
    sites: tuple[str, str, str, str, str]
    head: str
    norm: str | None
    padding: str = "symmetric"
    momentum: float = 0.9
    shortcut_size: int = 1
    activated_shortcut: bool = True
    normalization: Normalization = None
    activation: str = "relu"


_TRADES = ("bn1", "conv1", "bn2", "conv2", "convShortcut")
_DM = ("batchnorm_0", "conv_0", "batchnorm_1", "conv_1", "shortcut")
_PREACT = ("bn1", "conv1", "bn2", "conv2", "shortcut.0")
_DM_PREACT = ("batchnorm_0", "conv_2d_1", "batchnorm_1", "conv_2d_2", "shortcut")
_DEEPMIND: dict[str, Any] = {"momentum": 0.99, "normalization": "cifar10", "activation": "silu"}

WIDE = {
    # https://github.com/yaodongyu/TRADES
    "trades": Variant("conv1", "block{number}.layer.{index}", _TRADES, "fc", "bn1"),
    # https://github.com/google-deepmind/deepmind-research/tree/master/adversarial_robustness
    "dm": Variant("init_conv", "layer.{group}.block.{index}", _DM, "logits", "batchnorm", "same", **_DEEPMIND),
}
PREACT = {
    # Wong et al. 2020 (arXiv:2001.03994) and Andriushchenko and Flammarion 2020 (arXiv:2007.02617)
    "plain": Variant("conv1", "layer{number}.{index}", _PREACT, "linear", None, activated_shortcut=False),
    # Rice et al. 2020 (arXiv:2002.11569) and Kireev et al. 2021 (arXiv:2103.02325)
    "batch_norm": Variant("conv1", "layer{number}.{index}", _PREACT, "linear", "bn"),
    "dm": Variant(
        "conv_2d",
        "layer_{group}.{index}",
        _DM_PREACT,
        "logits",
        "batchnorm",
        "after",
        shortcut_size=3,
        activated_shortcut=False,
        **_DEEPMIND,
    ),
}


def _block(variant, x, filters, strides, activation, name):
    """Applies batch norm, activation, 3x3 convolution, all twice, and adds the shortcut."""
    norm1, conv1, norm2, conv2, shortcut = (f"{name}.{site}" for site in variant.sites)
    y = _norm_act(variant, x, activation, norm1, f"{name}.relu1")
    if x.shape[-1] != filters:
        start = y if variant.activated_shortcut else x
        x = blocks.conv(start, filters, variant.shortcut_size, strides, padding=variant.padding, name=shortcut)
    y = blocks.conv(y, filters, 3, strides, padding=variant.padding, name=conv1)
    y = blocks.conv(_norm_act(variant, y, activation, norm2, f"{name}.relu2"), filters, 3, name=conv2)
    return keras.layers.Add(name=f"{name}.add")([x, y])


def _norm_act(variant, x, activation, norm, act):
    x = blocks.batch_norm(x, norm, epsilon=EPSILON, momentum=variant.momentum)
    return activations.layer(activation, act)(x)


def _trunk(variant, stage_sizes, stem_filters, filters, x, activation):
    x = blocks.conv(x, stem_filters, 3, name=variant.stem)
    for group, (size, width) in enumerate(zip(stage_sizes, filters)):
        for index in range(size):
            name = variant.block.format(group=group, number=group + 1, index=index)
            x = _block(variant, x, width, 2 if group > 0 and index == 0 else 1, activation, name)
    return x if variant.norm is None else _norm_act(variant, x, activation, variant.norm, "relu")


def network(
    name: str, variants: dict[str, Variant], stage_sizes: tuple[int, ...], stem: int, filters: tuple[int, ...]
) -> Builder:
    """Returns the builder of a network.

    Args:
        name: name of the builder.
        variants: {form: what the published variant does}; the first one is the default.
        stage_sizes: number of blocks in each stage.
        stem: number of filters of the first convolution.
        filters: number of filters in each stage.
    """
    forms = {
        form: Form(
            functools.partial(_trunk, variant, stage_sizes, stem, filters),
            kernel_initializer=functools.partial(keras.initializers.VarianceScaling, 1 / 3, "fan_in", "uniform"),
            normalization=variant.normalization,
            activation=variant.activation,
            input_shape=(32, 32, 3),
            head=variant.head,
            classes=10,
        )
        for form, variant in variants.items()
    }
    return builder(name, forms, sites="")


@functools.lru_cache(maxsize=None, typed=True)  # typed: 28.0 is no depth
def wide_resnet(depth: int, width: int) -> Builder:
    """Returns the builder of WideResNet-depth-width, such as `WideResNet28_10`.

    Args:
        depth: number of convolutions of the longest path, 6 n + 4, such as 16, 28, 34 or 70.
        width: factor of the numbers of filters, 16, 32 and 64.

    Raises:
        ValueError: for another depth or width.
    """
    is_valid = all(isinstance(value, int) and not isinstance(value, bool) for value in (depth, width))
    if not (is_valid and depth >= 10 and depth % 6 == 4 and width >= 1):
        raise ValueError(
            f"depth must be 6 n + 4, such as 16, 28, 34 or 70, and width at least 1. Received: {depth!r}, {width!r}"
        )
    size = (depth - 4) // 6
    return network(f"WideResNet{depth}_{width}", WIDE, (size, size, size), 16, (16 * width, 32 * width, 64 * width))


def WideResNet(depth: int, width: int, form: str = "trades", **options: Any) -> keras.Model:  # noqa: N802 - a builder
    """Builds WideResNet-depth-width (arXiv:1605.07146) with `activation` at every nonlinearity.

    Args:
        depth: number of convolutions of the longest path, 6 n + 4, such as 16, 28, 34 or 70.
        width: factor of the numbers of filters, 16, 32 and 64.
        form: "trades", as in the code of TRADES, or "dm", as DeepMind's.
        options: further arguments of `WideResNet28_10`.

    Returns:
        A functional keras.Model; its logits are float32.

    Raises:
        ValueError: for invalid arguments, or weights that do not fit this network.
    """
    return wide_resnet(depth, width)(form=form, **options)


def by_name(name: str) -> Builder | None:
    """Returns the builder with a name such as "WideResNet34_15"; None for a name of another kind."""
    match = re.fullmatch(r"WideResNet(\d+)_(\d+)", name)
    return wide_resnet(int(match[1]), int(match[2])) if match else None


WideResNet28_10 = wide_resnet(28, 10)
WideResNet34_10 = wide_resnet(34, 10)
WideResNet34_20 = wide_resnet(34, 20)
WideResNet70_16 = wide_resnet(70, 16)
PreActResNet18 = network("PreActResNet18", PREACT, (2, 2, 2, 2), 64, (64, 128, 256, 512))
