"""Adds the weights of trained runs to the package, as `weights="sat-fashion-mnist"`, and measures their robustness.

    python scripts/embed_weights.py runs/study/pgd_10/relu-2 runs/study/pgd_10/silu-2

The weights of each run are copied to keras_sat/models/fashion_mnist/MODEL-ACTIVATION.weights.h5. An entry in
weights.json has their SHA-256, the settings of the training, and the results of `keras-sat evaluate --model=...
--weights=sat-fashion-mnist` on the embedded test images. This takes about ten minutes for a ResNet-8. Use fewer images
for AutoAttack with a larger network: --images=200.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

from keras_sat import evaluation, files
from keras_sat import run as run_lib
from keras_sat.models import weights

TAG = "sat-fashion-mnist"
LARGEST = 2 * 10**6  # bytes


def embed(folder):
    """Copies the weights of a run into the package; writes and returns their registry entry, without results."""
    run, model = run_lib.load(folder)
    name = f"{run.model}-{run.activation}"
    path = os.path.join(os.path.dirname(weights.REGISTRY), "fashion_mnist", f"{name}.weights.h5")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    source = os.path.join(folder, "model.weights.h5")
    if os.path.getsize(source) > LARGEST:
        raise ValueError(f"{source} is larger than {LARGEST} bytes.")
    with files.atomic_write(path) as temporary:
        shutil.copyfile(source, temporary)
    entry = {
        "id": f"{name}-fashion-mnist",
        "tag": TAG,
        "model": run.model,
        "activation": run.activation,
        "image_size": model.input_shape[1],
        "parameters": sum(int(weight.shape.num_elements() or 1) for weight in model.trainable_weights),
        "file": f"fashion_mnist/{name}.weights.h5",
        "sha256": files.sha256(path),
        "training": {"dataset": run.dataset, "epsilon": run.epsilon, "steps": run.steps, "epochs": run.epochs}
        | {"step_size": run.attack().resolved_step_size, "seed": run.seed},
        "reported": None,
        "measured": None,
    }
    return write(entry)


def write(entry):
    """Adds an entry to the registry, or replaces the entry with the same id. Returns the entry."""
    with open(weights.REGISTRY, encoding="utf-8") as file:
        registry = json.load(file)
    others = [one for one in registry[TAG]["checkpoints"] if one["id"] != entry["id"]]
    registry[TAG]["checkpoints"] = sorted([*others, entry], key=lambda one: one["id"])
    files.write_text(weights.REGISTRY, json.dumps(registry, indent=1, ensure_ascii=False) + "\n")
    return entry


def measured(entry, images):
    """Returns the results for an entry: {row of the report: accuracy and interval in %, images, command}."""
    results = {}
    for flags in (("--attack=pgd-50",), ("--attack=autoattack", f"--split=test[:{images}]")):
        command = ["keras-sat", "evaluate", f"--model={entry['model']}", f"--activation={entry['activation']}"]
        command += [f"--weights={TAG}", *flags]
        with tempfile.TemporaryDirectory() as folder:
            here = os.path.join(os.path.dirname(sys.executable), "keras-sat")
            subprocess.run([here, *command[1:], f"--output={folder}"], check=True)
            report = evaluation.from_json(os.path.join(folder, "report.json"))
        for row in report.results:
            low, high = (round(100 * bound, 1) for bound in row.interval)
            figures = {"accuracy": round(100 * row.accuracy, 1), "interval": [low, high], "images": row.n}
            results.setdefault(row.name.lower(), figures | {"command": " ".join(command)})
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders that `keras-sat train` wrote")
    parser.add_argument("--images", type=int, default=1000, help="test images for AutoAttack (default: 1000)")
    args = parser.parse_args()
    for folder in args.runs:
        entry = embed(folder)
        write(entry | {"measured": measured(entry, args.images)})


if __name__ == "__main__":
    main()
