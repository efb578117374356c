"""Trains robust clothes to robust digits: `sat-fashion-mnist` against random weights, at equal steps.

    pip install scikit-learn                    # for its digits: 1,797 images of 8 x 8 pixels
    python studies/fine_tuning.py [--output=runs/fine_tuning] [--seeds=3]

It draws 500 training and 500 test images and writes them as a folder. It trains twice with each seed: `keras-sat
train`, with and without --weights. After each epoch, clean accuracy and that under PGD-10 are measured on all test
images. It prints the table of docs/fine_tuning.md. A run that is done is not made again.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys

import numpy as np

IMAGES, BRIGHTEST = 500, 16  # in each split; the pixels of the digits are 0..16
SHOWN = (1, 3, 5, 10)
FLAGS = {
    "image_size": 28,
    "channels": 1,
    "model": "ResNet8",
    "activation": "silu",
    "epsilon": 25.5,
    "steps": 2,
    "epochs": max(SHOWN),
    "batch_size": 50,
    "learning_rate": 0.008,
    "validation_split": "test",
    "keep": "last",
}
START = {"from random weights": "none", "from `sat-fashion-mnist`": "sat-fashion-mnist"}
MEASURED = {"clean": "val_accuracy", "PGD-10": "val_robust_accuracy"}


def write_digits(folder):
    """Writes the images of both splits, drawn by a seed, unless the folder exists."""
    from PIL import Image
    from sklearn.datasets import load_digits

    if os.path.isdir(folder):
        return
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    for split, places in (("train", order[:IMAGES]), ("test", order[IMAGES : 2 * IMAGES])):
        for place in places:
            path = os.path.join(folder, split, str(digits.target[place]), f"{place}.png")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            pixels = np.rint(digits.images[place] * (255 / BRIGHTEST)).astype(np.uint8)
            Image.fromarray(pixels).save(path)


def train(data, output, weights, seed):
    """Trains a run, unless it is done. Returns {measure: values in %, one an epoch}."""
    if not os.path.exists(os.path.join(output, "run.json")):
        command = [os.path.join(os.path.dirname(sys.executable), "keras-sat"), "train", f"--dataset={data}"]
        command += [f"--{name}={value}" for name, value in FLAGS.items()]
        subprocess.run([*command, f"--weights={weights}", f"--seed={seed}", f"--output={output}"], check=True)
    with open(os.path.join(output, "history.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [100 * float(row[column]) for row in rows] for name, column in MEASURED.items()}


def table(runs):
    """Returns the table. `runs` is {(row, seed): what `train` returned}."""
    lines = [f"| after epoch | {' | '.join(map(str, SHOWN))} |", "|---" * (1 + len(SHOWN)) + "|"]
    for start in START:
        for measure in MEASURED:
            curves = [values[measure] for (of, _), values in runs.items() if of == start]
            means = [statistics.mean(curve[epoch - 1] for curve in curves) for epoch in SHOWN]
            lines.append(f"| {start}: {measure} | {' | '.join(f'{mean:.1f} %' for mean in means)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=os.path.join("runs", "fine_tuning"), help="folder of the images and runs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    args = parser.parse_args()
    data = os.path.join(args.output, "digits")
    write_digits(data)
    runs = {}
    for seed in range(args.seeds):
        for start, weights in START.items():
            runs[start, seed] = train(data, os.path.join(args.output, f"{weights}-{seed}"), weights, seed)
    print(table(runs))


if __name__ == "__main__":
    main()
