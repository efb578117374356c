"""Checkpoints: a training resumes from them, also inside an epoch, and ends with the same weights."""

import json
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import filelock
import keras
import numpy as np

from keras_sat import files, internals
from keras_sat.models import classifier
from keras_sat.training import distribution
from keras_sat.typing import Path


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole state of a training every `every` steps, and restores it.

        with Checkpoint("runs/x/checkpoints", steps_per_epoch, every=500) as checkpoint:
            done = checkpoint.restore(trainer)      # 0 at first
            dataset = data.load(..., training=True, epochs=100, first_step=done)
            trainer.fit(dataset, steps_per_epoch=steps_per_epoch, epochs=100, initial_epoch=done // steps_per_epoch,
                        shuffle=False, callbacks=[checkpoint])

    The state is: the weights, the moving statistics, the optimizer (moments, averaged weights, iterations, loss scale),
    the state of dropout, and the number of steps done. The noise of the attack, and the order and augmentation of the
    data, depend only on the seed and the step. So a run that was killed and restarted, even several times, ends with
    the weights of an uninterrupted run. In float32 on a CPU, they are equal bit for bit. The metrics of a resumed epoch
    are computed from the steps after the restart only.

    A dataset of your own must begin with the batch of step `done`. It must have an unknown cardinality, because `fit`
    counts the skipped steps too: `dataset.filter(lambda *_: True)` makes it unknown.

    A checkpoint consists of two files: `step-N.npz`, and `step-N.json` with its SHA-256, which is written last. If the
    newest checkpoint is incomplete or damaged, the one before it is used, with a warning. The last step of the training
    is saved too.

    If the `with` block is in the main thread, it handles two signals. While `fit` runs, SIGTERM (pre-emption) saves a
    checkpoint after the current step, and then ends the process with exit code 143. Ctrl-C saves a checkpoint after the
    current step, and then raises KeyboardInterrupt. A second Ctrl-C, or a Ctrl-C before step 1 of the run, raises it at
    once. Outside `fit`, the signals have their usual effect. If `fit` fails, a pending signal is delivered at the end
    of the block. `fit` and `restore` raise ValueError outside a `with` block: the block locks the folder, and it
    restores the signal handlers even if `fit` fails.

    With several workers, only the chief reads and writes the folder. All workers must call `restore`, which sends them
    the state that the chief has read. They need no common folder.

    Args:
        folder: the folder to write to, used by one run at a time.
        steps_per_epoch: the same as in `fit`, >= 1.
        every: number of steps between two checkpoints, >= 1. Default: 500.
        keep: number of checkpoints to keep, >= 1. Default: 2.
        is_chief: whether this process writes the checkpoints: `distribution.is_chief(strategy)`. Default: True.

    Attributes:
        folder, every, keep, is_chief: see Args; `folder` is a str.
        history: {epoch: {name: value}}, the logs of all finished epochs, also of epochs before `restore`.

    Raises:
        ValueError: for an argument that is not an integer >= 1. When the `with` block begins: if another run uses the
            folder. In `restore`: if the checkpoints belong to another network or optimizer, or all are damaged. In
            `fit`: if the data end within an epoch. In both: outside a `with` block.
        FloatingPointError: in `fit`, for a loss that is not finite, or when a checkpoint is saved, for a weight that is
            not finite. The message has the step, the learning rate and the last checkpoint.
        OSError: in `fit`, if a checkpoint cannot be written. Earlier checkpoints are kept.
    """

    def __init__(
        self, folder: Path, steps_per_epoch: int, every: int = 500, keep: int = 2, is_chief: bool = True
    ) -> None:
        super().__init__()
        for name, value in (("steps_per_epoch", steps_per_epoch), ("every", every), ("keep", keep)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be an integer >= 1. Received: {value!r}")
        self.folder = files.expanded(folder)
        self.every = every
        self.keep = keep
        self.is_chief = is_chief
        self.history: dict[int, dict[str, float]] = {}
        self._steps_per_epoch = steps_per_epoch
        self._epoch = 0
        self._restored = 0
        self._done = 0
        self._saved = 0
        self._record: dict[str, Any] | None = None  # of the last checkpoint that this process saved
        self._is_entered = False
        self._is_fitting = False
        self._signal: int | None = None  # a signal that arrived during `fit`, to be handled after the step
        self._handlers: dict[int, Any] = {}  # {signal: its previous handler}
        self._lock = filelock.FileLock(os.path.join(self.folder, ".lock"))

    def __enter__(self) -> "Checkpoint":
        if self.is_chief:
            os.makedirs(self.folder, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                raise ValueError(
                    f"Another run is writing to {self.folder}: choose another folder, or end that run."
                ) from None
            self._remove(kept=self._steps())
        self._is_entered = True
        self._handle_signals()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_entered = self._is_fitting = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        self._lock.release()
        self._deliver()

    def restore(self, trainer: keras.Model) -> int:
        """Gives a trainer the state of the newest undamaged checkpoint.

        Args:
            trainer: a compiled `AdversarialModel`.

        Returns:
            The number of steps that were done. If there is no checkpoint: 0, and the trainer is unchanged.

        Raises:
            ValueError: see the class.
        """
        self._check_is_entered()
        if not trainer.optimizer.built:
            with trainer.distribute_strategy.scope():
                trainer.optimizer.build(trainer.trainable_variables)
        step = self._restore(trainer) if self.is_chief else 0
        strategy = trainer.distribute_strategy
        if distribution.has_several_workers(strategy):
            step = int(distribution.from_chief(strategy, np.asarray(step)))
            assign(trainer, {name: distribution.from_chief(strategy, value) for name, value in values(trainer).items()})
        self._restored = self._done = self._saved = step
        return step

    def _restore(self, trainer):
        damaged = []
        for step in sorted(self._steps(), reverse=True):
            try:
                record, arrays = self._read(step)
            except (OSError, ValueError, KeyError) as error:
                damaged.append(step)
                warnings.warn(f"{self._path(step, 'npz')} is damaged ({error}): the one before is used.", stacklevel=2)
                continue
            _check_shapes(trainer, arrays, self._path(step, "npz"))
            assign(trainer, arrays)
            self.history = {int(epoch): logs for epoch, logs in record["history"].items()}
            return step
        if damaged:
            raise ValueError(f"No checkpoint in {self.folder} is whole: remove the folder to begin anew.")
        return 0

    @property
    def done(self) -> int:
        """Number of steps done so far, over all epochs."""
        return self._done

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._check_is_entered()
        self._is_fitting = True

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._is_fitting = False

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        already = self._done - epoch * self._steps_per_epoch
        if already > 0:
            internals.skip_steps(self.model, already)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        step = self._epoch * self._steps_per_epoch + batch + 1
        if step <= self._done:
            return
        self._done = step
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise FloatingPointError(self._not_finite(f"the loss is {loss}"))
        is_last = step == self.params.get("epochs") * self._steps_per_epoch
        if self._signal or is_last or step - self._saved >= self.every:
            self._save(step)
        number, self._signal = self._signal, None
        if number:
            self._is_fitting = False  # what follows ends fit, and Keras does not call on_train_end then
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number:
            raise SystemExit(128 + number)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        end = (epoch + 1) * self._steps_per_epoch
        if self._done < end and not self.model.stop_training:
            raise ValueError(
                f"The data ended at step {self._done}, within an epoch that ends at {end}. Of a dataset that knows "
                "its length fit counts the steps that are skipped, too: dataset.filter(lambda *_: True) forgets it."
            )
        self.history[epoch] = {name: float(value) for name, value in (logs or {}).items()}
        if self._record and self._record["step"] == self._done:  # saved before the logs of this epoch were known
            self._write_record()

    def _check_is_entered(self):
        if not self._is_entered:
            raise ValueError(
                "A Checkpoint is used in a with block: `with Checkpoint(folder, steps_per_epoch) as checkpoint:`, with "
                "restore and fit inside it."
            )

    def _handle_signals(self):
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows no handlers there
        numbers = [signal.SIGTERM] if signal.getsignal(signal.SIGTERM) is not None else []  # None: not set by Python
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or the user handles it
            numbers.append(signal.SIGINT)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_at_once = number == signal.SIGINT and (self._signal or self._done == self._restored)
        if self._is_fitting and not is_at_once:
            self._signal = number
            return
        before = self._handlers[number]
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _deliver(self):
        """Sends a pending signal again: one that arrived after the last step, or before `fit` failed."""
        number, self._signal = self._signal, None
        if number:
            signal.raise_signal(number)

    def _save(self, step):
        arrays = values(self.model)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise FloatingPointError(self._not_finite("a weight is not finite"))
        if not self.is_chief:
            return
        path = self._path(step, "npz")
        try:
            with files.atomic_write(path) as temporary:
                with open(temporary, "wb") as file:
                    np.savez(file, **arrays)
                    file.flush()
                    os.fsync(file.fileno())
                digest = files.sha256(temporary)
            self._record = {"step": step, "sha256": digest}
            self._write_record()
        except OSError as error:
            raise OSError(f"No checkpoint could be written at step {step}: {error}. {self._last()}") from error
        self._saved = step
        self._remove(kept=sorted(self._steps())[-self.keep :])

    def _write_record(self):
        files.write_json(self._path(self._record["step"], "json"), self._record | {"history": self.history})

    def keep_last(self) -> None:
        """Removes all checkpoints except the last one."""
        self._remove(kept=self._steps()[-1:] and [max(self._steps())])

    def _remove(self, kept: Iterable[int]) -> None:
        """Removes all checkpoints except those of the steps `kept`, and incomplete files of killed runs."""
        names = {os.path.basename(self._path(step, kind)) for step in kept for kind in ("npz", "json")}
        for name in os.listdir(self.folder):
            if "step-" in name and name not in names:
                os.remove(os.path.join(self.folder, name))

    def _read(self, step):
        with open(self._path(step, "json"), encoding="utf-8") as file:
            record = json.load(file)
        if files.sha256(self._path(step, "npz")) != record["sha256"]:
            raise ValueError("its SHA-256 is another")
        with np.load(self._path(step, "npz")) as arrays:
            return record, dict(arrays)

    def _steps(self):
        """Returns the steps of all checkpoints in the folder, also of damaged ones."""
        names = (name.removesuffix(".json").removeprefix("step-") for name in os.listdir(self.folder))
        return [int(name) for name in names if name.isdigit()]

    def _path(self, step, kind):
        return os.path.join(self.folder, f"step-{step}.{kind}")

    def _last(self):
        return f"Last good checkpoint: {self._path(self._saved, 'npz') if self._saved else 'none'}."

    def _not_finite(self, what):
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        return (
            f"Training stopped at step {self._done} (epoch {self._epoch + 1}): {what}, at learning rate {rate:g}. "
            f"{self._last()} Lower the learning rate, clip the gradients, or train in float32."
        )


def values(trainer: keras.Model) -> dict[str, np.ndarray]:
    """Returns {name: value} of all variables of a trainer and its optimizer. The names are the same in each process."""
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in _state(trainer).items()}


def assign(trainer: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns values, as `values` returns them, to the variables of a trainer and its optimizer."""
    for name, variable in _state(trainer).items():
        variable.assign(arrays[name])
    classifier.refresh(trainer)


def _state(trainer):
    variables = [*trainer.variables, *trainer.optimizer.variables]
    return {f"{number:05}": variable for number, variable in enumerate(variables)}


def _check_shapes(trainer, arrays, path):
    shapes, saved = ({name: tuple(value.shape) for name, value in d.items()} for d in (_state(trainer), arrays))
    if shapes != saved:
        differing = sorted(set(shapes.items()) ^ set(saved.items()))[:3]
        raise ValueError(
            f"{path} is of another network or optimizer: it has {len(saved)} variables, {len(shapes)} were expected; "
            f"these differ: {differing}"
        )
