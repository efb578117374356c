"""Shows how far an evaluation is, and the time that it still takes at most."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from keras_sat.evaluation.stages import Stage
from keras_sat.evaluation.state import Row, State
from keras_sat.lines import Line, duration

PREPARING = "Preparing the attacks: copies of the network are compiled and compared with it (up to a minute) ..."


class Progress:
    """Shows a line for the clean pass and for each stage of an attack on stdout. See `Line`.

    The estimate of the time left is an upper limit. It assumes that all examples that are robust now stay robust. Each
    of them then costs the `max_forward_passes` of all later attacks. The time of a pass is measured on the examples
    that were robust at the end of a stage: only these needed all passes of the stage.

    Args:
        enabled: whether to show anything.

    Attributes:
        stages: {name of an attack: its stages}, in the order in which they run. Set it before `begin`.
    """

    def __init__(self, enabled: bool) -> None:
        self.stages: Mapping[str, Sequence[Stage]] = {}
        self._line = Line(enabled=enabled)
        self._text = ""  # the present state of the line
        self._done = self._total = self._correct = self._passes = 0
        self._start: float | None = None

    def prepare(self) -> None:
        """Says that the attacks are prepared, which may take a while."""
        self._line.show(PREPARING, is_due=True)

    def resume(self, state: State) -> None:
        """Says where an evaluation continues. Says nothing if the evaluation is new."""
        if state.index is not None:
            done = ["clean"] + [self._done_of(name, row) for name, row in state.rows.items()]
            self._line.write(
                f"Continuing an interrupted evaluation of {len(state.index)} images: {', '.join(done)} done."
            )

    def _done_of(self, name, row):
        stages = self.stages.get(name, [])
        if row.stage == len(stages) > 0:
            return name
        stage = f" in stage {row.stage + 1} of {len(stages)}" if len(stages) > 1 else ""
        return f"{row.done} images of {name}{stage}"

    def clean(self, images: int, correct: int) -> None:
        """Adds a batch of the clean pass: its number of images, and how many are classified correctly."""
        self._done, self._correct = self._done + images, self._correct + correct
        self._text = f"clean: {self._done} images, {100 * self._correct / self._done:.1f} % correct"
        self._line.show(self._text)

    def begin(self, name: str, stage: Stage, row: Row, images: int) -> None:
        """Begins a stage of the attack `name` on a number of images. The results of the stage are written to `row`."""
        self.close()
        self._name, self._stage, self._row = name, stage, row
        self._start = self._start or time.perf_counter()
        self._done, self._total = row.done, row.done + images
        self._title = name if name == stage.name else f"{name}: {stage.name}"
        if images:
            self._line.show(f"{self._title}: attacking {images} images, compiling the attack first", is_due=True)

    def update(self, images: int, robust: int) -> None:
        """Adds a batch of the stage: its number of images, and how many of them are still robust."""
        self._passes += robust * self._stage.attack.max_forward_passes
        self._done += images
        correct = f"{100 * np.mean(self._row.robust()):.1f} % of all images still correct"
        self._text = f"{self._title}: {self._done} of {self._total} attacked, {correct}{self._time_left()}"
        self._line.show(self._text)

    def close(self) -> None:
        """Ends the line with the present state."""
        if self._text:
            self._line.write(self._text)
        self._text = ""

    def _time_left(self):
        """Returns an upper limit of the time left, as text; "" if it is unknown, or nothing is left."""
        passes = (self._total - self._done) * self._stage.attack.max_forward_passes + self._later_passes()
        if not (passes and self._passes):
            return ""
        seconds = passes * (time.perf_counter() - self._start) / self._passes
        return f", at most {duration(seconds)} left"

    def _later_passes(self):
        """Returns the forward passes of all later stages, of this attack and of the next ones."""
        if self._name not in self.stages:
            return 0
        stages, names = self.stages[self._name], list(self.stages)
        later = stages[stages.index(self._stage) + 1 :] if self._stage in stages else []
        passes = np.count_nonzero(self._row.robust()) * _max_passes(later)
        for name in names[names.index(self._name) + 1 :]:
            passes += len(self._row.broken_by) * _max_passes(self.stages[name])
        return passes


def _max_passes(stages):
    return sum(stage.attack.max_forward_passes for stage in stages)
