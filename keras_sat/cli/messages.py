"""Messages that several commands print."""

import os
import shlex
import shutil
import sys
from typing import TextIO

INTERRUPTED = 130  # the exit status of shells for Ctrl-C


def command_prefix() -> str:
    """Returns the prefix for a command of this environment: its folder, or "" if keras-sat is on PATH."""
    if shutil.which("keras-sat"):
        return ""
    return shlex.quote(os.path.relpath(os.path.dirname(sys.executable)) + os.sep)


def say(text: str, to: TextIO | None = None) -> None:
    """Prints a line at once, also to a file or a pipe: what the command does now, before it takes a while.

    Args:
        text: the line.
        to: where to print. Default: standard output.
    """
    print(text, file=to or sys.stdout, flush=True)


def interrupted(folder: str) -> int:
    """Prints that a training was interrupted and can go on. Returns the exit status."""
    how = "give the same command again to continue it"
    print(f"\nkeras-sat: interrupted. The training so far is in {folder}; {how}", file=sys.stderr)
    return INTERRUPTED
