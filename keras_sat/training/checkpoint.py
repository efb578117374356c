"""A training that survives: what is saved inside an epoch, and how a run goes on from it to the same weights."""

import json
import math
import os
import signal
import threading
import warnings

import filelock
import keras
import numpy as np

from keras_sat import files
from keras_sat.models import classifier
from keras_sat.training import distribution


class Checkpoint(keras.callbacks.Callback):
    """Saves all that a training is, every so many steps, and takes it up where it was.

        with Checkpoint("runs/x/checkpoints", steps_per_epoch, every=500) as checkpoint:
            done = checkpoint.restore(trainer)      # 0 at first
            dataset = data.load(..., training=True, epochs=100, first_step=done)
            trainer.fit(dataset, steps_per_epoch=steps_per_epoch, epochs=100, initial_epoch=done // steps_per_epoch,
                        shuffle=False, callbacks=[checkpoint])

    Saved are the weights, the moving statistics, the optimizer (moments, averaged weights, iterations, loss scale), the
    state of dropout, and how many steps were done. The attack's noise and the order and augmentation of the data follow
    from the seed and the step, so a run that was killed and restarted, however often, ends with the weights of one that
    was not: bit for bit in float32 on a CPU. Metrics in the log of an epoch that was resumed are of its rest.

    A dataset of your own must give the batches from step `done` on, and not know how many there are, for `fit` counts
    those that are skipped: `dataset.filter(lambda *_: True)` has forgotten it.

    A checkpoint is `step-N.npz`, then `step-N.json` with its SHA-256: one that was cut short or is damaged is told from
    a whole one, and the one before it is used, with a warning. The last step of all is saved too. SIGTERM (pre-emption)
    saves after the step at work, then ends the process with exit code 143; Ctrl-C saves, then raises KeyboardInterrupt
    (the second Ctrl-C, and one before the first step, at once). A loss that is not finite ends the training.

    Of several workers the chief alone reads and writes the folder, and in `restore`, which all must call, the others
    are given what it read: they need no folder in common.

    Args:
        folder: to write to; used by one run at a time.
        steps_per_epoch: as given to `fit`.
        every: a checkpoint is saved after so many steps.
        keep: number of checkpoints to keep, >= 1.
        is_chief: whether this process is the one that writes: `distribution.is_chief(strategy)`.

    Raises:
        ValueError: if another run uses the folder; in `restore`, if its checkpoints are of another network or
            optimizer, or all are damaged; in `fit`, if the data end within an epoch.
        FloatingPointError: in `fit`, for a loss that is not finite; it names step, learning rate and last checkpoint.
        OSError: in `fit`, where a checkpoint cannot be written; the ones before are still there.
    """

    def __init__(self, folder, steps_per_epoch, every=500, keep=2, is_chief=True):
        super().__init__()
        for name, value in (("steps_per_epoch", steps_per_epoch), ("every", every), ("keep", keep)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be an integer >= 1. Received: {value!r}")
        self.folder = files.expanded(folder)
        self.every = every
        self.keep = keep
        self.is_chief = is_chief
        self.history = {}
        self._steps_per_epoch = steps_per_epoch
        self._epoch = 0
        self._done = 0
        self._saved = 0
        self._record = None  # of the checkpoint that this process saved last
        self._signal = None
        self._handlers = {}
        self._lock = filelock.FileLock(os.path.join(self.folder, ".lock"))

    def __enter__(self):
        if not self.is_chief:
            return self
        os.makedirs(self.folder, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(
                f"Another run is writing to {self.folder}: choose another folder, or end that run."
            ) from None
        self._remove(kept=self._steps())
        return self

    def __exit__(self, *_):
        self._restore_handlers()  # fit, where it fails, does not call on_train_end
        self._lock.release()

    def restore(self, trainer):
        """Gives a compiled trainer the state of the newest whole checkpoint; returns how many steps were done, or 0."""
        if not trainer.optimizer.built:
            with trainer.distribute_strategy.scope():
                trainer.optimizer.build(trainer.trainable_variables)
        step = self._restore(trainer) if self.is_chief else 0
        strategy = trainer.distribute_strategy
        if distribution.has_several_workers(strategy):
            step = int(distribution.from_chief(strategy, np.asarray(step)))
            assign(trainer, {name: distribution.from_chief(strategy, value) for name, value in values(trainer).items()})
        self._done = self._saved = step
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
    def done(self):
        """Number of steps that were done, over all epochs."""
        return self._done

    def on_train_begin(self, logs=None):
        if threading.current_thread() is not threading.main_thread():
            return
        self._handlers = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_signal)}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_signal)

    def on_train_end(self, logs=None):
        self._restore_handlers()

    def _restore_handlers(self):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        already = self._done - epoch * self._steps_per_epoch
        if already > 0:
            self._skip(already)

    def on_train_batch_end(self, batch, logs=None):
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
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal:
            raise SystemExit(128 + self._signal)

    def on_epoch_end(self, epoch, logs=None):
        end = (epoch + 1) * self._steps_per_epoch
        if self._done < end and not self.model.stop_training:
            raise ValueError(
                f"The data ended at step {self._done}, within an epoch that ends at {end}. Of a dataset that knows "
                "its length fit counts the steps that are skipped, too: dataset.filter(lambda *_: True) forgets it."
            )
        self.history[epoch] = {name: float(value) for name, value in (logs or {}).items()}
        if self._record and self._record["step"] == self._done:  # saved before this epoch's figures were known
            self._write_record()

    def _on_signal(self, number, _):
        if number == signal.SIGINT and (self._signal or not self._done):
            raise KeyboardInterrupt
        self._signal = number

    def _skip(self, steps):
        """Lets Keras count the steps of this epoch that were done before, without taking them."""
        take_step, left = self.model.train_function, steps

        def skipping(iterator):
            nonlocal left
            if left > 0:
                left -= self.model.steps_per_execution
                return {}
            self.model.train_function = take_step
            return take_step(iterator)

        self.model.train_function = skipping

    def _save(self, step):
        arrays = values(self.model)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise FloatingPointError(self._not_finite("a weight is not finite"))
        if not self.is_chief:
            return
        path = self._path(step, "npz")
        try:
            with files.replacing(path) as temporary:
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

    def keep_last(self):
        """Removes all checkpoints but the last."""
        self._remove(kept=self._steps()[-1:] and [max(self._steps())])

    def _remove(self, kept):
        """Removes other checkpoints, and what a killed run left half-written."""
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
        """Returns the steps that were saved, whole or not."""
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


def values(trainer):
    """Returns the values of all variables of a training, by names that another process gives them too."""
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in _state(trainer).items()}


def assign(trainer, arrays):
    """Gives the variables of a training what `values` returned, and its layers what they derive from them."""
    for name, variable in _state(trainer).items():
        variable.assign(arrays[name])
    classifier.refresh(trainer.classifier)


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
