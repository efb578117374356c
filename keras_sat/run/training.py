"""Trains a `Run` and writes its folder. A run that was killed or interrupted continues from its last checkpoint."""

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_sat import attacks, data, files, models, provenance
from keras_sat.models import classifier
from keras_sat.run import folder as folder_lib
from keras_sat.run import optimizers, trained_on
from keras_sat.run.configuration import LEAST_PROBED_IMAGES, Run, dtype_policy
from keras_sat.run.pretrained import activation_name
from keras_sat.training import (
    AdversarialModel,
    AveragedWeights,
    BestWeights,
    CatastrophicOverfittingGuard,
    Checkpoint,
    HistoryFile,
    Progress,
    averaging,
    distribution,
)
from keras_sat.training import _cost as cost_lib
from keras_sat.typing import Path

PROBES_PER_EPOCH = 4
PROBED_BEYOND = (1.25, 1.5)  # factors of epsilon


def train(
    run: Run, folder: Path, go_on: bool = False, say: Callable[[str], object] = lambda line: None
) -> tuple[keras.Model, bool]:
    """Trains a network adversarially, and writes the run's folder.

    If a run was killed, call this again with the same arguments: it continues from the last checkpoint, and ends with
    the same weights. Ctrl-C ends the training early: the current weights are written, and the same call continues from
    there. With several workers, each worker calls this, and the chief writes the files.

    Args:
        run: the configuration.
        folder: folder to write. It must contain no run, or the same run if that is not finished.
        go_on: True continues a run that has the same settings but fewer epochs, and may be finished. The learning rate
            then follows the schedule for the new number of epochs, so it may rise again. run.json lists the former
            numbers of epochs as "continued". Default: False.
        say: a function that is called with lines of text: the data, the network and the training, where a run is
            continued, and what takes a while before the first step. Default: a function that does nothing.

    Returns:
        The trained keras.Model, and whether the training ran to its end. The chief's model has the weights that are
        kept, those of other workers the last ones.

    Raises:
        ValueError: if the folder contains a finished run, a run with other settings or other data, or a run that
            another process is writing; or if the dataset cannot be opened. Nothing is written then.
        FloatingPointError: see `training.Checkpoint`.
        OSError: see `training.Checkpoint`.
        ConnectionError: if another worker has ended or cannot be reached.
        KeyboardInterrupt: for Ctrl-C before the first step. Nothing is written then.
    """
    folder = files.expanded(folder)
    strategy = distribution.strategy(run.strategy)  # with several workers, it must exist before any computation
    is_chief = distribution.is_chief(strategy)
    # Workers other than the chief may have no access to the folder.
    continued = _check_goes_on(run, folder, go_on) if is_chief or os.path.isdir(folder) else []
    if not is_chief:
        say = _say_nothing
    say(f"Data: {run.description.line()}")
    keras.utils.set_random_seed(run.seed)
    steps = run.steps_per_epoch()
    with dtype_policy(run.precision), strategy.scope():
        model, lines = run.build_to_train()
    if is_chief:
        begins = [] if folder_lib.has_checkpoint(folder) else lines
        for line in [*_about_splits(run), _about_network(run, model), *begins, *_about_training(run, steps)]:
            say(line)
    began = _began_with(run, folder) if is_chief else {}
    training = _Training(run, model, steps, folder, is_chief, say)
    with _nothing_without_a_step(folder) if is_chief else contextlib.nullcontext(), training.checkpoint:
        if is_chief:
            record = folder_lib.record(run) | {"continued": continued} | began
            files.write_json(folder_lib.run_json(training.checkpoint.folder), record)
        with distribution.report_lost_workers(strategy):
            is_finished = training.fit(strategy)
        if is_chief:
            _write(training, is_finished, folder, ({"continued": continued} if continued else {}) | began)
            for line in _about_end(training, is_finished):
                say(line)
    return model, is_finished


def _about_end(training, is_finished):
    """Returns the lines about an early end, and about the epoch whose weights are kept."""
    ended, best, run = training.ended() if is_finished else None, training.best, training.run
    lines = [f"The training ended early: {ended}."] if ended else []
    if run.keep == "best" and best and best.best:
        epoch, accuracy = best.best["epoch"], best.best[best.monitor]
        what = f"epoch {epoch} of {run.epochs}, robust validation accuracy {100 * accuracy:.1f} %"
        lines.append(f"Kept: {what}." if is_finished else f"The best one so far: {what}.")
    return lines


def _say_nothing(line):
    """Takes the place of `say` on workers other than the chief."""


def _began_with(run, folder):
    """Returns what run.json says of the weights that the training began with."""
    if not run.weights:
        return {}
    if folder_lib.has_checkpoint(folder):
        before = folder_lib.read_record(folder_lib.checkpoints(folder))
        return {"began_with": before.get("began_with")}
    return {"began_with": {"weights": run.weights, "sha256": run.start.sha256, trained_on.KEY: trained_on.before(run)}}


def cost(run: Run) -> str:
    """Estimates the time and memory of a run from a few of its steps, and returns a text for people.

    Args:
        run: the configuration.

    Raises:
        ValueError: see `train`.
    """
    strategy = distribution.strategy(run.strategy)
    if distribution.has_several_workers(strategy):
        raise ValueError("The cost is measured on one machine: leave out TF_CONFIG, or say --strategy=none.")
    steps = run.steps_per_epoch()
    with dtype_policy(run.precision), strategy.scope():
        model, _ = run.build_to_train()
        classifier.freeze(model, run.freeze)
        trainer = _trainer(run, model, steps, run.epochs)
    images, labels = next(iter(run.training_data()))
    share = len(images) // strategy.num_replicas_in_sync  # each replica gets what `train_on_batch` is given
    measured = cost_lib.of_trainer(trainer, images[:share], labels[:share], steps)
    hours = (measured.seconds_per_epoch or 0.0) * run.epochs / 3600
    return f"{measured}; {hours:.1f} hours for {_epochs(run.epochs)} of {steps} steps, without validation"


def _epochs(number):
    return "1 epoch" if number == 1 else f"{number} epochs"


def _about_splits(run):
    """Returns the lines about the images for validation and for the evaluation."""
    if run.validation_split:
        lines = [f"Validation: {run.validation_split}."]
    elif run.validation:
        lines = [f"{run.number_for_validation()} images of {run.train_split} are held out for validation."]
    else:
        lines = ["No images are held out for validation: the last weights are kept."]
    lines += trained_on.for_validation(run)
    lines += [run.extra.line()] if run.extra else []
    try:
        split = run.evaluation_split()
    except ValueError as error:  # it says how to cut one
        cut = run.train_split not in run.source.splits
        return lines if cut else [*lines, str(error)]
    if run.validation_split and run.chooses and data.overlap(run.source, run.validation_split, split):
        lines.append(
            f"`keras-sat evaluate` uses {split} too: its accuracies are too high, because the epoch that is kept was "
            "chosen on these images."
        )
    return lines


def _about_network(run, model):
    return f"Network: {run.model} ({activation_name(run.activation)}), {model.count_params():,} parameters."


def _about_training(run, steps):
    """Returns the lines about the steps, the images that they train on, and the guard."""
    size = f"{run.norm} epsilon {run.epsilon:g} of 255"
    if run.sigma is not None:
        on = f"on images with Gaussian noise of sigma {run.sigma:g} of 255"
    elif run.replays:
        on = f"free adversarial training with {run.replays} replays of each batch, {size}"
    else:
        on = f"on adversarial images of {run.attack()}, {size}"
    loss = f", objective {run.objective}" if run.objective in ("trades", "mart") else ""
    lines = [f"Training: {_epochs(run.epochs)} of {steps} steps, {run.batch_size} images in a step, {on}{loss}."]
    if run.guard_action() != "none":
        probes = f"{run.probe} attacks a sample of the validation images, {PROBES_PER_EPOCH} times an epoch"
        lines.append(f"Guard against catastrophic overfitting: {probes}; the first time it is compiled.")
    elif run.guard is None and run.has_one_step:
        number = run.number_for_validation()
        lines.append(
            f"No guard against catastrophic overfitting, which attacks of one step need: it takes "
            f"{LEAST_PROBED_IMAGES} images for validation, there are {number}."
        )
    return lines


@contextlib.contextmanager
def _nothing_without_a_step(folder):
    """A context that removes the files of a training that failed before its first checkpoint."""
    before = set(os.listdir(folder)) if os.path.isdir(folder) else None
    try:
        yield
    except BaseException:
        if not folder_lib.has_checkpoint(folder):
            for path in (folder_lib.checkpoints(folder), folder_lib.logs(folder)):
                if os.path.basename(path) not in (before or set()):
                    shutil.rmtree(path, ignore_errors=True)
            if before is None and os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
        raise


def _write(training, is_finished, folder, more):
    """Writes the weights, then run.json. If run.json exists, the weights exist too.

    The weights of the best epoch and the last weights are both written: those that are kept as model.weights.h5, the
    others as last.weights.h5 or best.weights.h5. The network has the weights that are kept.
    """
    run, trainer, checkpoint = training.run, training.trainer, training.checkpoint
    best = training.best.best if training.best else None
    keeps_best = run.keep == "best" and best is not None
    last = folder_lib.weights(folder, None if not keeps_best else "last")
    with files.atomic_write(last) as temporary:
        models.weights.save_file(trainer.classifier, temporary)
    if best is not None:
        with files.atomic_write(folder_lib.weights(folder, None if keeps_best else "best")) as temporary:
            shutil.copyfile(training.best.path, temporary)
    if keeps_best:
        models.weights.load_file(trainer.classifier, folder_lib.weights(folder))
    record = folder_lib.record(run) | {"finished": is_finished, "history": _curves(checkpoint.history)}
    record |= {"iterations": checkpoint.done * max(1, run.replays)}
    record |= {"kept": "best" if keeps_best else "last", "best": best, "last": _last(checkpoint.history)}
    if is_finished and training.ended() and len(checkpoint.history) < run.epochs:
        record["ended"] = training.ended()
    record |= more
    files.write_json(folder_lib.run_json(folder), record | {"versions": provenance.versions()})
    checkpoint.keep_last()


def _last(history):
    """Returns the last epoch that was completed, with its metrics; None if none was."""
    return {"epoch": max(history) + 1, **history[max(history)]} if history else None


def _curves(history):
    """Returns {metric: its value after each epoch} from {epoch: {metric: value}}."""
    names = dict.fromkeys(name for logs in history.values() for name in logs)
    return {name: [logs.get(name) for _, logs in sorted(history.items())] for name in names}


def _check_goes_on(run, folder, go_on):
    """Returns the former numbers of epochs of the run in a folder, if it had fewer; [] for a new run.

    Raises:
        ValueError: if the folder contains a run that this run cannot continue.
    """
    is_there = os.path.exists(folder_lib.run_json(folder))
    has_checkpoint = folder_lib.has_checkpoint(folder)
    if not is_there and not has_checkpoint:
        if go_on:
            raise ValueError(f"{folder} contains no run to continue.")
        return []
    if is_there:
        _check_unfinished(run, folder, go_on)
    if not has_checkpoint:
        raise ValueError(
            f"{folder} contains a run without checkpoints, which cannot be continued: choose another output folder."
        )
    before = folder_lib.read_record(folder_lib.checkpoints(folder))
    _check_settings(run, before, folder, go_on)
    _check_data(run, before, folder)
    ended = [before["epochs"]] if before["epochs"] != run.epochs else []
    return [*before.get("continued", []), *ended]


def _check_unfinished(run, folder, go_on):
    before = folder_lib.read_record(folder)
    if "ended" in before:
        raise ValueError(
            f"{folder} contains a run that ended early ({before['ended']}): choose another output folder; "
            f"--weights={folder} starts with its weights."
        )
    if before.get("finished", True) and not (go_on and run.epochs > before["epochs"]):
        raise ValueError(
            f"{folder} contains a finished run: choose another output folder, or continue it for more epochs with "
            "--continue --epochs=N, with a larger N."
        )


def _check_settings(run, before, folder, go_on):
    before = folder_lib.FORMER | before
    ignored = {"dataset", "data_dir", "extra_data"}  # _check_data compares the data themselves
    if go_on and run.epochs > before["epochs"]:
        ignored.add("epochs")
    settings = run.settings()
    names = [name for name in settings if name in before and name not in ignored]
    differing = [f"{name}={before[name]!r}" for name in names if before[name] != settings[name]]
    if differing:
        raise ValueError(
            f"{folder} contains a run with other settings ({', '.join(differing)}): continue it with these, or choose "
            f"another output folder, or remove {folder_lib.checkpoints(folder)}."
        )


def _check_data(run, before, folder):
    changed = data.Description.of(before["data"]).differences(run.description) if "data" in before else []
    if before.get("data", {}).get("extra") != (run.extra.fingerprint() if run.extra else None):
        changed.append("other extra images")
    if changed:
        raise ValueError(
            f"The data of the run in {folder} changed: {'; '.join(changed)}. Restore them, or choose another output "
            "folder."
        )


@dataclasses.dataclass(frozen=True)
class _Phase:
    """Epochs, from `first` up to `last` (not included), in which the same layers are trained."""

    freeze: str | None
    first: int
    last: int


def _phases(run):
    if not run.head_epochs:
        return [_Phase(run.freeze, 0, run.epochs)]
    return [_Phase("backbone", 0, run.head_epochs), _Phase(run.freeze, run.head_epochs, run.epochs)]


class _Training:
    """The training of a run, in one or two phases, each with its own optimizer."""

    def __init__(
        self, run: Run, model: keras.Model, steps: int, folder: str, is_chief: bool, say: Callable[[str], object]
    ) -> None:
        self.run, self.model, self.steps, self.folder, self.say = run, model, steps, folder, say
        self.best = _best_weights(run, folder)
        self.guard = _guard(run, steps)
        self.stateful = [callback for callback in (self.guard, self.best) if callback]
        self.checkpoint = Checkpoint(
            folder_lib.checkpoints(folder), steps, run.checkpoint_every, is_chief=is_chief, callbacks=self.stateful
        )
        self.history_file = HistoryFile(folder_lib.history(folder), self.checkpoint)
        self.logs = folder_lib.logs(folder)
        self.averaged = AveragedWeights()
        self.progress: Progress | None = None
        self.trainer: Any = None

    def fit(self, strategy: tf.distribute.Strategy) -> bool:
        """Trains from the last checkpoint on. Returns whether the training ran to its end."""
        newest = self.checkpoint.newest_step(strategy)  # a checkpoint is restored in its own phase
        if newest:
            done = f"{newest} of {self.run.epochs * self.steps} steps are done"
            self.say(f"Continuing the run in {self.folder}: {done}.")
        self.say("Compiling copies of the network for the attacks (up to a minute) ...")
        phases = [phase for phase in _phases(self.run) if newest <= phase.last * self.steps]
        for phase in phases:
            with dtype_policy(self.run.precision), strategy.scope():
                classifier.freeze(self.model, phase.freeze)
                self.trainer = self._trainer(phase)
            if self.best:
                self.best.patience = self.run.patience if phase.last == self.run.epochs else None
            if phase is phases[0]:
                self.checkpoint.restore(self.trainer)
            elif self.best:
                self.best.reset_patience()
            if not self._fit_phase(phase):
                return False
            if self.ended():
                break
        return True

    def _trainer(self, phase):
        is_head = phase.last < self.run.epochs  # the first of two phases
        constant = self.run.learning_rate if is_head else None
        return _trainer(self.run, self.model, self.steps, phase.last - phase.first, constant)

    def ended(self) -> str | None:
        """Returns why the training ended before its last epoch; None if it did not."""
        if self.guard and self.guard.action == "stop" and self.guard.collapses:
            return f"catastrophic overfitting at step {self.guard.collapses[-1]}"
        if self.best and self.best.stopped_epoch:
            return f"no larger robust validation accuracy for {_epochs(self.run.patience)}"
        return None

    def _fit_phase(self, phase):
        """Trains up to the end of a phase. Returns whether it was reached."""
        run, checkpoint, trainer = self.run, self.checkpoint, self.trainer
        strategy = trainer.distribute_strategy
        batches = functools.partial(run.training_data, checkpoint.done)
        # With several replicas, each worker reads its share of the files.
        has_replicas = strategy.num_replicas_in_sync > 1
        try:
            if checkpoint.epoch < phase.last:
                trainer.fit(
                    strategy.distribute_datasets_from_function(batches) if has_replicas else batches(),
                    validation_data=run.validation_data(),
                    epochs=phase.last,
                    steps_per_epoch=self.steps,
                    initial_epoch=checkpoint.epoch,
                    shuffle=False,  # the dataset shuffles
                    callbacks=self._callbacks(),
                    verbose=0,
                )
        except KeyboardInterrupt:
            if not checkpoint.done:
                raise
            self.averaged.on_test_end()
            averaging.assign_averages(trainer)
            if self.best:
                self.best.take_back()
            return False
        finally:
            if self.progress:
                self.progress.close()
        averaging.assign_averages(trainer)
        return True

    def _callbacks(self):
        """Returns the callbacks of `fit`: those with a state come before the checkpoint."""
        averaged = [self.averaged] if self.run.ema else []
        if not self.checkpoint.is_chief:
            return [*averaged, *self.stateful, self.checkpoint]
        board = keras.callbacks.TensorBoard(self.logs, write_graph=False)
        self.progress = Progress(self.run.epochs, self.steps, self.run.batch_size, done=self.checkpoint.done)
        return [*averaged, *self.stateful, self.checkpoint, self.history_file, board, self.progress]


def _best_weights(run, folder):
    """Returns the callback that writes the weights of the best epoch; None for a run without validation."""
    if not run.validates:
        return None
    return BestWeights(folder_lib.best_weights(folder), models.weights.save_file, patience=run.patience)


def _guard(run, steps):
    """Returns the guard against catastrophic overfitting; None if the run has none."""
    if run.guard_action() == "none":
        return None
    return CatastrophicOverfittingGuard(
        run.probed_data(),
        attacks.from_name(run.probe, run.ball()),
        every=max(1, steps // PROBES_PER_EPOCH),
        action=run.guard_action(),
        patience=2,
        beyond=PROBED_BEYOND,
    )


def _trainer(run, model, steps, epochs, constant_rate=None):
    """Returns a compiled AdversarialModel.

    Args:
        run: the configuration.
        model: the network.
        steps: number of steps in an epoch.
        epochs: number of epochs, for the schedule of the learning rate.
        constant_rate: a constant learning rate, in place of the schedule.
    """
    trainer = AdversarialModel(
        model,
        run.attack(),
        run.validation_attack(),
        run.attack_batch_norm,
        seed=run.seed,
        attack_precision=run.attack_precision,
        objective=run.training_objective(),
        weight_perturbation=run.weight_perturbation(),
        gradient_alignment=run.gradient_alignment(),
    )
    rate = constant_rate or optimizers.learning_rate(run, steps, epochs)
    trainer.compile(optimizers.optimizer(run, model, steps, rate), optimizers.loss(run), metrics=["accuracy"])
    return trainer
