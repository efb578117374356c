"""Prints the time of a PGD-1 training step with each activation, relative to relu, for the network of the study.

    python benchmarks/activations.py [--model ResNet8] [--batch_size 128] [--repeats 30]

The steps run in turns, so that a slow moment of the machine affects all of them. Medians are compared.
"""

import argparse
import functools
import statistics

import keras
import numpy as np
from race import race

import keras_sat
from keras_sat.attacks import PGD, LinfBall

ACTIVATIONS = [name for name in keras_sat.activations.ACTIVATIONS if name != "swish"]  # swish is silu


def trainer(model, activation):
    """Returns a compiled trainer of a network for images of 28 x 28 x 1 pixels."""
    network = keras_sat.models.BUILDERS[model](activation=activation, input_shape=(28, 28, 1), classes=10)
    made = keras_sat.training.AdversarialModel(network, PGD(LinfBall(25.5), steps=1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.SGD(0.1, 0.9, nesterov=True), loss, jit_compile=False)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet8")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch_size, 28, 28, 1)).astype(np.float32)
    labels = rng.integers(0, 10, args.batch_size)
    trainers = {name: trainer(args.model, name) for name in ACTIVATIONS}
    steps = {name: functools.partial(made.train_on_batch, images, labels) for name, made in trainers.items()}
    seconds = race(steps, args.repeats)
    relu = statistics.median(seconds["relu"])
    print(f"{'activation':<22}{'median ms':>10}{'min..max ms':>16}{'over relu':>11}")
    for name, times in seconds.items():
        median, spread = statistics.median(times), f"{1e3 * min(times):.0f}..{1e3 * max(times):.0f}"
        print(f"{name:<22}{1e3 * median:>10.1f}{spread:>16}{median / relu:>11.2f}")


if __name__ == "__main__":
    main()
