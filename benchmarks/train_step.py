"""Prints what a PGD-k training step costs over a plain one: ResNet-50, silu, float32, 64 px, batch 32, in one run.

    python benchmarks/train_step.py [--steps 1 2] [--image_size 64] [--batch_size 32] [--repeats 10]

With F the cost of a forward pass, a plain step costs 3F and an input gradient 2F: PGD-k training over plain is at least
1 + 2k/3 where the attack's passes cost as much as the training's (inference-mode batch norm makes them cheaper). The
steps take turns, so that a slow moment of the machine meets all of them; medians are compared.
"""

import argparse
import statistics
import time

import keras
import numpy as np

import keras_sat
from keras_sat.attacks import PGD, LinfBall


def trainers(image_size, steps):
    """Returns {name: compiled trainer}: Keras' own plain step, and PGD-k for each k."""

    def model():
        return keras_sat.models.ResNet50(input_shape=(image_size, image_size, 3))

    found = {"plain": model()}
    for k in steps:
        found[f"PGD-{k}"] = keras_sat.training.AdversarialModel(model(), PGD(LinfBall(4), steps=k))
    for trainer in found.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.1, 0.9, nesterov=True), loss, jit_compile=False)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch_size, args.image_size, args.image_size, 3)).astype(np.float32)
    labels = rng.integers(0, 1000, args.batch_size)
    candidates = trainers(args.image_size, args.steps)
    seconds = {name: [] for name in candidates}
    for repeat in range(args.repeats + 2):  # two to warm up: tracing, and oneDNN's choice of kernels
        for name, trainer in candidates.items():
            start = time.perf_counter()
            trainer.train_on_batch(images, labels)
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain"])
    print(f"{'step':<8}{'median s':>9}{'min..max s':>14}{'over plain':>12}{'1 + 2k/3':>10}")
    for name, times in seconds.items():
        median, spread = statistics.median(times), f"{min(times):.2f}..{max(times):.2f}"
        floor = 1 if name == "plain" else 1 + 2 * int(name.removeprefix("PGD-")) / 3
        print(f"{name:<8}{median:>9.2f}{spread:>14}{median / plain:>12.2f}{floor:>10.2f}")


if __name__ == "__main__":
    main()
