"""What a training shows while it runs: lines of progress, and a table of its epochs."""

import csv
import io
import statistics
import time
from typing import Any, TextIO

import keras

from keras_sat import files
from keras_sat.lines import Line, duration
from keras_sat.training.checkpoint import Checkpoint
from keras_sat.typing import Path

_ESTIMATE = 3.0  # seconds of steps after which the time of the run is estimated
_SHOWN = {  # values of an epoch's logs, how they are called, and whether they are shares
    "loss": ("loss", False),
    "accuracy": ("accuracy", True),
    "adversarial_accuracy": ("adversarial accuracy", True),
    "noisy_accuracy": ("accuracy on noisy images", True),
    "val_accuracy": ("clean validation accuracy", True),
    "val_robust_accuracy": ("robust validation accuracy", True),
}
_NOISY = _SHOWN | {"val_robust_accuracy": ("validation accuracy on noisy images", True)}


class Progress(keras.callbacks.Callback):
    """Shows how far a training is, its speed, its accuracies, and the time that is left. Use it with `verbose=0`.

    On a terminal it is one line, which is rewritten at most twice a second. In a file it is a line every `every`
    seconds. At the end of each epoch there is a line in both. Validation is shown too. The lines are written between
    two batches, and before the first one, which takes longer: its step is compiled. After the first three seconds of
    steps, one line estimates the time of the whole run.

    Images per second are those of the training steps that were taken, with what callbacks do between them. The first
    step, validation, and the steps that a resumed run skips do not count. The time left includes the validations that
    are to come, once one was measured.

    Args:
        epochs: as in `fit`.
        steps_per_epoch: as in `fit`.
        batch_size: number of images in a batch, over all devices and workers together.
        done: number of steps that were done before, from `Checkpoint.restore`. Default: 0.
        stream: where to write. Default: sys.stdout, as it is when `fit` begins.
        every: seconds between two lines in a file, > 0. Default: 30.
        validation_steps: number of batches of a validation, if it is known. Default: it is known after the first.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        done: int = 0,
        stream: TextIO | None = None,
        every: float = 30.0,
        validation_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.done = done
        self.stream = stream
        self.every = every
        self.validation_steps = validation_steps
        self._validation_seconds = 0.0  # of the last validation
        self._epoch = 0
        self._is_resumed = done > 0
        self._line = Line(stream, every)

    def on_train_begin(self, logs: Any = None) -> None:
        """Chooses the stream, and begins to measure the speed."""
        self._line = Line(self.stream, self.every)
        self._steps, self._seconds = 0, 0.0  # that the speed is computed from
        self._is_first, self._is_estimated = True, False
        self._step_seconds: list[float] = []  # of each step, until the time of the run is estimated

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the time."""
        self._epoch = epoch
        self._began = self._step_ended = time.perf_counter()
        self._taken, self._taking = 0, 0.0  # steps of this epoch, and their seconds
        if self._is_first and self.done < (epoch + 1) * self.steps_per_epoch:
            place = self._place(self.done - epoch * self.steps_per_epoch)
            self._line.show(f"{place}: compiling the first step (up to a minute)", is_due=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Shows the step."""
        step, now = self._epoch * self.steps_per_epoch + batch + 1, time.perf_counter()
        taken, seconds = step - self.done, now - self._step_ended
        self._step_ended = now
        if taken <= 0:  # skipped
            return
        self.done = step
        if self._is_first:
            self._is_first = False
        else:
            self._steps, self._seconds = self._steps + taken, self._seconds + seconds
            self._taken, self._taking = self._taken + taken, self._taking + seconds
            self._estimate(seconds / taken)
        self._line.show(lambda: f"{self._place(batch + 1)}: {', '.join(self._facts(self._speed(), logs))}")

    def on_test_begin(self, logs: Any = None) -> None:
        """Shows that validation begins."""
        self._validation_began = time.perf_counter()
        self._batches = 0
        self._line.show(self._validation, is_due=self._line.is_terminal or not self._validation_seconds)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Shows the batch of validation."""
        self._batches = batch + 1
        self._line.show(self._validation)

    def on_test_end(self, logs: Any = None) -> None:
        """Notes how long the validation took."""
        self.validation_steps = self._batches
        self._validation_seconds = time.perf_counter() - self._validation_began

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the line of the epoch."""
        took = f"took {duration(time.perf_counter() - self._began)}"
        speed = self._taken * self.batch_size / self._taking if self._taking else None
        facts = ", ".join((took, *self._facts(speed, logs)))
        self._line.write(f"epoch {epoch + 1} of {self.epochs}: {facts}")

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the line on the terminal."""
        self.close()

    def close(self) -> None:
        """Ends the line on the terminal. Call it if `fit` fails or is interrupted."""
        self._line.close()

    def _place(self, step):
        return f"epoch {self._epoch + 1} of {self.epochs}, step {step} of {self.steps_per_epoch}"

    def _validation(self):
        total = f" of {self.validation_steps}" if self.validation_steps else ""
        compiles = "" if self._batches or self._validation_seconds else " (compiling the first one)"
        return f"epoch {self._epoch + 1} of {self.epochs}, validating: {self._batches}{total} batches{compiles}"

    def _speed(self):
        return self._steps * self.batch_size / self._seconds if self._seconds else None

    def _estimate(self, seconds):
        """Writes, once, how long the whole run takes. `seconds` is the time of the last step.

        The median ignores steps after which a callback took long, such as the first probe of a guard, which compiles.
        """
        steps = self.epochs * self.steps_per_epoch - self.done
        if self._is_estimated or not steps:
            return
        self._step_seconds.append(seconds)
        if self._seconds < min(_ESTIMATE, self.every):
            return
        self._is_estimated, step = True, statistics.median(self._step_seconds)
        what = "the rest of the run" if self._is_resumed else "the run"
        speed = _speed_text(self.batch_size / step)
        self._line.write(f"Estimated time for {what}: {duration(steps * step)} at {speed}, and the validations.")

    def _facts(self, speed, logs):
        """Yields the time left, images per second, and the values of the logs, as text."""
        left = self._left()
        if left is not None:
            yield f"{duration(left)} left"
        if speed is not None:
            yield _speed_text(speed)
        for name, (title, is_share) in (_NOISY if "noisy_accuracy" in (logs or {}) else _SHOWN).items():
            if logs and name in logs:
                yield f"{title} {100 * logs[name]:.1f} %" if is_share else f"{title} {logs[name]:.4g}"

    def _left(self):
        """Returns the seconds that are left, None if the speed is unknown or nothing is left."""
        steps = self.epochs * self.steps_per_epoch - self.done
        if not (steps and self._steps):
            return None
        ends = -(-steps // self.steps_per_epoch)  # of epochs that are to come, each with a validation
        return steps * self._seconds / self._steps + ends * self._validation_seconds


class HistoryFile(keras.callbacks.Callback):
    """Writes the history of a training to a CSV file: a row for each epoch, with all metrics and the learning rate.

    The file is written anew, as a whole, from `checkpoint.history`, when `fit` begins and after each epoch. So it has
    each epoch once, however often the training was killed and resumed. Only the chief writes. List it after the
    Checkpoint.

    Args:
        path: the file to write, such as "history.csv".
        checkpoint: the `Checkpoint` of the training.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.path = path
        self.checkpoint = checkpoint

    def on_train_begin(self, logs: Any = None) -> None:
        """Writes the epochs of before a restart."""
        self._write()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes all epochs so far."""
        self._write()

    def _write(self):
        history = sorted(self.checkpoint.history.items())
        if not (history and self.checkpoint.is_chief):
            return
        names = dict.fromkeys(name for _, logs in history for name in logs)
        text = io.StringIO()
        writer = csv.DictWriter(text, ["epoch", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"epoch": epoch + 1, **logs} for epoch, logs in history)
        files.write_text(self.path, text.getvalue())


def _speed_text(speed):
    """Returns images per second as text."""
    return f"{speed:.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s"
