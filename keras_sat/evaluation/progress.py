"""Shows how far an evaluation is, and the time that it still takes at most."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_sat.evaluation.stages import Stage
from keras_sat.evaluation.state import Row

_MINUTE = 60.0  # seconds between two updates if the output is a file, where each update is a new line


class Progress:
    """Shows a line for the clean pass and for each stage of an attack, by tqdm, on stdout.

    The estimate of the time left is an upper limit. It assumes that all examples that are robust now stay robust. Each
    of them then costs the `max_forward_passes` of all later attacks. The time of a pass is measured on the examples
    that were robust at the end of a stage: only these needed all passes of the stage.

    Args:
        enabled: whether to show anything.
        stages: {name of an attack: its stages}, in the order in which they run.
    """

    def __init__(self, enabled: bool, stages: Mapping[str, Sequence[Stage]]) -> None:
        self._enabled, self._stages = enabled, stages
        self._bar: Any = None
        self._correct = self._passes = 0
        self._start: float | None = None

    def clean(self, images: int, correct: int) -> None:
        """Adds a batch of the clean pass: its number of images, and how many are classified correctly."""
        bar = self._open("clean", None) if self._bar is None else self._bar
        self._correct += correct
        self._show(bar, images, f"{100 * self._correct / (bar.n + images):.1f} % correct")

    def begin(self, name: str, stage: Stage, row: Row, images: int) -> None:
        """Begins a stage of the attack `name` on a number of images. The results of the stage are written to `row`."""
        self.close()
        self._name, self._stage, self._row = name, stage, row
        self._start = self._start or time.perf_counter()
        if images:
            self._open(name if name == stage.name else f"{name}: {stage.name}", images)

    def update(self, images: int, robust: int) -> None:
        """Adds a batch of the stage: its number of images, and how many of them are still robust."""
        self._passes += robust * self._stage.attack.max_forward_passes
        left = self._bar.total - self._bar.n - images
        share = 100 * np.mean(self._row.robust())
        self._show(self._bar, images, f"{share:.1f} % robust, {self._time_left(left)}")

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _open(self, title, total):
        self._bar = open_bar(title, total, self._enabled)
        return self._bar

    def _show(self, bar, images, text):
        bar.set_postfix_str(text, refresh=False)
        bar.update(images)

    def _time_left(self, images):
        """Returns an upper limit of the time left, as text. `images` is the number of images left in this stage."""
        passes = images * self._stage.attack.max_forward_passes + self._later_passes()
        if passes and not self._passes:
            return "time left unknown"
        seconds = passes * (time.perf_counter() - self._start) / max(1, self._passes)
        return f"{seconds:.0f} s left at most" if seconds < 100 else f"{seconds / 60:.0f} min left at most"

    def _later_passes(self):
        """Returns the forward passes of all later stages, of this attack and of the next ones."""
        if self._name not in self._stages:
            return 0
        stages, names = self._stages[self._name], list(self._stages)
        later = stages[stages.index(self._stage) + 1 :] if self._stage in stages else []
        passes = np.count_nonzero(self._row.robust()) * _max_passes(later)
        for name in names[names.index(self._name) + 1 :]:
            passes += len(self._row.broken_by) * _max_passes(self._stages[name])
        return passes


def _max_passes(stages):
    return sum(stage.attack.max_forward_passes for stage in stages)


def open_bar(title: str, total: int | None, enabled: bool = True) -> Any:
    """Returns a tqdm bar that counts images on stdout; to a file it writes a line each minute.

    Args:
        title: the beginning of the line.
        total: number of images; None if it is not known.
        enabled: whether to show anything.
    """
    import tqdm  # here, so that importing the package stays fast

    count = "{n_fmt}" if total is None else "{n_fmt}/{total_fmt}"
    interval = 0.1 if sys.stdout.isatty() else _MINUTE
    return tqdm.tqdm(
        desc=title,
        total=total,
        bar_format=f"{{desc}}: {count} images{{postfix}}",
        file=sys.stdout,
        disable=not enabled,
        mininterval=interval,
        maxinterval=interval,
        miniters=0,  # the interval alone decides: tqdm would choose a number of images, and skip updates by it
    )
