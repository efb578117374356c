"""Which devices a run trains on."""

import functools

import tensorflow as tf


def strategy(name="auto"):
    """Returns a tf.distribute strategy; build, compile and fit within its scope.

    Args:
        name: "none": one device; "mirrored": one replica for each GPU of this machine (or for each logical CPU device,
            where there is no GPU), the same object at each call; "auto": "mirrored" with several GPUs, else "none".

    Raises:
        ValueError: for an unknown name.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "none"
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = gpus or tf.config.list_logical_devices("CPU")
        return _mirrored(tuple(device.name for device in devices))
    raise ValueError(f'strategy must be "auto", "none" or "mirrored". Received: {name!r}')


@functools.cache
def _mirrored(devices):
    """Returns the one MirroredStrategy over these devices.

    Each strategy object numbers its collective operations from the start, and the runtime remembers the shape behind a
    number: with a second object in the process, synchronised batch norm fails with "Shape mismatch in the collective".
    """
    return tf.distribute.MirroredStrategy(devices)
