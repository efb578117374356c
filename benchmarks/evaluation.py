"""What evaluation saves and what it needs: survivors, and time and memory as the number of images doubles.

    python benchmarks/evaluation.py RUN [--images 500] [--epsilon 36] [--repeats 3]

RUN is the folder of a network that `keras-sat train` wrote. PGD-200 as evaluation runs it, on batches that lose the
examples that broke ("compact"); on batches that keep them, of the correctly classified images ("mask"); and on batches
of all images, every step ("all"): the same examples must break. Then PGD-100 on N, 2 N and 4 N images, each in a
process of its own.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time

import tensorflow as tf

from keras_sat import attacks, evaluation, run
from keras_sat.attacks import randomness
from keras_sat.models import folding

BATCH_SIZE = 250


def evaluated(model, dataset, attack):
    """Returns which examples stand, and the seconds that the attack took."""
    report = evaluation.evaluate(model, dataset, {"it": attack}, batch_size=BATCH_SIZE, progress=False)
    return [stage == "" for stage in report.examples["attacks"]["it"]["broken_by"]], report["it"].seconds


def on_all(model, folded, dataset, ball):
    """The same for every image and every step, with the seeds that evaluation gives the examples."""
    attack = attacks.PGD(ball, steps=200, keep="first", survivors="mask")
    standing, end, start = [], 0, time.perf_counter()
    for images, labels in dataset:
        index = tf.range(end, end + len(labels))
        seeds = tf.stack([tf.fill(index.shape, randomness.fold(tf.constant([0, 0]), 0)[0]), index], axis=1)
        adversarial = attack(folded, images, labels, seeds)
        clean, attacked = (
            tf.argmax(model(x), -1, tf.int32) == tf.cast(labels, tf.int32) for x in (images, adversarial)
        )
        standing += (clean & attacked).numpy().tolist()
        end += len(labels)
    return standing, time.perf_counter() - start


def survivors(folder, images, epsilon, repeats):
    config, model = run.load(folder)
    dataset = config.load_data(f"test[:{images}]", BATCH_SIZE)
    candidates = {
        mode: attacks.PGD(config.ball(epsilon), steps=200, keep="first", survivors=mode) for mode in ("compact", "mask")
    }
    candidates = {mode: functools.partial(evaluated, model, dataset, attack) for mode, attack in candidates.items()}
    candidates["all"] = functools.partial(on_all, model, folding.fold(model), dataset, config.ball(epsilon))
    seconds, standing = {mode: [] for mode in candidates}, {}
    for repeat in range(repeats + 1):
        for mode, candidate in candidates.items():
            standing[mode], took = candidate()
            if repeat:
                seconds[mode].append(took)
    assert standing["compact"] == standing["mask"] == standing["all"], "the same examples must break"
    medians = {mode: statistics.median(times) for mode, times in seconds.items()}
    share = sum(standing["mask"]) / images
    print(f"PGD-200, {images} images, epsilon {epsilon:g}: {100 * share:.1f} % stand, the same ones")
    for mode, times in seconds.items():
        spread = f"({min(times):.2f}..{max(times):.2f})"
        print(
            f"    {mode:<10}{medians[mode]:7.2f} s  {spread}  compact over it {medians['compact'] / medians[mode]:.2f}"
        )
    print()


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
    before = None
    for number in (images, 2 * images, 4 * images):
        command = [sys.executable, __file__, folder, f"--images={number}", f"--epsilon={epsilon}", "--child"]
        outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(repeats)]
        found = [json.loads(output.splitlines()[-1]) for output in outputs]
        seconds, peak = (statistics.median(one[key] for one in found) for key in ("seconds", "peak"))
        ratio = f"x {seconds / before:.2f}" if before else ""
        print(f"    {number:<8}{seconds:7.2f} s  {ratio:<8}{peak:8.0f} MiB")
        before = seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=500)
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
