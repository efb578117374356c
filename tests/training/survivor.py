"""Trains a small network in children of this process, and kills them: survivor.py FOLDER DEVICES SIGNAL STEP STEP ...

Each child continues from the checkpoints in FOLDER/checkpoints. It gets SIGNAL after the given step; the last child
trains to the end and writes FOLDER/weights.npz. TensorFlow is imported once, and starts only in the children.
"""

import os
import resource
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_sat import data
from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, Checkpoint, distribution

STEPS, EPOCHS = 12, 3


class Reporter(keras.callbacks.Callback):
    """Reports each step to the parent. After step FULL_AT, no file can grow, as if the disk were full."""

    def __init__(self, pipe, full_at):
        super().__init__()
        self.pipe, self.full_at, self.seen = pipe, full_at, 0

    def on_train_batch_end(self, batch, logs=None):
        if logs:
            self.seen += 1
            os.write(self.pipe, b".")
        if self.seen == self.full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


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
    with Checkpoint(os.path.join(folder, "checkpoints"), STEPS, every=5) as checkpoint:
        done = checkpoint.restore(trainer)
        options = {"training": True, "epochs": EPOCHS, "first_step": done}
        trainer.fit(
            data.load("fashion_mnist_mini", f"train[:{STEPS * 20}]", 20, **options),
            steps_per_epoch=STEPS,
            epochs=EPOCHS,
            initial_epoch=done // STEPS,
            callbacks=[Reporter(pipe, full_at), checkpoint],
            verbose=0,
        )
    np.savez(os.path.join(folder, "weights.npz"), *trainer.classifier.get_weights())


def child(folder, devices, number=None, after=None):
    """Runs one training, which gets the signal `number` after the given step. Returns its exit status."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        full_at = after if number == "full" else None
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
    seen = 0
    while os.read(reading, 1):
        seen += 1
        if seen == after and number != "full":
            os.kill(pid, number)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder, devices, name, *steps):
    number = name if name == "full" else getattr(signal, name)
    for step in map(int, steps):
        print(child(folder, int(devices), number, step), flush=True)
    print(child(folder, int(devices)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
