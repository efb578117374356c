"""Prints what a run costs beyond its steps: checkpoints, resuming, validation. ResNet-50, silu, 64 px, batch 32.

    python benchmarks/training_run.py [--image_size 64] [--batch_size 32] [--steps 8]

A ResNet-50 is trained by PGD-1, SGD with momentum, and averaged weights. Then its training is resumed from the last
checkpoint. All figures are of one process, and each is printed beside a training step:

- a checkpoint: the time that a step with a save and the step after it take beyond two steps of the resumed run, which
  saves nothing there (the disk is still at work in the step after), medians, and its share of 500 steps, which is the
  default of `training.Checkpoint`;
- a resumed run: `restore`, and the first step, which is compiled, beside the first step of a new run;
- validation: the time for 500 images under the PGD-10 of `keras-sat train`, and its share of an epoch, by the
  number of images in the epoch.
"""

import argparse
import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import keras_sat
from keras_sat.attacks import PGD, LinfBall
from keras_sat.training import AdversarialModel, AveragedWeights, Checkpoint

EVERY = 500  # steps, the default of Checkpoint
VALIDATED = 500  # images, as in `keras-sat train`
VALIDATION = 5  # batches that are timed; the first one is compiled
EPOCHS = (10_000, 50_000, 1_281_167)  # images: fashion_mnist_mini, CIFAR-10, ImageNet


class Times(keras.callbacks.Callback):
    """Notes the seconds of each training step, with what callbacks do after it, and of each batch of validation."""

    def __init__(self):
        super().__init__()
        self.steps, self.validated = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._mark = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if logs:  # not skipped
            self.steps.append(now - self._mark)
        self._mark = now

    def on_test_batch_begin(self, batch, logs=None):
        self._mark = time.perf_counter()

    def on_test_batch_end(self, batch, logs=None):
        self.validated.append(time.perf_counter() - self._mark)


def trainer(image_size):
    model = keras_sat.models.ResNet50(input_shape=(image_size, image_size, 3))
    made = AdversarialModel(model, PGD(LinfBall(4), steps=1), PGD(LinfBall(4), steps=10))
    options = {"use_ema": True, "ema_momentum": 0.999, "ema_overwrite_frequency": None}
    optimizer = keras.optimizers.SGD(0.01, 0.9, nesterov=True, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return made


def batches(number, image_size, batch_size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number * batch_size, image_size, image_size, 3)).astype(np.uint8)
    dataset = tf.data.Dataset.from_tensor_slices((images, rng.integers(0, 1000, len(images)))).batch(batch_size)
    return dataset.prefetch(1)


def train(folder, steps, args, epochs, every, is_validated=False):
    """Trains up to a number of epochs. Returns the times, and the seconds of `restore`."""
    times = Times()
    with Checkpoint(folder, steps, every=every) as checkpoint:
        subject, start = trainer(args.image_size), time.perf_counter()
        done = checkpoint.restore(subject)
        restoring = time.perf_counter() - start
        left = batches(steps * epochs - done, args.image_size, args.batch_size).filter(lambda *_: True)
        options = {"steps_per_epoch": steps, "epochs": epochs, "initial_epoch": checkpoint.epoch, "verbose": 0}
        if is_validated:
            options["validation_data"] = batches(VALIDATION, args.image_size, args.batch_size)
        subject.fit(left, shuffle=False, callbacks=[AveragedWeights(), checkpoint, times], **options)
    return times, restoring


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="steps without a save, and as many with one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fresh, _ = train(folder, 2 * args.steps + 1, args, epochs=1, every=2)  # every other step is saved
        saved, bare = fresh.steps[1::2], fresh.steps[2::2]  # the first step is compiled
        resumed, restoring = train(folder, 2 * args.steps + 1, args, epochs=2, every=EVERY, is_validated=True)
    steady = resumed.steps[1:-1]  # the first step is compiled, after the last one there is a save
    step = statistics.median(steady)
    save = statistics.median(map(sum, zip(saved, bare))) - 2 * step
    validation = statistics.median(resumed.validated[1:]) * VALIDATED / args.batch_size
    first, again = fresh.steps[0], restoring + resumed.steps[0]
    print(f"a step: {step:.2f} s ({min(steady):.2f}..{max(steady):.2f})")
    print(f"a save: {save:.2f} s, {save / step:.2f} of a step, {100 * save / (EVERY * step):.2f} % of {EVERY} steps")
    print(f"a new run's first step: {first:.1f} s, {first / step:.0f} steady steps")
    print(
        f"a resumed run's: {resumed.steps[0]:.1f} s, and {restoring:.1f} s to restore; both: {again / first:.2f} of it"
    )
    print(f"validation of {VALIDATED} images: {validation:.1f} s, {validation / step:.0f} steps")
    for images in EPOCHS:
        epoch = images / args.batch_size * step
        print(f"  of an epoch of {images} images: {100 * validation / (validation + epoch):.1f} %")


if __name__ == "__main__":
    main()
