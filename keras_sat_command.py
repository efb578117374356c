"""The console script `keras-sat`: loads TensorFlow quietly, then hands over to keras_sat.cli.

It stands outside the package because TensorFlow 2.21 writes start-up notes to stderr when it is imported, whatever
TF_CPP_MIN_LOG_LEVEL says, and an error of ours is to be one line.
"""

import contextlib
import os
import signal


@contextlib.contextmanager
def interruptible():
    """Ends the process at Ctrl-C with a line, while TensorFlow is imported: an exception there would be lost in it."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    stderr = os.dup(2)

    def end(*_):
        os.write(stderr, b"\nkeras-sat: interrupted\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(stderr)


@contextlib.contextmanager
def quiet():
    """Sends what native code writes to stderr to nowhere; with an NVIDIA driver, where it may matter, it is kept."""
    if os.path.exists("/proc/driver/nvidia"):
        yield
        return
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def main():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with interruptible(), quiet():
        import tensorflow as tf

        from keras_sat import cli

        tf.config.list_physical_devices()  # looks for a GPU now, and complains now that there is none
    cli.main()
