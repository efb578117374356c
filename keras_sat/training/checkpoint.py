"""Checkpoints: a training resumes from them, also inside an epoch, and ends with the same weights."""

import json
import math
import os
import re
import signal
import sys
import threading
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

import filelock
import keras
import numpy as np
import tensorflow as tf

from keras_sat import files, internals, interrupts
from keras_sat.models import classifier
from keras_sat.training import distribution
from keras_sat.typing import Path

_FILE = re.compile(r"(\.\d+-)?step-\d+\.(npz|json)")  # of a checkpoint, or its temporary name in `files.atomic_write`
METRIC, CALLBACK = "metric/", "callback/"  # of names of arrays; those of the trainer's state are numbers


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole state of a training every `every` steps, and restores it.

        best = BestWeights("runs/x/best.weights.h5", keras.Model.save_weights, patience=10)
        with Checkpoint("runs/x/checkpoints", steps_per_epoch, callbacks=[best]) as checkpoint:
            done = checkpoint.restore(trainer)      # 0 at first
            dataset = data.load(..., training=True, epochs=100, first_step=done)
            trainer.fit(dataset, steps_per_epoch=steps_per_epoch, epochs=100, initial_epoch=checkpoint.epoch,
                        shuffle=False, validation_data=..., callbacks=[best, checkpoint])

    The state is: the weights, the moving statistics, the optimizer (moments, averaged weights, iterations, loss scale),
    the state of dropout, the metrics of the present epoch, the state of `callbacks`, and the number of steps done. The
    noise of the attack, and the order and augmentation of the data, depend only on the seed and the step. So a run that
    was killed and restarted, even several times, ends with the weights of an uninterrupted run. In float32 on a CPU,
    they are equal bit for bit, and so are the metrics of each epoch on one device. (On several replicas the metrics of
    an epoch that was cut differ by rounding. With several workers they are computed from the steps after the restart
    only.)

    Checkpoints are written every `every` steps, after the last step of each epoch, and after the step in which a
    callback ends the training. A run that is killed between the last step of an epoch and the end of its validation
    goes on with this validation: `fit(initial_epoch=checkpoint.epoch)` skips all steps of that epoch, and then does
    what it does after an epoch. So history and callbacks see what they see in an uninterrupted run. If a callback ended
    the training, or all epochs are finished, the same call of `fit` takes no step.

    A dataset of your own must begin with the batch of step `done`; it may be empty after the last one. It must have an
    unknown cardinality, because `fit` counts the skipped steps too: `dataset.filter(lambda *_: True)` makes it unknown.

    A checkpoint consists of two files: `step-N.npz`, and `step-N.json` with its SHA-256, which is written last. If the
    newest checkpoint is incomplete or damaged, the one before it is used, with a warning. A checkpoint that is written
    again, because the end of its epoch changed a variable, is whole at each instant.

    If the `with` block is in the main thread, it handles two signals. While `fit` runs, SIGTERM (pre-emption) saves a
    checkpoint after the current step, and then ends the process with exit code 143. Ctrl-C saves a checkpoint after the
    current step, and then raises KeyboardInterrupt. During a validation, both do so after the current batch: the
    checkpoint is there already. A second Ctrl-C, or a Ctrl-C before step 1 of the run, raises it at once. Outside
    `fit`, and after its last epoch, the signals have their usual effect. If `fit` fails, a pending signal is delivered
    at the end of the block. `fit` and `restore` raise ValueError outside a `with` block: the block locks the folder,
    and it restores the signal handlers even if `fit` fails.

    With several workers, only the chief reads and writes the folder. All workers must call `restore`, which sends them
    the state that the chief has read. They need no common folder.

    A callback with state has two methods: `get_state()` returns a dict of plain JSON values, NumPy arrays, and dicts of
    NumPy arrays; `set_state(state)` takes it back. Name it in `callbacks`, and list it in `fit` before the Checkpoint,
    as all callbacks that end the training. Keras' own callbacks have no such methods: those that remember something
    (EarlyStopping, ReduceLROnPlateau, ModelCheckpoint) begin anew in a resumed run.

    Args:
        folder: the folder to write to, used by one run at a time.
        steps_per_epoch: the same as in `fit`, >= 1.
        every: number of steps between two checkpoints, >= 1. Default: 500.
        keep: number of checkpoints to keep, >= 1. Default: 2.
        is_chief: whether this process writes the checkpoints: `distribution.is_chief(strategy)`. Default: True.
        callbacks: callbacks of `fit` whose state is part of each checkpoint. Default: none.

    Attributes:
        folder, every, keep, is_chief: see Args; `folder` is a str.
        history: {epoch: {name: value}}, the logs of all finished epochs, also of epochs before `restore`, and the
            `learning_rate` after each.

    Raises:
        ValueError: for an argument that is not an integer >= 1, or a callback without `get_state` and `set_state`. When
            the `with` block begins: if another run uses the folder. In `restore`: if the checkpoints belong to another
            network or optimizer, or all are damaged. In `fit`: if the data end within an epoch, if one of
            `callbacks` does not come before the Checkpoint, or if `steps_per_execution` of `compile` does not divide
            the steps of an epoch and those done, or if the folder has checkpoints and `restore` was not called. In
            both: outside a `with` block.
        FloatingPointError: in `fit`, for a loss that is not finite, or when a checkpoint is saved, for a weight that is
            not finite. The message has the step, the learning rate and the last checkpoint.
        OSError: in `fit`, if a checkpoint cannot be written. Earlier checkpoints are kept.
    """

    def __init__(
        self,
        folder: Path,
        steps_per_epoch: int,
        every: int = 500,
        keep: int = 2,
        is_chief: bool = True,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        super().__init__()
        for name, value in (("steps_per_epoch", steps_per_epoch), ("every", every), ("keep", keep)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be an integer >= 1. Received: {value!r}")
        for callback in callbacks:
            if not (hasattr(callback, "get_state") and hasattr(callback, "set_state")):
                raise ValueError(
                    f"A callback with state has the methods get_state and set_state. {type(callback).__name__} has not:"
                    " leave it out of the Checkpoint's callbacks, and it begins anew in a resumed run."
                )
        self.folder = files.expanded(folder)
        self.every = every
        self.keep = keep
        self.is_chief = is_chief
        self.history: dict[int, dict[str, float]] = {}
        self._stateful = _named(callbacks)
        self._steps_per_epoch = steps_per_epoch
        self._epoch = 0
        self._restored = 0
        self._done = 0
        self._saved = 0
        self._is_stopped = False  # a callback has ended the training
        self._logs: dict[str, float] = {}  # of the last step
        self._metrics: dict[str, np.ndarray] = {}  # of the steps before `restore`, for the first step after it
        self._record: dict[str, Any] | None = None  # step and digest of the checkpoint that was read or saved last
        self._sums: dict[str, int] = {}  # checksums of the state in this checkpoint
        self._found: tuple[dict[str, Any], dict[str, np.ndarray]] | None = None  # by `newest_step`, for `restore`
        self._is_entered = False
        self._is_unread = False  # the folder has checkpoints, and `restore` was not called
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
            self._is_unread = bool(self._steps())
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
        found, self._found = self._found, None
        record, arrays = found or (self._newest() if self.is_chief else ({}, {}))
        if arrays:
            _check_shapes(trainer, arrays, self._path(record["step"], "npz"))
        if distribution.has_several_workers(strategy := trainer.distribute_strategy):
            record, arrays = distribution.state_from_chief(strategy, record, arrays or values(trainer))
        if arrays:
            assign(trainer, arrays)
        self._set_state(record, arrays)
        self._is_unread = False
        return self._done

    def newest_step(self, strategy: tf.distribute.Strategy) -> int:
        """Returns the number of steps that `restore` would return. All workers must call it.

        A training in phases, each with its own optimizer, needs it to make the trainer of the right phase.

        Args:
            strategy: the strategy of the training.
        """
        self._found = self._newest() if self.is_chief else ({}, {})
        step = self._found[0].get("step", 0)
        return int(distribution.number_from_chief(strategy, step))

    def _newest(self):
        """Returns the record and the arrays of the newest undamaged checkpoint; nothing if there is none."""
        damaged = []
        for step in sorted(self._steps(), reverse=True):
            try:
                record, arrays = self._read(step)
            except (OSError, ValueError, KeyError) as error:
                damaged.append(step)
                warnings.warn(f"{self._path(step, 'npz')} is damaged ({error}): the one before is used.", stacklevel=3)
                continue
            return record, arrays
        if damaged:
            raise ValueError(f"No checkpoint in {self.folder} is undamaged: remove the folder to start anew.")
        return {}, {}

    def _set_state(self, record, arrays):
        """Takes over the state of a checkpoint, but for the variables of the trainer."""
        self._restored = self._done = self._saved = record.get("step", 0)
        self.history = {int(epoch): logs for epoch, logs in record.get("history", {}).items()}
        self._is_stopped, self._logs = record.get("stopped", False), record.get("logs", {})
        self._record = {name: record[name] for name in ("step", "sha256")} if record else None
        self._sums = _sums({name: array for name, array in arrays.items() if not name.startswith(METRIC)})
        self._metrics = {name: array for name, array in arrays.items() if name.startswith(METRIC)}
        for name, callback in self._stateful.items():
            if name in record.get("callbacks", {}):
                callback.set_state(_joined(record["callbacks"][name], name, arrays))
            elif self._done:
                warnings.warn(
                    f"{type(callback).__name__} starts anew at step {self._done}: the checkpoint has no state of it.",
                    stacklevel=3,
                )

    @property
    def done(self) -> int:
        """Number of steps done so far, over all epochs."""
        return self._done

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0, with which `fit` goes on: its `initial_epoch`.

        This is the first epoch without an entry in `history`. If a callback has ended the training, it is larger than
        any number of epochs, so that `fit` takes no step.
        """
        last = self._done // self._steps_per_epoch - (self._done % self._steps_per_epoch == 0)
        if last not in self.history:
            return max(last, 0)
        return sys.maxsize if self._is_stopped else last + 1

    def set_model(self, model: keras.Model) -> None:
        """Gets the model from `fit`, which gives it to the callbacks in their order."""
        super().set_model(model)
        late = [type(one).__name__ for one in self._stateful.values() if one.model is not model]
        if late:
            raise ValueError(
                f"In fit's callbacks, {late[0]} must come before the Checkpoint that saves its state: "
                "fit(callbacks=[..., checkpoint])."
            )

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._check_is_entered()
        self._check_execution()
        if self._is_unread:
            raise ValueError(
                f"{self.folder} has checkpoints of a run before: call restore(trainer) before fit to go on with it, or "
                "choose another folder."
            )
        self._is_fitting = True

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._is_fitting = False

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        already = self._done - epoch * self._steps_per_epoch
        if already > 0:
            is_whole = self._is_stopped or already == self._steps_per_epoch
            if is_whole:
                internals.skip_steps(self.model, already, logs=self._logs)
            else:
                internals.skip_steps(self.model, already, after=self._add_metrics if self._metrics else None)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        step = self._epoch * self._steps_per_epoch + batch + 1
        if step <= self._done:
            if step == self._done and self._is_stopped:  # killed before the end of the epoch in which training ended
                self.model.stop_training = True
            return
        self._done = step
        self._logs = {name: float(value) for name, value in (logs or {}).items()}
        loss = self._logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(self._not_finite(f"the loss is {loss}"))
        self._is_stopped = bool(self.model.stop_training)
        is_last = step % self._steps_per_epoch == 0 or self._is_stopped
        is_signalled = self._signal is not None  # a signal that arrives from here on is answered after the next step
        if is_signalled or is_last or step - self._saved >= self.every:
            self._save(step)
        if is_signalled:
            self._answer_signal()

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._answer_signal()

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._answer_signal()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        end = (epoch + 1) * self._steps_per_epoch
        if self._done < end and not self.model.stop_training:
            raise ValueError(
                f"The data ended at step {self._done}, within an epoch that ends at {end}. If a dataset "
                "knows its length, fit also counts the skipped steps: hide it, with dataset.filter(lambda *_: True)."
            )
        self._is_stopped = bool(self.model.stop_training)
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.history[epoch] = {name: float(value) for name, value in (logs or {}).items()} | {"learning_rate": rate}
        self._save_end_of_epoch()
        if epoch + 1 < self.params["epochs"] and not self._is_stopped:  # else `fit` ends now
            self._answer_signal()

    def _answer_signal(self):
        """Ends `fit` if a signal has arrived. All that has been done is in a checkpoint."""
        if not (self._signal and self._is_fitting):
            return
        number, self._signal = self._signal, None
        self._is_fitting = False  # what follows ends fit, and Keras does not call on_train_end then
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def _check_is_entered(self):
        if not self._is_entered:
            raise ValueError(
                "A Checkpoint is used in a with block: `with Checkpoint(folder, steps_per_epoch) as checkpoint:`, with "
                "restore and fit inside it."
            )

    def _check_execution(self):
        """Raises ValueError if Keras, which calls callbacks after several steps at once, would miss a step here."""
        steps = self.model.steps_per_execution
        if self._steps_per_epoch % steps or self._done % steps:
            raise ValueError(
                f"steps_per_execution of compile must divide steps_per_epoch, {self._steps_per_epoch}, and the "
                f"{self._done} steps done, so that each ends with an execution. Received: {steps}"
            )

    def _handle_signals(self):
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows no handlers there
        numbers = [signal.SIGTERM] if signal.getsignal(signal.SIGTERM) is not None else []  # None: not set by Python
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, interrupts.handler):
            # else it is ignored, or the user handles it
            numbers.append(signal.SIGINT)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_at_once = number == signal.SIGINT and (self._signal or self._done == self._restored)
        if self._is_fitting and not is_at_once:
            self._signal = number
            return
        if self._signal == number:
            self._signal = None  # both are answered now
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
        if self.is_chief:
            states, more = self._states()
            self._write(step, states, arrays | more, _values(_metric_variables(self.model)))
        self._saved = step

    def _save_end_of_epoch(self):
        """Adds what validation and the end of an epoch brought to the checkpoint of the last step."""
        if not self.is_chief:
            return
        (states, more), arrays = self._states(), values(self.model)
        if self._record and self._record["step"] == self._done and _sums(arrays | more) == self._sums:
            self._write_record(self._record, states)
        else:
            self._write(self._done, states, arrays | more, {})

    def _states(self):
        """Returns {name: state} of the callbacks, as JSON values, and {name: array} of the arrays in them."""
        states, arrays = {}, {}
        for name, callback in self._stateful.items():
            states[name], inside = _parted(callback.get_state(), name)
            arrays |= inside
        return states, arrays

    def _write(self, step, states, arrays, metrics):
        """Writes a checkpoint.

        Where the step has one already, the record is of both until the arrays are replaced: see `_read_record`.
        """
        path = self._path(step, "npz")
        try:
            with files.atomic_write(path) as temporary:
                with open(temporary, "wb") as file:
                    np.savez(file, **arrays, **metrics)
                    file.flush()
                    os.fsync(file.fileno())
                record = {"step": step, "sha256": files.sha256(temporary)}
                if before := self._record_before(step):
                    self._write_record(record, states, before=before)
            self._record, self._sums = record, _sums(arrays)
            self._write_record(record, states)
        except OSError as error:
            raise OSError(f"No checkpoint could be written at step {step}: {error}. {self._last()}") from error
        self._remove(kept=sorted(self._steps())[-self.keep :])

    def _write_record(self, record, states, **more):
        run = {"history": self.history, "logs": self._logs, "stopped": self._is_stopped, "callbacks": states}
        files.write_json(self._path(record["step"], "json"), record | run | more)

    def _record_before(self, step):
        """Returns the record of a checkpoint on the disk; None if there is none, or it is damaged."""
        try:
            return self._read_record(step)
        except (OSError, ValueError):
            return None

    def _add_metrics(self, logs):
        """Adds the steps before the restart to the metrics, and returns the logs of the first step after it.

        The variables of a metric are sums over examples: Keras adds up those of several replicas, too.
        """
        variables = _metric_variables(self.model)
        shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        if shapes != {name: array.shape for name, array in self._metrics.items()}:
            warnings.warn(
                f"The metrics differ from those in the checkpoint: the values of epoch {self._epoch + 1} are computed "
                f"from the steps after step {self._done} only.",
                stacklevel=2,
            )
            return logs
        for name, variable in variables.items():
            variable.assign(self._metrics[name] + keras.ops.convert_to_numpy(variable))
        results = self.model.training_logs(self.model.get_metrics_result())
        return {name: results.get(name, value) for name, value in logs.items()}

    def keep_last(self) -> None:
        """Removes all checkpoints except the last one."""
        self._remove(kept=self._steps()[-1:] and [max(self._steps())])

    def _remove(self, kept: Iterable[int]) -> None:
        """Removes all checkpoints except those of the steps `kept`, and incomplete files of killed runs."""
        names = {os.path.basename(self._path(step, kind)) for step in kept for kind in ("npz", "json")}
        for name in os.listdir(self.folder):
            if _FILE.fullmatch(name) and name not in names:
                os.remove(os.path.join(self.folder, name))

    def _read(self, step):
        record = self._read_record(step)
        with np.load(self._path(step, "npz")) as arrays:
            return record, dict(arrays)

    def _read_record(self, step):
        """Returns the record of the arrays on the disk, which may be those before the last ones."""
        with open(self._path(step, "json"), encoding="utf-8") as file:
            record = json.load(file)
        before, digest = record.pop("before", {}), files.sha256(self._path(step, "npz"))
        for one in (record, before):
            if one.get("sha256") == digest:
                return one
        raise ValueError("its SHA-256 differs")

    def _steps(self):
        """Returns the steps of all checkpoints in the folder, also of damaged ones."""
        found = (re.fullmatch(r"step-(\d+)\.json", name) for name in os.listdir(self.folder))
        return [int(one[1]) for one in found if one]

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
    return _values(_state(trainer))


def assign(trainer: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns values, as `values` returns them, to the variables of a trainer and its optimizer."""
    for name, variable in _state(trainer).items():
        variable.assign(arrays[name])
    classifier.refresh(trainer)


def _state(trainer):
    variables = [*trainer.variables, *trainer.optimizer.variables]
    return {f"{number:05}": variable for number, variable in enumerate(variables)}


def _metric_variables(trainer):
    """Returns {name: variable} of the metrics; {} with several workers, which read them all together or not at all."""
    if distribution.has_several_workers(trainer.distribute_strategy):
        return {}
    variables = [variable for metric in trainer.metrics for variable in metric.variables]
    return {f"{METRIC}{number:05}": variable for number, variable in enumerate(variables)}


def _values(variables):
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in variables.items()}


def _sums(arrays):
    """Returns {name: checksum of an array's bytes}."""
    flat = {name: np.ascontiguousarray(array).reshape(-1) for name, array in arrays.items()}
    return {name: zlib.crc32(array.view(np.uint8)) for name, array in flat.items()}


def _named(callbacks):
    """Returns {name: callback}. The names are those of the classes; the second of a class gets a number."""
    named: dict[str, Any] = {}
    for callback in callbacks:
        name = type(callback).__name__
        same = sum(type(one) is type(callback) for one in named.values())
        named[f"{name}-{same + 1}" if same else name] = callback
    return named


def _parted(state, name):
    """Returns the JSON values in the state of a callback, and {name: array} of the arrays in it."""
    plain, arrays = {}, {}
    for key, value in state.items():
        path = f"{CALLBACK}{name}/{key}"
        if isinstance(value, np.ndarray):
            arrays[path] = value
        elif isinstance(value, dict) and value and all(isinstance(one, np.ndarray) for one in value.values()):
            arrays |= {f"{path}/{inner}": array for inner, array in value.items()}
        else:
            plain[key] = value
    return plain, arrays


def _joined(plain, name, arrays):
    """Returns the state of a callback that `_parted` has parted. `arrays` may hold others too."""
    state, prefix = dict(plain), f"{CALLBACK}{name}/"
    for path, array in arrays.items():
        if path.startswith(prefix):
            key, *inner = path.removeprefix(prefix).split("/", 1)
            if inner:
                state.setdefault(key, {})[inner[0]] = array
            else:
                state[key] = array
    return state


def _check_shapes(trainer, arrays, path):
    arrays = {name: array for name, array in arrays.items() if name.isdigit()}
    shapes, saved = ({name: tuple(value.shape) for name, value in d.items()} for d in (_state(trainer), arrays))
    if shapes != saved:
        differing = sorted(set(shapes.items()) ^ set(saved.items()))[:3]
        raise ValueError(
            f"{path} is of another network or optimizer: it has {len(saved)} variables, {len(shapes)} were expected; "
            f"these differ: {differing}"
        )
