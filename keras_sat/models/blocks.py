"""The parts of the networks: convolution, batch norm, activation, and residual blocks that consist of these."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sat import activations

# The release asks for 1e-5, but the fused kernel of its TensorFlow uses at least this value.
BATCH_NORM_EPSILON = 1.001e-5
SE_RATIO = 0.25  # filters of squeeze-and-excite, as a share of the channels of the block's input


def _kernel_initializer():
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


@dataclasses.dataclass(frozen=True)
class Style:
    """What publications of the same network do in different ways.

    Attributes:
        layer_name: function from a layer's name in the SAT release, such as "group0_block1_conv2_bn", to its name.
        epsilon: epsilon of batch norms.
        zero_gamma: whether the last batch norm of a residual branch starts with gamma 0.
    """

    layer_name: Callable[[str], str] = str
    epsilon: float = BATCH_NORM_EPSILON
    zero_gamma: bool = True


RELEASE = Style()


def batch_norm(
    x: keras.KerasTensor,
    name: str,
    zero_gamma: bool = False,
    epsilon: float = BATCH_NORM_EPSILON,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Applies batch normalization. Built under a strategy with several replicas, it uses the global batch's statistics.

    Args:
        x: Keras tensor, channels last.
        name: name of the layer.
        zero_gamma: whether gamma starts at 0 and not at 1, as at the end of a residual branch.
        epsilon: value that is added to the variance.
        momentum: weight of the former moving averages in a training step. (PyTorch's "momentum" is 1 - momentum.)
    """
    return keras.layers.BatchNormalization(
        momentum=momentum,
        epsilon=epsilon,
        gamma_initializer="zeros" if zero_gamma else "ones",
        synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1,
        name=name,
    )(x)


def conv(
    x: keras.KerasTensor,
    filters: int,
    size: int,
    strides: int = 1,
    groups: int = 1,
    padding: str = "symmetric",
    name: str | None = None,
) -> keras.KerasTensor:
    """Applies a convolution without bias. With stride 1, it keeps height and width.

    Args:
        x: Keras tensor, channels last.
        filters: number of output channels.
        size: height and width of the kernel.
        strides: stride in both directions.
        groups: number of channel groups.
        padding: for strides > 1. "symmetric" pads `size // 2` pixels on each side, as PyTorch and the ResNets of the
            release do. "after" pads `size // 2` pixels below and on the right alone, as DeepMind's PreActResNet in
            PyTorch does. "same" is TensorFlow's padding, which depends on the image size, as in EfficientNet; for even
            sizes, a 3x3 kernel and stride 2, it is the same as "after".
        name: name of the layer.
    """
    fixed = padding != "same" and strides > 1
    if fixed and size > 1:
        before = size // 2 if padding == "symmetric" else 0
        x = keras.layers.ZeroPadding2D(((before, size // 2), (before, size // 2)), name=f"{name}_pad")(x)
    return keras.layers.Conv2D(
        filters,
        size,
        strides,
        padding="valid" if fixed else "same",
        groups=groups,
        use_bias=False,
        kernel_initializer=_kernel_initializer(),
        name=name,
    )(x)


def conv_bn(
    x: keras.KerasTensor,
    filters: int,
    size: int,
    *,
    activation: Any = None,
    zero_gamma: bool = False,
    name: str,
    style: Style = RELEASE,
    **options: Any,
) -> keras.KerasTensor:
    """Applies a convolution, a batch norm, and an activation unless it is None. See `conv` for the options."""
    x = conv(x, filters, size, name=style.layer_name(name), **options)
    x = batch_norm(x, style.layer_name(f"{name}_bn"), zero_gamma and style.zero_gamma, style.epsilon)
    return x if activation is None else activations.layer(activation, style.layer_name(f"{name}_act"))(x)


def basic(
    x: keras.KerasTensor, filters: int, strides: int, activation: Any, name: str, style: Style = RELEASE
) -> keras.KerasTensor:
    """Applies the basic residual block: two 3x3 convolutions and a shortcut (arXiv:1512.03385, figure 5, left)."""
    y = conv_bn(x, filters, 3, strides=strides, activation=activation, name=f"{name}_conv1", style=style)
    y = conv_bn(y, filters, 3, zero_gamma=True, name=f"{name}_conv2", style=style)
    return _add_shortcut(x, y, strides, activation, name, style)


def bottleneck(
    x: keras.KerasTensor,
    filters: int,
    strides: int,
    activation: Any,
    name: str,
    style: Style = RELEASE,
    groups: int = 1,
    base_width: int = 64,
) -> keras.KerasTensor:
    """Applies the bottleneck block: 1x1, 3x3 and 1x1 convolutions, and a shortcut.

    The 3x3 convolution has the stride (ResNet "v1.5") and the groups (ResNeXt, arXiv:1611.05431).

    Args:
        x: Keras tensor, channels last.
        filters: a quarter of the number of output channels.
        strides: stride of the block.
        activation: see `activations.layer`.
        name: prefix of the layers' names.
        style: see `Style`.
        groups: number of groups of the 3x3 convolution.
        base_width: number of channels of each group of the 3x3 convolution, in a block with `filters` 64.
    """
    inner = filters * base_width * groups // 64
    y = conv_bn(x, inner, 1, activation=activation, name=f"{name}_conv1", style=style)
    y = conv_bn(y, inner, 3, strides=strides, groups=groups, activation=activation, name=f"{name}_conv2", style=style)
    y = conv_bn(y, 4 * filters, 1, zero_gamma=True, name=f"{name}_conv3", style=style)
    return _add_shortcut(x, y, strides, activation, name, style)


def _add_shortcut(x, y, strides, activation, name, style):
    if x.shape[-1] != y.shape[-1]:
        x = conv_bn(x, y.shape[-1], 1, strides=strides, name=f"{name}_convshortcut", style=style)
    x = keras.layers.Add(name=style.layer_name(f"{name}_add"))([x, y])
    return activations.layer(activation, style.layer_name(f"{name}_act"))(x)


def mbconv(
    x: keras.KerasTensor,
    filters: int,
    size: int,
    strides: int,
    expansion: int,
    activation: Any,
    drop_rate: float,
    name: str,
) -> keras.KerasTensor:
    """Applies a mobile inverted bottleneck with squeeze-and-excite (Tan and Le, arXiv:1905.11946).

    Args:
        x: Keras tensor, channels last.
        filters: number of output channels.
        size, strides: kernel size and stride of the depthwise convolution.
        expansion: factor by which a 1x1 convolution first multiplies the channels; 1: there is no such convolution.
        activation: activation at all nonlinearities except the gate of squeeze-and-excite, which is a sigmoid. See
            `activations.layer`.
        drop_rate: probability that an example skips the block in training (stochastic depth).
        name: prefix of the layers' names.
    """
    y, entering = x, x.shape[-1]
    if expansion != 1:
        y = conv_bn(y, entering * expansion, 1, activation=activation, name=f"{name}_expand")
    y = keras.layers.DepthwiseConv2D(
        size,
        strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=_kernel_initializer(),
        name=f"{name}_depthwise",
    )(y)
    y = activations.layer(activation, f"{name}_depthwise_act")(batch_norm(y, f"{name}_depthwise_bn"))
    y = squeeze_excite(y, max(1, int(entering * SE_RATIO)), activation, f"{name}_se")
    y = conv_bn(y, filters, 1, name=f"{name}_project")
    if strides > 1 or entering != filters:
        return y
    if drop_rate > 0:
        y = keras.layers.Dropout(drop_rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(y)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def squeeze_excite(x: keras.KerasTensor, filters: int, activation: Any, name: str) -> keras.KerasTensor:
    """Scales the channels of x by a gate computed from their means (Hu et al., arXiv:1709.01507).

    Args:
        x: Keras tensor, channels last.
        filters: number of channels between the two convolutions of the gate.
        activation: activation between the two convolutions; see `activations.layer`.
        name: prefix of the layers' names.
    """
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    for site, width, function in (
        ("reduce", filters, activations.layer(activation, f"{name}_act")),
        ("excite", x.shape[-1], keras.layers.Activation("sigmoid", name=f"{name}_gate")),
    ):
        gate = keras.layers.Conv2D(width, 1, kernel_initializer=_kernel_initializer(), name=f"{name}_{site}")(gate)
        gate = function(gate)
    return keras.layers.Multiply(name=f"{name}_scale")([x, gate])
