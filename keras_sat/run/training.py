"""Trains a `Run` and writes its folder. A run that was killed or interrupted continues from its last checkpoint."""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable

import keras

from keras_sat import attacks, data, files, models, provenance
from keras_sat.run import folder as folder_lib
from keras_sat.run.configuration import Run, dtype_policy
from keras_sat.training import AdversarialModel, AveragedWeights, Checkpoint, distribution, schedules
from keras_sat.typing import Path

NO_WEIGHT_DECAY = ("gamma", "beta", "bias")


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
        say: a function that is called with lines of text: a description of the data, and whether a run is continued.
            Default: a function that does nothing.

    Returns:
        The trained keras.Model, and whether the training ran to its end.

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
    if is_chief:
        say(run.description.line())
    if is_chief and folder_lib.has_checkpoint(folder):
        say(f"Going on with the run in {folder}.")
    keras.utils.set_random_seed(run.seed)
    steps = int(run.load_data("train", training=True).cardinality())
    with dtype_policy(run.precision), strategy.scope():
        trainer = _trainer(run, steps)
    checkpoint = Checkpoint(folder_lib.checkpoints(folder), steps, run.checkpoint_every, is_chief=is_chief)
    with _nothing_without_a_step(folder) if is_chief else contextlib.nullcontext(), checkpoint:
        if is_chief:
            record = folder_lib.record(run) | {"continued": continued}
            files.write_json(folder_lib.run_json(checkpoint.folder), record)
        with distribution.report_lost_workers(strategy):
            is_finished = _fit(run, trainer, checkpoint, steps, folder_lib.logs(folder))
        if is_chief:
            _write(run, trainer, checkpoint, is_finished, folder, continued)
    return trainer.classifier, is_finished


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


def _write(run, trainer, checkpoint, is_finished, folder, continued):
    """Writes the weights, then run.json. If run.json exists, the weights exist too."""
    with files.atomic_write(folder_lib.weights(folder)) as temporary:
        models.weights.save_file(trainer.classifier, temporary)
    record = folder_lib.record(run) | {"attack_batch_norm": trainer.attack_batch_norm, "finished": is_finished}
    record |= {"iterations": int(trainer.optimizer.iterations.numpy()), "history": _curves(checkpoint.history)}
    record |= {"continued": continued} if continued else {}
    files.write_json(folder_lib.run_json(folder), record | {"versions": provenance.versions()})
    checkpoint.keep_last()


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
            raise ValueError(f"{folder} holds no run to go on with.")
        return []
    if is_there:
        _check_unfinished(run, folder, go_on)
    if not has_checkpoint:
        raise ValueError(f"{folder} holds a run without checkpoints to go on from: choose another output folder.")
    before = folder_lib.read_record(folder_lib.checkpoints(folder))
    _check_settings(run, before, folder, go_on)
    _check_data(run, before, folder)
    ended = [before["epochs"]] if before["epochs"] != run.epochs else []
    return [*before.get("continued", []), *ended]


def _check_unfinished(run, folder, go_on):
    before = folder_lib.read_record(folder)
    if before.get("finished", True) and not (go_on and run.epochs > before["epochs"]):
        raise ValueError(
            f"{folder} holds a finished run already: choose another output folder, or go on with it for more epochs, "
            "--continue --epochs=N, with a larger N."
        )


def _check_settings(run, before, folder, go_on):
    ignored = {"dataset", "data_dir"}  # _check_data compares the data themselves
    if go_on and run.epochs > before["epochs"]:
        ignored.add("epochs")
    settings = run.settings()
    names = [name for name in settings if name in before and name not in ignored]
    differing = [f"{name}={before[name]!r}" for name in names if before[name] != settings[name]]
    if differing:
        raise ValueError(
            f"{folder} holds a run of other settings ({', '.join(differing)}): go on with these, or choose another "
            f"output folder, or remove {folder_lib.checkpoints(folder)}."
        )


def _check_data(run, before, folder):
    changed = data.Description.of(before["data"]).differences(run.description) if "data" in before else []
    if changed:
        raise ValueError(
            f"The data of the run in {folder} changed: {'; '.join(changed)}. Restore them, or choose another output "
            "folder."
        )


def _fit(run, trainer, checkpoint, steps, logs):
    """Trains from the last checkpoint on. Returns whether the training ran to its end."""
    done = checkpoint.restore(trainer)
    if done == steps * run.epochs:  # the run was killed after its last step
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
        return True
    batches = functools.partial(run.training_data, done)
    strategy, averaged = trainer.distribute_strategy, AveragedWeights()
    has_replicas = strategy.num_replicas_in_sync > 1  # with several replicas, each worker reads its share of the files
    try:
        trainer.fit(
            strategy.distribute_datasets_from_function(batches) if has_replicas else batches(),
            validation_data=run.validation_data(),
            epochs=run.epochs,
            steps_per_epoch=steps,
            initial_epoch=done // steps,
            shuffle=False,  # the dataset shuffles
            callbacks=[
                checkpoint,
                *([averaged] if run.ema else []),
                *([keras.callbacks.TensorBoard(logs, write_graph=False)] if checkpoint.is_chief else []),
            ],
            verbose=0 if not checkpoint.is_chief else "auto" if sys.stdout.isatty() else 2,
        )
    except KeyboardInterrupt:
        if not checkpoint.done:
            raise
        averaged.on_test_end()
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
        return False
    return True


def _trainer(run, steps):
    """Returns a compiled AdversarialModel. `steps` is the number of steps in an epoch, for the schedule."""
    model = run.build()
    trainer = AdversarialModel(
        model,
        run.attack(),
        attacks.PGD(run.ball(), steps=10),
        seed=run.seed,
        attack_precision=run.attack_precision,
        objective=run.training_objective(),
        weight_perturbation=run.weight_perturbation(),
    )
    trainer.compile(_optimizer(run, model, steps), _loss(run), metrics=["accuracy"])
    return trainer


def _loss(run):
    if run.has_soft_labels:
        return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=run.label_smoothing)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _optimizer(run, model, steps):
    options = {"global_clipnorm": run.clip_norm}
    if run.ema:
        options |= {"use_ema": True, "ema_momentum": run.ema, "ema_overwrite_frequency": None}
    rate = _learning_rate(run, steps * max(1, run.replays))  # each replay is an iteration of the optimizer
    if run.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=run.weight_decay, **options)
        optimizer.exclude_from_weight_decay(var_names=NO_WEIGHT_DECAY)
        return optimizer
    for layer in model.layers:
        if getattr(layer, "kernel", None) is not None and run.weight_decay:
            layer.kernel.regularizer = keras.regularizers.L2(run.weight_decay / 2)
    return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **options)


def _learning_rate(run, steps):
    warmup = run.epochs / 5 if run.warmup_epochs is None else run.warmup_epochs
    warmup = min(int(warmup * steps), run.epochs * steps - 1)
    if run.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            run.warmup_from, run.epochs * steps - warmup, warmup_target=run.learning_rate, warmup_steps=warmup
        )
    boundaries = [int(epoch) * steps for epoch in run.decay_epochs.split(",")]
    return schedules.StepDecay(run.learning_rate, boundaries, warmup_steps=warmup, warmup_from=run.warmup_from)
