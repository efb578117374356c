"""The parts networks are made of: convolution - batch norm - activation, and the residual blocks over it."""

import keras
import tensorflow as tf

from keras_sat import activations

# The fused kernel of the release's TensorFlow clamps its epsilon 1e-5 to this; SAT weights were trained with it.
BATCH_NORM_EPSILON = 1.001e-5
SE_RATIO = 0.25  # of the filters that enter the block


def _kernel_initializer():
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def rescale(x):
    """Maps pixels 0..255 to -1..1, in float32 also under mixed precision: bfloat16 rounds pixels to whole levels."""
    return keras.layers.Rescaling(2 / 255, -1.0, dtype="float32", name="rescaling")(x)


def batch_norm(x, name, zero_gamma=False):
    """Batch normalization; its statistics are those of the global batch when built under a multi-replica strategy."""
    return keras.layers.BatchNormalization(
        momentum=0.9,
        epsilon=BATCH_NORM_EPSILON,
        gamma_initializer="zeros" if zero_gamma else "ones",
        synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1,
        name=name,
    )(x)


def conv(x, filters, size, strides=1, groups=1, fixed_padding=True, name=None):
    """Convolution without bias.

    With a stride, `fixed_padding` pads alike at every image size, as the release's ResNets do; without it the padding
    is TensorFlow's SAME, as in EfficientNet.
    """
    fixed = fixed_padding and strides > 1
    if fixed and size > 1:
        x = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
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


def conv_bn(x, filters, size, *, activation=None, zero_gamma=False, name, **options):
    """Convolution, batch norm and, unless `activation` is None, the activation."""
    x = batch_norm(conv(x, filters, size, name=name, **options), f"{name}_bn", zero_gamma)
    return x if activation is None else activations.layer(activation, f"{name}_act")(x)


def basic(x, filters, strides, activation, name):
    """Two 3x3 convolutions and a shortcut (He et al., arXiv:1512.03385, figure 5 left)."""
    y = conv_bn(x, filters, 3, strides=strides, activation=activation, name=f"{name}_conv1")
    y = conv_bn(y, filters, 3, zero_gamma=True, name=f"{name}_conv2")
    return _add_shortcut(x, y, strides, activation, name)


def bottleneck(x, filters, strides, activation, name, groups=1, base_width=64):
    """1x1, 3x3 (strided, grouped) and 1x1 convolutions to 4 x `filters`, and a shortcut (ResNet "v1.5", ResNeXt)."""
    inner = filters * base_width * groups // 64
    y = conv_bn(x, inner, 1, activation=activation, name=f"{name}_conv1")
    y = conv_bn(y, inner, 3, strides=strides, groups=groups, activation=activation, name=f"{name}_conv2")
    y = conv_bn(y, 4 * filters, 1, zero_gamma=True, name=f"{name}_conv3")
    return _add_shortcut(x, y, strides, activation, name)


def _add_shortcut(x, y, strides, activation, name):
    if x.shape[-1] != y.shape[-1]:
        x = conv_bn(x, y.shape[-1], 1, strides=strides, name=f"{name}_convshortcut")
    return activations.layer(activation, f"{name}_act")(keras.layers.Add(name=f"{name}_add")([x, y]))


def mbconv(x, filters, size, strides, expansion, activation, drop_rate, name):
    """Mobile inverted bottleneck with squeeze-and-excite (Tan and Le, arXiv:1905.11946).

    Args:
        x: Keras tensor.
        filters: of the output.
        size, strides: of the depthwise convolution.
        expansion: of the filters by a 1x1 convolution before it; 1 leaves that convolution out.
        activation: at every site but the squeeze-and-excite gate, which is a sigmoid.
        drop_rate: probability with which, in training, an example skips the block (stochastic depth).
        name: of the block's layers.
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


def squeeze_excite(x, filters, activation, name):
    """Scales the channels of x by a gate computed from their means (Hu et al., arXiv:1709.01507)."""
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    for site, width, function in (
        ("reduce", filters, activations.layer(activation, f"{name}_act")),
        ("excite", x.shape[-1], keras.layers.Activation("sigmoid", name=f"{name}_gate")),
    ):
        gate = keras.layers.Conv2D(width, 1, kernel_initializer=_kernel_initializer(), name=f"{name}_{site}")(gate)
        gate = function(gate)
    return keras.layers.Multiply(name=f"{name}_scale")([x, gate])
