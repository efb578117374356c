"""What evaluation saves and what it needs: survivors, and time and memory as the number of images doubles.

    python benchmarks/evaluation.py RUN [--images 1000] [--epsilon 36] [--repeats 3]

RUN is the folder of a network that `keras-sat train` wrote. PGD-200 as evaluation runs it against every step for every
image; then, on correctly classified images alone, batches that lose the examples that broke ("compact") against such
that keep them ("mask"): the same examples must break. Then PGD-100 on N / 2, N and 2 N images, each in a process of its
own.
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
    """Returns which examples are robust, and the seconds that the attack took."""
    options = {"batch_size": BATCH_SIZE, "progress": False, "static_shapes": static_shapes}
    report = evaluation.evaluate(model, dataset, {"it": attack}, **options)
    return [stage == "" for stage in report.examples["attacks"]["it"]["broken_by"]], report["it"].seconds


def every_step(model, folded, dataset, attack):
    """The same without evaluation: every image takes every step, with the seed that evaluation gives it."""
    standing, start = [], time.perf_counter()
    for begin in range(0, len(dataset[1]), BATCH_SIZE):
        images, labels = (values[begin : begin + BATCH_SIZE] for values in dataset)
        seeds = randomness.at_places(tf.constant([0, 0]), tf.range(begin, begin + len(labels)))
        both = images, attack(folded, images, labels, seeds, static_shapes=True).numpy()
        clean, attacked = (model.predict_on_batch(x).argmax(-1) == labels for x in both)
        standing += (clean & attacked).tolist()
    return standing, time.perf_counter() - start


def survivors(folder, number, epsilon, repeats):
    config, model = run.load(folder)
    images, labels = (values.numpy() for values in next(iter(config.load_data(f"test[:{number}]", number))))
    correct = np.flatnonzero(model.predict(images, verbose=0).argmax(-1) == labels)
    correct = correct[: len(correct) // BATCH_SIZE * BATCH_SIZE]  # full batches: static shapes fill up others
    ball, everything, some = config.ball(epsilon), (images, labels), (images[correct], labels[correct])
    attack = attacks.PGD(ball, steps=200, keep="first")
    candidates = {
        "evaluate": functools.partial(evaluated, model, everything, attack),
        "every image, every step": functools.partial(every_step, model, folding.fold(model), everything, attack),
    }
    compare(f"PGD-200, {number} images, epsilon {epsilon:g}", candidates, repeats)
    candidates = {
        name: functools.partial(evaluated, model, some, attack, static_shapes)
        for name, static_shapes in (("compact", False), ("static shapes", True))
    }
    compare(f"PGD-200, {len(correct)} images that are classified correctly", candidates, repeats)


def compare(title, candidates, repeats):
    """Prints what the first costs over the second, which must find the same."""
    seconds, standing = {name: [] for name in candidates}, {}
    for repeat in range(repeats + 1):
        for name, candidate in candidates.items():
            standing[name], took = candidate()
            if repeat:
                seconds[name].append(took)
    one, other = standing.values()
    assert one == other, "the same examples must break"
    medians = [statistics.median(times) for times in seconds.values()]
    print(f"{title}: {100 * sum(one) / len(one):.1f} % stand, the same ones")
    for median, (name, times) in zip(medians, seconds.items()):
        print(f"    {name:<24}{median:7.2f} s  ({min(times):.2f}..{max(times):.2f})")
    print(f"    ratio                   {medians[0] / medians[1]:7.2f}\n")


def child(folder, images, epsilon):
    """Prints seconds of a second evaluation, and the peak of memory in MiB, as JSON."""
    config, model = run.load(folder)
    attack = attacks.PGD(config.ball(epsilon), steps=100)  # every image takes every step
    evaluated(model, config.load_data(f"test[:{BATCH_SIZE}]", BATCH_SIZE), attack)
    start = time.perf_counter()
    evaluated(model, config.load_data(f"test[:{images}]", BATCH_SIZE), attack)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}))


def doubling(folder, images, epsilon, repeats):
    print("PGD-100, every step for every image: N, seconds, over N / 2, peak memory")
    found = {number: [] for number in (images // 2, images, 2 * images)}
    for _ in range(repeats):
        for number, seen in found.items():
            command = [sys.executable, __file__, folder, f"--images={number}", f"--epsilon={epsilon}", "--child"]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seen.append(json.loads(output.splitlines()[-1]))
    before = None
    for number, seen in found.items():
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
