"""Prints what a PGD-k training step costs over a plain one: ResNet-50, silu, float32, 64 px, batch 32, in one run.

    python benchmarks/train_step.py [--steps 1 2 10] [--image_size 64] [--batch_size 32] [--repeats 10]

With F the cost of a forward pass, a plain step costs 3F and an input gradient 2F: PGD-k training over plain is 1 + 2k/3
where the attack's passes are as efficient as the training's. Rows "bf16" compute the attack alone in bfloat16. The
steps take turns, so that a slow moment of the machine meets all of them; medians are compared. First the folded network
that the attack sees is compared with the model: logits and input gradients.
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


def trainers(image_size, steps):
    """Returns {name: compiled trainer}: Keras' own plain step, and PGD-k for each k, in two precisions."""

    def model():
        return keras_sat.models.ResNet50(input_shape=(image_size, image_size, 3))

    found = {"plain": model()}
    for k in steps:
        attack = PGD(LinfBall(4), steps=k)
        found[f"PGD-{k}"] = keras_sat.training.AdversarialModel(model(), attack)
        found[f"PGD-{k} bf16"] = keras_sat.training.AdversarialModel(model(), attack, attack_precision="mixed_bfloat16")
    for trainer in found.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.1, 0.9, nesterov=True), loss, jit_compile=False)
    return found


def agreement(model, images, labels):
    """Returns the largest differences of logits and input gradients, folded from unfolded, over their ranges."""
    images, labels = tf.constant(images), tf.constant(labels, tf.int32)
    found = []
    for precision in (None, "mixed_bfloat16"):
        functions = (model, folding.Folding(model, precision).bind())
        one, other = (value_and_gradient(f, keras_sat.losses.cross_entropy, images, labels)[1:] for f in functions)
        found.append([float(tf.reduce_max(tf.abs(a - b)) / np.ptp(a)) for a, b in zip(one, other)])
    return found


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
    candidates = trainers(args.image_size, args.steps)
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
