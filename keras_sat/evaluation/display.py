"""How far an evaluation is, and how long it takes at most."""

import sys
import time

import numpy as np


class Display:
    """Prints a line for each batch on a terminal, or for each stage into a file.

    Args:
        enabled: whether to print at all.
        stages: {name of an attack: its stages}, for the time left: an attack tells its `passes`, forward passes that an
            example costs at most, and those done so far tell what a pass takes.
    """

    def __init__(self, enabled, stages):
        self.enabled, self.stages = enabled, stages
        self.attack = self.stage = self.row = None
        self.passes_done, self.total, self.done, self.shown = 0, 0, 0, ""
        self.start = None

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

    def update(self, done):
        """Adds examples that the stage is done with."""
        self.done += done
        self.passes_done += done * _passes(self.stage)
        label = self.attack if self.attack == self.stage.name else f"{self.attack}: {self.stage.name}"
        standing = 100 * np.mean(self.row.standing())
        text = f"{label}: {self.done}/{self.total} images, {standing:.1f} % stand, {self._left()} left at most"
        self._print(text)

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
        seconds = passes * (time.perf_counter() - self.start) / max(1, self.passes_done)
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

    def _print(self, text):
        if self.enabled and sys.stdout.isatty():
            print("\r" + text.ljust(len(self.shown)), end="", flush=True)
        self.shown = text

    def _end_line(self):
        if self.enabled and self.shown:
            print("" if sys.stdout.isatty() else self.shown, flush=True)
        self.shown = ""


def _passes(stage):
    return getattr(stage.attack, "passes", 1)
