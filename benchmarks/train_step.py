"""Prints the time of a PGD-k training step relative to a plain one: ResNet-50, silu, float32, 64 px, batch 32.

    python benchmarks/train_step.py [--steps 1 2 10] [--image_size 64] [--batch_size 32] [--repeats 10]

If a forward pass costs F, a plain step costs 3F and an input gradient 2F. So a PGD-k step costs 1 + 2k/3 plain steps if
the attack's passes are as efficient as the training's. In the rows "bf16", only the attack computes in bfloat16. The
steps run in turns, so that a slow moment of the machine affects all of them. Medians are compared. Before, the logits
and input gradients of the folded network that is attacked are compared with those of the model.
"""

import argparse
import functools
import statistics

import keras
import numpy as np
import tensorflow as tf
from race import race

import keras_sat
from keras_sat.attacks import PGD, LinfBall, value_and_gradient
from keras_sat.models import folding
from keras_sat.training import AdversarialModel


def compiled(image_size, steps):
    """Returns {name: compiled trainer}: plain Keras training, and PGD-k training for each k, in two precisions."""

    def model():
        return keras_sat.models.ResNet50(input_shape=(image_size, image_size, 3))

    trainers = {"plain": model()}
    for k in steps:
        attack = PGD(LinfBall(4), steps=k)
        trainers[f"PGD-{k}"] = AdversarialModel(model(), attack)
        trainers[f"PGD-{k} bf16"] = AdversarialModel(model(), attack, attack_precision="mixed_bfloat16")
    for trainer in trainers.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.1, 0.9, nesterov=True), loss, jit_compile=False)
    return trainers


def agreement(model, images, labels):
    """Returns the largest differences of logits and input gradients between folded copies and the model.

    They are relative to the range of the values: [[logits, gradients] in float32, [logits, gradients] in bfloat16].
    """
    images, labels = tf.constant(images), tf.constant(labels, tf.int32)
    differences = []
    for precision in (None, "mixed_bfloat16"):
        functions = (model, folding.Folding(model, precision).bind())
        one, other = (value_and_gradient(f, keras_sat.losses.cross_entropy, images, labels)[1:] for f in functions)
        differences.append([float(tf.reduce_max(tf.abs(a - b)) / np.ptp(a)) for a, b in zip(one, other)])
    return differences


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 10])
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch_size, args.image_size, args.image_size, 3)).astype(np.float32)
    labels = rng.integers(0, 1000, args.batch_size)
    candidates = compiled(args.image_size, args.steps)
    for name, (logits, gradients) in zip(("float32", "bf16"), agreement(candidates["plain"], images, labels)):
        print(f"folded, {name}: logits differ by {logits:.1e} of their range, input gradients by {gradients:.1e}")
    steps = {name: functools.partial(one.train_on_batch, images, labels) for name, one in candidates.items()}
    seconds = race(steps, args.repeats)
    plain = statistics.median(seconds["plain"])
    print(f"{'step':<12}{'median s':>9}{'min..max s':>14}{'over plain':>12}{'1 + 2k/3':>10}")
    for name, times in seconds.items():
        median, spread = statistics.median(times), f"{min(times):.2f}..{max(times):.2f}"
        floor = 1 if name == "plain" else 1 + 2 * int(name.split()[0].removeprefix("PGD-")) / 3
        print(f"{name:<12}{median:>9.2f}{spread:>14}{median / plain:>12.2f}{floor:>10.2f}")


if __name__ == "__main__":
    main()
