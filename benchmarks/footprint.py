"""Measures what the package adds to the import time of Keras, and to the memory of a training step.

    python benchmarks/footprint.py [--image_size 64] [--batch_size 32] [--repeats 5]

Each measurement runs in its own process. Memory is the peak of the resident set over three steps of ResNet-50, SGD with
momentum. It includes the attack's graph and kernels, which do not depend on the batch size. In the rows "unasked", the
comparison of the attacked copy with the model is left out. This comparison runs once, on eight images of the first
batch. Its time is compared with the time of a step in the same process.
"""

import argparse
import statistics
import subprocess
import sys

STEP = """
import resource, time, keras, numpy as np, keras_sat
from keras_sat.attacks import PGD, LinfBall
model = keras_sat.models.ResNet50(input_shape=({size}, {size}, 3))
steps = {steps}
trainer = keras_sat.training.AdversarialModel(model, PGD(LinfBall(4), steps=steps)) if steps else model
if {unasked}:
    trainer._is_compared = True
trainer.compile(keras.optimizers.SGD(0.1, 0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
labels = np.arange({batch})
images = np.random.default_rng(0).integers(0, 256, ({batch}, {size}, {size}, 3)).astype(np.uint8)
for _ in range(3):
    start = time.perf_counter()
    trainer.train_on_batch(images, labels)
    step = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = time.perf_counter()
if steps:
    trainer._compare_copies(images)
print(step, time.perf_counter() - start, peak)
"""
IMPORT = "import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"


def run(code):
    """Runs Python code in a new process; returns the numbers that it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def measured(code):
    return run(code)[-1]


def imports(repeats):
    """Prints the import times."""
    times = {"keras": [], "keras_sat": []}
    for _ in range(repeats):
        for module, seconds in times.items():
            seconds.append(measured(IMPORT.format(module=module)))
    medians = {module: statistics.median(seconds) for module, seconds in times.items()}
    for module, seconds in times.items():
        print(f"import {module:<12}{medians[module]:6.2f} s  ({min(seconds):.2f}..{max(seconds):.2f})")
    print(f"more{'':<15}{medians['keras_sat'] - medians['keras']:6.2f} s\n")


def memory(size, batch, repeats):
    """Prints the peak memory of training steps, and the time of the comparison."""
    peaks = {"plain": [], "PGD-1": [], "PGD-10": [], "PGD-10 unasked": []}
    comparisons = []
    for _ in range(repeats):
        for name, seen in peaks.items():
            steps, unasked = int(name.split()[0].removeprefix("PGD-").replace("plain", "0")), name.endswith("unasked")
            step, comparison, peak = run(STEP.format(steps=steps, unasked=unasked, size=size, batch=batch))
            seen.append(peak)
            comparisons += [(step, comparison)] if steps == 10 else []
    print(f"ResNet-50, {size} px, batch {batch}")
    plain = statistics.median(peaks["plain"])
    for name, seen in peaks.items():
        median = statistics.median(seen)
        print(f"step {name:<15}{median:7.0f} MiB  ({min(seen):.0f}..{max(seen):.0f})  over plain {median / plain:.3f}")
    ratio = statistics.median(comparison / step for step, comparison in comparisons)
    seconds = statistics.median(comparison for _, comparison in comparisons)
    print(f"the comparison, once: {seconds:.2f} s, {ratio:.2f} of a PGD-10 step")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    imports(args.repeats)
    memory(args.image_size, args.batch_size, min(3, args.repeats))


if __name__ == "__main__":
    main()
