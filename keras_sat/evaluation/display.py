"""How far an evaluation is, and how long it takes at most."""

import sys
import time

import numpy as np


class Display:
    """Prints a line that is kept up to date on a terminal; into a file, one for each stage and each minute.

    Args:
        enabled: whether to print at all.
        stages: {name of an attack: its stages}, for the time left: an attack tells its `passes`, forward passes that an
            example costs at most, and the examples that stood to the end tell what a pass takes at most.
    """

    def __init__(self, enabled, stages):
        self.enabled, self.stages = enabled, stages
        self.attack = self.stage = self.row = None
        self.passes_done, self.total, self.done, self.shown = 0, 0, 0, ""
        self.start, self.printed = None, time.perf_counter()

    def clean(self, parts):
        """Shows the clean accuracy so far."""
        correct = np.concatenate([part[2] for part in parts])
        self._print(f"clean: {len(correct)} images, {100 * correct.mean():.1f} % correct")

    def begin(self, name, stage, row, total):
        """Begins a stage on `total` examples."""
        self._end_line()
        self.attack, self.stage, self.row = name, stage, row
        self.total, self.done = total, 0
        self.start = self.start or time.perf_counter()

    def update(self, done, stood):
        """Adds examples that the stage is done with, and how many of them stood to the end."""
        self.done += done
        self.passes_done += stood * _passes(self.stage)
        label = self.attack if self.attack == self.stage.name else f"{self.attack}: {self.stage.name}"
        standing = 100 * np.mean(self.row.standing())
        self._print(f"{label}: {self.done}/{self.total} images, {standing:.1f} % stand, {self._left()}")

    def close(self):
        """Ends the last line."""
        self._end_line()

    def _left(self):
        """Returns the time left if all that stand go on standing."""
        standing = np.count_nonzero(self.row.standing())
        later = self.stages.get(self.attack, [])
        later = later[later.index(self.stage) + 1 :] if self.stage in later else []
        passes = (self.total - self.done) * _passes(self.stage) + standing * sum(map(_passes, later))
        names = list(self.stages)
        for name in names[names.index(self.attack) + 1 :] if self.attack in names else []:
            passes += len(self.row.broken_by) * sum(map(_passes, self.stages[name]))
        if passes and not self.passes_done:
            return "time left unknown"
        seconds = passes * (time.perf_counter() - self.start) / max(1, self.passes_done)
        return f"{seconds:.0f} s left at most" if seconds < 100 else f"{seconds / 60:.0f} min left at most"

    def _print(self, text):
        now = time.perf_counter()
        if self.enabled and sys.stdout.isatty():
            print("\r" + text.ljust(len(self.shown)), end="", flush=True)
        elif self.enabled and now - self.printed > 60:
            print(text, flush=True)
            self.printed = now
        self.shown = text

    def _end_line(self):
        if self.enabled and self.shown:
            print("" if sys.stdout.isatty() else self.shown, flush=True)
        self.shown = ""


def _passes(stage):
    return getattr(stage.attack, "passes", 1)
