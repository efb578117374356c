"""Lines of progress, on a terminal and in a file, and times as text."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

_BLINK = 0.5  # seconds between two updates of the line on a terminal


class Line:
    """A line that shows the progress of a long computation.

    On a terminal it is rewritten in place, at most twice a second. In a file, where a line cannot be rewritten, it is
    written anew every `every` seconds, and never twice in a row.

    Args:
        stream: where to write. Default: sys.stdout.
        every: seconds between two lines in a file, > 0. Default: 30.
        enabled: whether to write anything.

    Attributes:
        is_terminal: whether the stream is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 30.0, enabled: bool = True) -> None:
        self._stream = stream or sys.stdout
        self._every = every
        self._enabled = enabled
        self._width = 0  # of the text on the terminal
        self._written = 0.0  # when a text was written
        self._last = ""  # the last line of the file
        self.is_terminal = self._stream.isatty()

    def show(self, text: str | Callable[[], str], is_due: bool = False) -> None:
        """Shows a text if it is time for it.

        Args:
            text: the text, or a function that returns it, which is called only if it is time.
            is_due: whether to show it in any case.
        """
        now = time.perf_counter()
        if not self._enabled or not (is_due or now - self._written >= (_BLINK if self.is_terminal else self._every)):
            return
        text = text() if callable(text) else text
        if not self.is_terminal:
            self.write(text)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width, self._written = len(text), now

    def write(self, text: str) -> None:
        """Writes a text that stays; on a terminal, in place of what was shown."""
        if not self._enabled or (not self.is_terminal and text == self._last):
            return
        self._last = text
        self._stream.write(("\r" if self._width else "") + text.ljust(self._width) + "\n")
        self._stream.flush()
        self._width, self._written = 0, time.perf_counter()

    def close(self) -> None:
        """Ends the line on the terminal."""
        if self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0


def duration(seconds: float) -> str:
    """Returns a time as text, in two units at most: "12 s", "3 min 5 s", "2 h 10 min", "1 d 4 h".

    Args:
        seconds: the time in seconds, >= 0.
    """
    whole = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small} {small_name}"
    return f"{whole} s"
