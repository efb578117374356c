"""Robust accuracy of the embedded ResNet8-silu where the logits that an attack sees are multiplied by a number.

    python benchmarks/large_logits.py [--images=300]

It prints the table of docs/attacks.md: PGD-20 with each loss, in float32 and float16, and APGD with 30 steps.
"""

import argparse
import functools

import numpy as np
import tensorflow as tf

from keras_sat import data, losses, models
from keras_sat.attacks import APGD, PGD, LinfBall
from keras_sat.models import classifier

BALL, SCALES = LinfBall(25.5), (1, 100, 1000)
LOSSES = ("cross_entropy", "log_cross_entropy", "margin")


def robust(model, images, labels, attack, scale, precision="float32"):
    """Returns the robust accuracy in % if the attack sees the logits multiplied by a number, in a precision."""
    attacked = classifier.in_precision(model, precision)
    adversarial = attack(lambda x: scale * tf.cast(attacked(x), tf.float32), images, labels, seed=0)
    return 100 * np.mean(losses.is_correct(labels, model(adversarial)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    args = parser.parse_args()
    ((images, labels),) = data.load("fashion_mnist_mini", f"test[:{args.images}]", args.images).as_numpy_iterator()
    model = models.ResNet8(activation="silu", weights="sat-fashion-mnist")
    measured = functools.partial(robust, model, images, labels)
    print(f"clean: {100 * np.mean(losses.is_correct(labels, model(images))):.1f} %")
    for name in LOSSES:
        attack = PGD(BALL, 20, keep="first", loss=getattr(losses, name))
        pairs = [[measured(attack, scale, one) for one in ("float32", "mixed_float16")] for scale in SCALES]
        print(f"| `losses.{name}` | {' | '.join(f'{full:.1f} / {half:.1f}' for full, half in pairs)} |", flush=True)
    for name in LOSSES[:2]:
        attack = APGD(BALL, 30, loss=getattr(losses, name))
        print(f"APGD with 30 steps, {name}: {', '.join(f'{measured(attack, scale):.1f} %' for scale in (1, 1000))}")


if __name__ == "__main__":
    main()
