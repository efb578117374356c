"""The console script `keras-sat`: loads TensorFlow quietly, then calls keras_sat.cli.

It is outside the package because it must run before TensorFlow is imported: TensorFlow 2.21 then writes start-up notes
to stderr, whatever TF_CPP_MIN_LOG_LEVEL says, and an error of keras-sat should be a single line.
"""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ends the process at Ctrl-C with one line, also while TensorFlow is imported.

    (A KeyboardInterrupt that is raised during this import would be lost.)
    """
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
def quiet() -> Iterator[None]:
    """Discards what native code writes to stderr. With an NVIDIA driver nothing is discarded: messages may matter."""
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


def main() -> None:
    """Runs the command line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with interruptible(), quiet():
        import tensorflow as tf

        from keras_sat import cli

        tf.config.list_physical_devices()  # TensorFlow looks for a GPU here, and complains where there is none
    cli.main()
