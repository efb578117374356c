"""Ctrl-C that is answered where it is safe: in this package's own code."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

_PACKAGE = os.path.dirname(__file__) + os.sep
_PATIENCE = 1.0  # seconds after which the exception is raised anywhere
_timer: threading.Timer | None = None


def handler(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt at the next line of this package's code. Use it as the handler of SIGINT.

    Python's own handler raises it in whatever code runs. TensorFlow's native code calls Python code, and may crash the
    process ("Segmentation fault") if an exception is raised there.

    The exception is raised at once, in whatever code runs, for a second Ctrl-C, and after a second without a line of
    this package.

    Args:
        number: signal.SIGINT.
        frame: the code that was interrupted.
    """
    global _timer
    if _timer:
        _disarm()
        raise KeyboardInterrupt
    _timer = threading.Timer(_PATIENCE, os.kill, (os.getpid(), signal.SIGINT))
    _timer.daemon = True
    _timer.start()
    while frame:  # functions that run already; settrace adds those that are called from now on
        frame.f_trace = _raise_in_package
        frame = frame.f_back
    sys.settrace(_raise_in_package)


def _raise_in_package(frame: FrameType, event: str, _: Any) -> Any:
    if event == "line" and frame.f_code.co_filename.startswith(_PACKAGE):
        _disarm()
        raise KeyboardInterrupt
    return _raise_in_package


def _disarm() -> None:
    global _timer
    sys.settrace(None)
    if _timer:
        _timer.cancel()
        _timer = None
