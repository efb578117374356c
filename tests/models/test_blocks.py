import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat.models import blocks
from keras_sat.training import distribution


def model(function, shape=(9, 9, 4)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, function(inputs))


@pytest.mark.parametrize("size", [8, 9])
def test_a_strided_convolution_pads_both_sides_alike(size):
    """One-hot kernels read the padding: the first output sees one row of zeros above it at even sizes too."""
    net = model(lambda x: blocks.conv(x, 1, 3, strides=2, name="c"), (size, size, 1))
    kernel = np.zeros((3, 3, 1, 1))
    kernel[0, 0] = 1
    net.get_layer("c").set_weights([kernel])
    image = np.arange(1.0, size * size + 1).reshape(1, size, size, 1)
    output = net(image)[0, :, :, 0].numpy()
    assert np.all(output[0] == 0)
    assert output[1, 1] == image[0, 1, 1, 0]


def test_grouped_convolutions_do_not_mix_groups():
    net = model(lambda x: blocks.conv(x, 4, 1, groups=2, name="c"))
    one, two = np.random.default_rng(0).normal(size=(2, 1, 9, 9, 4))
    two[..., :2] = one[..., :2]
    np.testing.assert_allclose(net(one)[..., :2], net(two)[..., :2])
    assert not np.allclose(net(one)[..., 2:], net(two)[..., 2:])


def test_a_bottleneck_with_zero_gamma_is_its_shortcut():
    net = model(lambda x: blocks.bottleneck(x, 1, 1, "silu", "b"))
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 4)).astype(np.float32)
    np.testing.assert_allclose(net(x), tf.nn.silu(x), atol=1e-6)


def test_batch_norm_is_synchronised_where_there_are_replicas():
    def build():
        inputs = keras.Input((9, 9, 4))
        return keras.Model(inputs, blocks.batch_norm(inputs, "bn")).get_layer("bn")

    assert not build().synchronized
    with distribution.strategy("mirrored").scope():
        assert build().synchronized
