"""Measures evaluation: the time saved by dropping broken examples, and time and memory as the number of images doubles.

    python benchmarks/evaluation.py RUN [--images 1000] [--epsilon 36] [--repeats 3]

RUN is the folder of a network that `keras-sat train` wrote. First, PGD-200 as `evaluate` runs it is compared with every
step for every image. Then, on images that are classified correctly, dropping broken examples from a batch is compared
with keeping them (`static_shapes`). The same examples must be robust in each comparison. Finally,
PGD-100 runs on N / 2, N and 2 N images, each in its own process.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

from keras_sat import attacks, evaluation, run
from keras_sat.attacks import randomness
from keras_sat.models import folding

BATCH_SIZE = 500


def evaluated(model, dataset, attack, static_shapes=False):
    """Returns a list of which examples are robust, and the seconds that the attack took."""
    options = {"batch_size": BATCH_SIZE, "progress": False, "static_shapes": static_shapes}
    report = evaluation.evaluate(model, dataset, {"it": attack}, **options)
    return [stage == "" for stage in report.examples["attacks"]["it"]["broken_by"]], report["it"].seconds


def every_step(model, folded, dataset, attack):
    """Does the same as `evaluated`, but every image takes every step, with the seed that `evaluate` gives it."""
    robust, start = [], time.perf_counter()
    for begin in range(0, len(dataset[1]), BATCH_SIZE):
        images, labels = (values[begin : begin + BATCH_SIZE] for values in dataset)
        seeds = randomness.at_places(tf.constant([0, 0]), tf.range(begin, begin + len(labels)))
        both = images, attack(folded, images, labels, seeds, static_shapes=True).numpy()
        clean, attacked = (model.predict_on_batch(x).argmax(-1) == labels for x in both)
        robust += (clean & attacked).tolist()
    return robust, time.perf_counter() - start


def survivors(folder, number, epsilon, repeats):
    """Compares evaluation with every step for every image, and dropping broken examples with keeping them."""
    config, model = run.load(folder)
    images, labels = (values.numpy() for values in next(iter(config.load_data(f"test[:{number}]", number))))
    correct = np.flatnonzero(model.predict(images, verbose=0).argmax(-1) == labels)
    correct = correct[: len(correct) // BATCH_SIZE * BATCH_SIZE]  # full batches: static shapes would pad others
    ball, everything, some = config.ball(epsilon), (images, labels), (images[correct], labels[correct])
    attack = attacks.PGD(ball, steps=200, keep="first")
    candidates = {
        "evaluate": functools.partial(evaluated, model, everything, attack),
        "every image, every step": functools.partial(every_step, model, folding.fold(model), everything, attack),
    }
    compare(f"PGD-200, {number} images, epsilon {epsilon:g}", candidates, repeats)
    candidates = {
        "dropped": functools.partial(evaluated, model, some, attack),
        "kept, static shapes": functools.partial(evaluated, model, some, attack, static_shapes=True),
    }
    compare(f"PGD-200, {len(correct)} images that are classified correctly", candidates, repeats)


def compare(title, candidates, repeats):
    """Prints the times of two candidates and their ratio. Both must find the same robust examples."""
    seconds, robust = {name: [] for name in candidates}, {}
    for repeat in range(repeats + 1):
        for name, candidate in candidates.items():
            robust[name], took = candidate()
            if repeat:
                seconds[name].append(took)
    one, other = robust.values()
    assert one == other, "the same examples must be robust"
    medians = [statistics.median(times) for times in seconds.values()]
    print(f"{title}: {100 * sum(one) / len(one):.1f} % robust, the same ones")
    for median, (name, times) in zip(medians, seconds.items()):
        print(f"    {name:<24}{median:7.2f} s  ({min(times):.2f}..{max(times):.2f})")
    print(f"    ratio                   {medians[0] / medians[1]:7.2f}\n")


def child(folder, images, epsilon):
    """Prints the seconds of a second evaluation and the peak memory in MiB, as JSON."""
    config, model = run.load(folder)
    attack = attacks.PGD(config.ball(epsilon), steps=100)  # every image takes every step
    evaluated(model, config.load_data(f"test[:{BATCH_SIZE}]", BATCH_SIZE), attack)
    start = time.perf_counter()
    evaluated(model, config.load_data(f"test[:{images}]", BATCH_SIZE), attack)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}))


def doubling(folder, images, epsilon, repeats):
    """Prints time and memory for N / 2, N and 2 N images."""
    print("PGD-100, every step for every image: N, seconds, over N / 2, peak memory")
    measurements = {number: [] for number in (images // 2, images, 2 * images)}
    for _ in range(repeats):
        for number, seen in measurements.items():
            command = [sys.executable, __file__, folder, f"--images={number}", f"--epsilon={epsilon}", "--child"]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seen.append(json.loads(output.splitlines()[-1]))
    before = None
    for number, seen in measurements.items():
        times = [one["seconds"] for one in seen]
        seconds, peak = statistics.median(times), statistics.median(one["peak"] for one in seen)
        ratio = f"x {seconds / before:.2f}" if before else ""
        print(f"    {number:<8}{seconds:7.2f} s  ({min(times):.2f}..{max(times):.2f})  {ratio:<8}{peak:8.0f} MiB")
        before = seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epsilon", type=float, default=36.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.folder, args.images, args.epsilon)
        return
    survivors(args.folder, args.images, args.epsilon, args.repeats)
    doubling(args.folder, args.images, args.epsilon, args.repeats)


if __name__ == "__main__":
    main()
