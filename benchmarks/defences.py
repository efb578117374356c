"""Attacks a robust network behind a step without gradient, with and without BPDA.

    python benchmarks/defences.py [--images=150] [--steps=40] [--queries=500] [--epsilon=25.5] [--only JPEG ...]

The network is the embedded ResNet8-silu. Before it comes a quantiser or a JPEG step. Without BPDA, the step has the
gradient that PyTorch gives to rounding: zero. Each attack is one row of an evaluation.
"""

import argparse
import io
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_sat import data, models
from keras_sat.attacks import AutoAttack, LinfBall, Transfer, bpda
from keras_sat.evaluation import evaluate


def quantiser(images):
    """Returns the images in nine levels."""
    return tf.round(images / 32) * 32


def jpeg(images):
    """Returns the images after JPEG of quality 40, by Pillow."""

    def of_arrays(batch):
        return np.stack([_jpeg(image) for image in batch])

    return tf.numpy_function(of_arrays, [images], tf.float32)


def _jpeg(image):
    file, levels = io.BytesIO(), np.clip(image.round(), 0, 255).astype(np.uint8)
    Image.fromarray(levels.squeeze()).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file), np.float32).reshape(image.shape)


def rows(defence, model, ball, args):
    """Returns {title: (network, attacks)}: the network with and without BPDA."""
    ensemble = AutoAttack(ball, steps=args.steps, queries=args.queries)
    short = AutoAttack(ball, "short", steps=args.steps)
    flat, through = bpda(defence, lambda x: 0 * x), bpda(defence)
    with_bpda = {"AutoAttack": ensemble, "from the bare network": Transfer(model, short)}
    return {
        "gradient zero": (lambda x: model(flat(x)), {"AutoAttack": ensemble}),
        "BPDA": (lambda x: model(through(x)), with_bpda),
    }


DEFENCES = {"quantiser": quantiser, "JPEG": jpeg}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--epsilon", type=float, default=25.5, help="L-inf, in pixels 0..255")
    parser.add_argument("--only", nargs="+", choices=DEFENCES, default=list(DEFENCES))
    args = parser.parse_args()
    model = models.ResNet8(weights="sat-fashion-mnist")
    test = data.load("fashion_mnist_mini", f"test[:{args.images}]", args.images)
    for name in args.only:
        for title, (network, attacks) in rows(DEFENCES[name], model, LinfBall(args.epsilon), args).items():
            start = time.perf_counter()
            report = evaluate(network, test, attacks, progress=False)
            print(f"\n{name}, {title}, {time.perf_counter() - start:.0f} s\n{report.table()}", flush=True)
            for row in report.results[1:]:
                print(f"{row.name}: {row.broken_by}")


if __name__ == "__main__":
    main()
