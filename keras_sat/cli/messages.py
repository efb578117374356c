"""Messages that several commands print."""

import os
import shlex
import shutil
import sys

INTERRUPTED = 130  # the exit status of shells for Ctrl-C


def command_prefix() -> str:
    """Returns the prefix for a command of this environment: its folder, or "" if keras-sat is on PATH."""
    if shutil.which("keras-sat"):
        return ""
    return shlex.quote(os.path.relpath(os.path.dirname(sys.executable)) + os.sep)


def interrupted(folder: str) -> int:
    """Prints that a training was interrupted and can go on. Returns the exit status."""
    print(
        f"\nkeras-sat: interrupted; the same command goes on; what was trained so far lies in {folder}", file=sys.stderr
    )
    return INTERRUPTED
