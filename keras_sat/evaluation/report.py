"""What an evaluation found, with all that is needed to run it again."""

import contextlib
import dataclasses
import json
import math
import platform
import time

import keras
import tensorflow as tf

from keras_sat import files
from keras_sat.version import __version__

QUANTILE = 1.959963984540054  # of the normal distribution, for 95 %


@dataclasses.dataclass
class Tally:
    """Counts while an evaluation runs."""

    n: int = 0
    correct: int = 0
    seconds: float = 0.0

    @contextlib.contextmanager
    def timed(self, n):
        """Adds `n` examples and the time that the block takes."""
        start = time.perf_counter()
        yield self
        self.n += n
        self.seconds += time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """One row of a report.

    Attributes:
        name: "clean", or the attack's.
        n: examples evaluated.
        correct: of them, classified correctly (under the attack, and clean).
        accuracy: correct / n, 0..1.
        interval: (low, high), Wilson's 95 % interval of the accuracy.
        seconds: wall-clock time, compilation included.
        settings: the attack's configuration: norm, epsilon, steps, step_size, ...; empty for "clean".
    """

    name: str
    n: int
    correct: int
    accuracy: float
    interval: tuple
    seconds: float
    settings: dict

    @classmethod
    def of(cls, name, tally, settings):
        """Returns the row of a finished tally."""
        interval = wilson(tally.correct, tally.n)
        return cls(name, tally.n, tally.correct, tally.correct / tally.n, interval, round(tally.seconds, 2), settings)


@dataclasses.dataclass(frozen=True)
class RobustnessReport:
    """Accuracy, clean and under attacks: `print(report.table())`, `report["PGD-50"].accuracy`, `report.to_json(path)`.

    Attributes:
        results: a list of `AttackResult`; the first is "clean".
        context: what else is needed to run it again: model, seed, batch-norm mode, versions.
    """

    results: list
    context: dict

    def __getitem__(self, name):
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"The report has no row {name!r}; it has {[result.name for result in self.results]}")

    def table(self):
        """Returns the report as a plain-text table."""
        header = ("attack", "norm", "epsilon", "images", "accuracy", "95 % interval", "seconds")
        rows = [header, *map(_cells, self.results)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def to_json(self, path=None):
        """Returns the report as JSON text; with `path`, also writes it to that file."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        if path is not None:
            files.write_text(path, text)
        return text


def _cells(result):
    low, high = (f"{100 * bound:.1f}" for bound in result.interval)
    norm, epsilon = result.settings.get("norm", "-"), result.settings.get("epsilon")
    epsilon = "-" if epsilon is None else f"{epsilon:g}"
    accuracy = f"{100 * result.accuracy:.1f} %"
    return (result.name, norm, epsilon, str(result.n), accuracy, f"{low} .. {high}", f"{result.seconds:.1f}")


def wilson(correct, n):
    """Returns Wilson's 95 % interval (low, high) of a proportion (Wilson 1927, JASA 22:209)."""
    p, z2 = correct / n, QUANTILE**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = QUANTILE / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def context(model, seed):
    """Returns the part of a report that is common to its rows."""
    return {
        "model": getattr(model, "name", getattr(model, "__name__", type(model).__name__)),
        "seed": seed,
        "batch_norm": "frozen",
        "versions": versions(),
    }


def versions():
    """Returns the versions of what computes."""
    return {
        "keras_sat": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }
