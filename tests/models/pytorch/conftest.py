import hashlib
import json
import pathlib

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent / "robustbench"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class Fixture:
    """A checkpoint with known random weights, and what RobustBench's own class computes with it.

    The arrays are not stored: the name of the network and the name of an entry determine them. robustbench/*.npz
    hold images, labels, logits and input gradients. Computed with RobustBench's classes (commit 78fcc9e), torchvision
    0.29, timm and PyTorch 2.14, in float32 on a CPU.
    """

    def __init__(self, name):
        self.name = name
        file = np.load(FOLDER / f"{name}.npz")
        self.images, self.labels, self.logits = file["images"], file["labels"], file["logits"]
        self.input_gradient = file["input_gradient"]  # of the summed cross entropy, by the image in 0..1
        self.shapes = dict(zip(map(str, file["names"]), (tuple(json.loads(str(text))) for text in file["shapes"])))

    def state_dict(self):
        return {name: self._array(name, shape) for name, shape in self.shapes.items()}

    def _array(self, entry, shape):
        *scope, kind = entry.split(".")
        if scope == ["normalize"]:
            return np.array(IMAGENET[kind], np.float32).reshape(shape)
        seed = hashlib.md5(f"{self.name}/{entry}".encode()).hexdigest()[:8]
        rng = np.random.RandomState(int(seed, 16))
        if kind == "num_batches_tracked":
            return np.array(1000, np.int64)
        ranges = {"running_var": (0.5, 2.0), "gamma": (0.2, 1.0)}
        deviations = {"running_mean": 0.3, "bias": 0.1}
        if kind in deviations:
            array = rng.normal(0, deviations[kind], shape)
        elif kind in ranges or len(shape) == 1:
            array = rng.uniform(*ranges.get(kind, (0.5, 1.5)), shape)
        else:
            gain = 1.0 if len(shape) == 2 else 1.4
            array = rng.normal(0, 1, shape) * gain / np.sqrt(np.prod(shape[1:]))
        return array.astype(np.float32)


@pytest.fixture(scope="session")
def robustbench():
    return Fixture
