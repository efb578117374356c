import socket

import numpy as np
import pytest

import keras_sat_command

with keras_sat_command.quiet():  # the start-up notes would come after the runner's closing line
    import keras
    import tensorflow as tf

    # Two replicas on any machine; must be said before TensorFlow starts.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    tf.config.list_logical_devices()


@pytest.fixture
def tiny_model():
    """Returns a function that builds a convolutional classifier of 8 x 8 x 3 pixels into 4 classes."""

    def build(activation="silu", batch_norm=True, seed=0):
        keras.utils.set_random_seed(seed)
        layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(2 / 255, -1.0, dtype="float32")]
        layers += [keras.layers.Conv2D(8, 3, strides=2, padding="same")]
        layers += [keras.layers.BatchNormalization(synchronized=True)] if batch_norm else []
        layers += [keras.layers.Activation(activation), keras.layers.Flatten(), keras.layers.Dense(4, dtype="float32")]
        return keras.Sequential(layers)

    return build


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 4, 8)


@pytest.fixture(scope="session")
def write_checkpoint():
    """Returns a function that writes {name: array} as a TF1 bundle, and returns its prefix."""

    def written(prefix, arrays):
        names = sorted(arrays)
        tensors = [arrays[name] for name in names]
        tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
        return prefix

    return written


@pytest.fixture(scope="session")
def write_release(write_checkpoint):
    """Returns a function that writes a network as a checkpoint in the layout of the authors' release."""
    from keras_sat.models import release

    def written(prefix, network):
        variables = release._names(network).items()
        return write_checkpoint(prefix, {name: variable.numpy() for name, variable in variables})

    return written


@pytest.fixture(scope="session")
def free_ports():
    """Returns a function: so many ports of this machine that nobody uses."""

    def found(number):
        sockets = [socket.socket() for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        return ports

    return found
