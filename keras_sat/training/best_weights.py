"""Keeps the weights of the best epoch: robust accuracy often falls again long before the end of a training."""

import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_sat import files
from keras_sat.training import averaging, distribution
from keras_sat.typing import Path


class BestWeights(keras.callbacks.Callback):
    """Writes the weights of the epoch with the largest validation accuracy, and may end the training early.

    Robust accuracy on held-out images rises, and then falls while the training goes on (Rice et al., Overfitting in
    adversarially robust deep learning, arXiv:2002.11569).

    After each epoch with a larger value than before, it writes the classifier's weights. Of equal values the first one
    counts; NaN never does. If the optimizer averages the weights (`use_ema=True`), the averages are written, which
    `AveragedWeights` validates. Name it in the `callbacks` of a `Checkpoint`: then a run that was killed, at any place,
    ends with the same file and the same decisions. With several workers, the chief writes, and its value decides for
    all.

    Args:
        path: the file to write. It is replaced as a whole. The one before is kept beside it until the next epoch
            begins, for a run that is killed before its `Checkpoint` notes the new one.
        save: a function that writes the weights: `save(classifier, path)`, such as `keras.Model.save_weights`.
        monitor: name of the value in the logs of an epoch. Larger is better.
        patience: the training ends after so many epochs in a row without a larger value, >= 1. None (default): it does
            not end early.

    Attributes:
        best: the best epoch so far: {"epoch": its number, from 1 on} and its logs; None before the first.
        stopped_epoch: number of the epoch, from 1 on, after which the training was ended; None if it was not.

    Raises:
        ValueError: for a patience that is not an integer >= 1. At the end of an epoch: if the logs have no such value.
    """

    def __init__(
        self,
        path: Path,
        save: Callable[[keras.Model, str], object],
        monitor: str = "val_robust_accuracy",
        patience: int | None = None,
    ) -> None:
        super().__init__()
        if patience is not None and not (isinstance(patience, int) and patience >= 1):
            raise ValueError(f"patience must be an integer >= 1, or None. Received: {patience!r}")
        self.path = os.path.abspath(files.expanded(path))
        self.save = save
        self.monitor = monitor
        self.patience = patience
        self.best: dict[str, Any] | None = None
        self.stopped_epoch: int | None = None
        self._waited = 0  # epochs since the best one
        self._sha256: str | None = None  # of the file
        folder, name = os.path.split(self.path)
        self._previous = os.path.join(folder, f".previous-{name}")

    def get_state(self) -> dict[str, Any]:
        """Returns the state for a `Checkpoint`: the best epoch, the digest of its file, and how long ago it was."""
        state = {"best": self.best, "stopped_epoch": self.stopped_epoch}
        return state | {"waited": self._waited, "sha256": self._sha256}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes back a state that `get_state` returned."""
        self.best, self.stopped_epoch = state["best"], state["stopped_epoch"]
        self._waited, self._sha256 = state["waited"], state["sha256"]

    def reset_patience(self) -> None:
        """Counts the epochs of `patience` from now on."""
        self._waited = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes back the file of the restored state, see `take_back`."""
        self.take_back()

    def take_back(self) -> None:
        """Takes back the file that belongs to the state, if a later one was written before the run was killed.

        The later one is written again when its epoch ends.
        """
        if self._sha256 is None or not distribution.is_chief(self.model.distribute_strategy):
            return
        if self._is_best(self.path):
            return
        if self._is_best(self._previous):
            os.replace(self._previous, self.path)
        else:
            warnings.warn(
                f"{self.path} no longer holds the weights of epoch {self.best and self.best['epoch']}, the best one.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Removes the file before the last one."""
        self._remove_previous()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the weights if they are the best, and ends the training if there were none for too long."""
        if self.monitor not in (logs or {}):
            raise ValueError(
                f"The logs of an epoch have no {self.monitor!r}, only {', '.join(logs or {})}: give fit "
                "validation_data, and list callbacks that add values before BestWeights."
            )
        strategy = self.model.distribute_strategy
        value = distribution.number_from_chief(strategy, float(logs[self.monitor]))
        if not math.isnan(value) and (self.best is None or value > self.best[self.monitor]):
            digest = self._write() if distribution.is_chief(strategy) else None
            best = {"epoch": epoch + 1, **{name: float(one) for name, one in logs.items()}, self.monitor: value}
            self.best, self._sha256, self._waited = best, digest, 0  # at one line: Ctrl-C may come at any
            return
        self._waited += 1
        if self.patience is not None and self._waited >= self.patience:
            self.stopped_epoch = epoch + 1
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Removes the file before the last one."""
        self._remove_previous()

    def _write(self):
        """Writes the weights, and returns the digest of the file."""
        if os.path.exists(self.path):
            shutil.copyfile(self.path, self._previous)
        with files.atomic_write(self.path) as temporary:
            with averaging.averages(self.model):
                self.save(self.model.classifier, temporary)
            digest = files.sha256(temporary)
        return digest

    def _is_best(self, path):
        return os.path.exists(path) and files.sha256(path) == self._sha256

    def _remove_previous(self):
        is_chief = distribution.is_chief(self.model.distribute_strategy)
        if is_chief and os.path.exists(self._previous):
            os.remove(self._previous)
