"""Which devices a run trains on."""

import tensorflow as tf


def strategy(name="auto"):
    """Returns a tf.distribute strategy; build, compile and fit within its scope.

    Args:
        name: "none": one device; "mirrored": one replica for each GPU of this machine (or for each logical CPU device,
            where there is no GPU); "auto": "mirrored" on a machine with several GPUs, else "none".

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
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    raise ValueError(f'strategy must be "auto", "none" or "mirrored". Received: {name!r}')
