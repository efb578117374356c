"""Trains a small network in children of this process, and kills them.

Each line of standard input is a run: FOLDER DEVICES SIGNAL EVENT EVENT ..., separated by tabs. The answer is the exit
status of each child, after what it printed, and the line "end". TensorFlow is imported once, and starts only in the
children.

Each child continues from the checkpoints in FOLDER/checkpoints. It gets SIGNAL after the given event: a number of
steps, or "v" and a number of batches of validation, or "e" and a number of epochs whose results were seen by all
callbacks before the Checkpoint. The last child trains to the end and writes FOLDER/weights.npz, and what its callbacks
know: FOLDER/seen.json.
"""

import json
import os
import resource
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_sat import data
from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import (
    AdversarialModel,
    AveragedWeights,
    BestWeights,
    CatastrophicOverfittingGuard,
    Checkpoint,
    HistoryFile,
    distribution,
)

STEPS, EPOCHS = 12, 3


class Reporter(keras.callbacks.Callback):
    """Reports events to the parent. After step FULL_AT, no file can grow, as if the disk were full."""

    def __init__(self, pipe, full_at):
        super().__init__()
        self.pipe, self.full_at, self.seen = pipe, full_at, 0

    def on_train_batch_end(self, batch, logs=None):
        if logs:
            self.seen += 1
            os.write(self.pipe, b".")
        if self.seen == self.full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    def on_test_batch_end(self, batch, logs=None):
        os.write(self.pipe, b"v")

    def on_epoch_end(self, epoch, logs=None):
        os.write(self.pipe, b"e")


def network():
    layers = [keras.Input((28, 28, 1)), keras.layers.Rescaling(2 / 255, -1.0)]
    layers += [keras.layers.Conv2D(8, 5, strides=4), keras.layers.BatchNormalization(synchronized=True)]
    layers += [
        keras.layers.Activation("silu"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers)


def train(folder, devices, pipe, full_at):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * devices
    )
    keras.utils.set_random_seed(0)
    with distribution.strategy("mirrored" if devices > 1 else "none").scope():
        trainer = AdversarialModel(network(), PGD(LinfBall(8), steps=1))
        rate = keras.optimizers.schedules.CosineDecay(0.01, STEPS * EPOCHS)
        optimizer = keras.optimizers.AdamW(rate, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=None)
        trainer.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    held_out = data.load("fashion_mnist_mini", "test[:60]", 20)
    guard = CatastrophicOverfittingGuard(held_out, PGD(LinfBall(8), steps=1), every=7, collapse=1e-9)
    best = BestWeights(os.path.join(folder, "best.weights.h5"), keras.Model.save_weights, patience=EPOCHS)
    with Checkpoint(os.path.join(folder, "checkpoints"), STEPS, every=5, callbacks=[guard, best]) as checkpoint:
        done = checkpoint.restore(trainer)
        options = {"training": True, "epochs": EPOCHS, "first_step": done}
        trainer.fit(
            data.load("fashion_mnist_mini", f"train[:{STEPS * 20}]", 20, **options),
            validation_data=held_out,
            steps_per_epoch=STEPS,
            epochs=EPOCHS,
            initial_epoch=checkpoint.epoch,
            callbacks=[
                AveragedWeights(),
                guard,
                best,
                Reporter(pipe, full_at),
                checkpoint,
                HistoryFile(os.path.join(folder, "history.csv"), checkpoint),
            ],
            verbose=0,
        )
    seen = {"best": best.best, "probes": list(guard.probes.items())}
    with open(os.path.join(folder, "seen.json"), "w", encoding="utf-8") as file:
        json.dump(seen, file)
    np.savez(os.path.join(folder, "weights.npz"), *trainer.classifier.get_weights())


def child(folder, devices, number=None, after=None):
    """Runs one training, which gets the signal `number` after the given event. Returns its exit status."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        full_at = int(after) if number == "full" else None
        try:
            train(folder, devices, writing, full_at)
        except OSError as error:
            print(error, flush=True)
            os._exit(3)
        except SystemExit as exit:
            os._exit(exit.code)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    os.close(writing)
    seen = {".": 0, "v": 0, "e": 0}
    while event := os.read(reading, 1).decode():
        seen[event] += 1
        if number not in (None, "full") and f"{event}{seen[event]}".removeprefix(".") == after:
            os.kill(pid, number)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(folder, devices, name, *events):
    number = name if name == "full" else getattr(signal, name)
    for event in events:
        print(child(folder, int(devices), number, event), flush=True)
    print(child(folder, int(devices)), flush=True)


if __name__ == "__main__":
    while line := sys.stdin.readline():
        run(*line.rstrip("\n").split("\t"))
        print("end", flush=True)
