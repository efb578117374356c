"""What the package adds: seconds to `import keras`, and memory of an adversarial step to that of a plain one.

    python benchmarks/footprint.py [--repeats 5]

Each figure is of processes of their own. Memory is the peak of the resident set over three steps of ResNet-50 at 64 px,
batch 32, with SGD and momentum.
"""

import argparse
import statistics
import subprocess
import sys

STEP = """
import resource, keras, numpy as np, keras_sat
from keras_sat.attacks import PGD, LinfBall
model = keras_sat.models.ResNet50(input_shape=(64, 64, 3))
steps = {steps}
trainer = keras_sat.training.AdversarialModel(model, PGD(LinfBall(4), steps=steps)) if steps else model
trainer.compile(keras.optimizers.SGD(0.1, 0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images, labels = np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3)).astype(np.uint8), np.arange(32)
for _ in range(3):
    trainer.train_on_batch(images, labels)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
IMPORT = "import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"


def measured(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    found = {"keras": [], "keras_sat": []}
    for _ in range(repeats):
        for module, seconds in found.items():
            seconds.append(measured(IMPORT.format(module=module)))
    medians = {module: statistics.median(seconds) for module, seconds in found.items()}
    for module, seconds in found.items():
        print(f"import {module:<12}{medians[module]:6.2f} s  ({min(seconds):.2f}..{max(seconds):.2f})")
    print(f"more{'':<15}{medians['keras_sat'] - medians['keras']:6.2f} s\n")
    peaks = {0: [], 1: [], 10: []}
    for _ in range(min(3, repeats)):
        for steps, seen in peaks.items():
            seen.append(measured(STEP.format(steps=steps)))
    plain = statistics.median(peaks[0])
    for steps, seen in peaks.items():
        median = statistics.median(seen)
        name = f"PGD-{steps}" if steps else "plain"
        print(f"step {name:<9}{median:7.0f} MiB  ({min(seen):.0f}..{max(seen):.0f})  over plain {median / plain:.3f}")


if __name__ == "__main__":
    main()
