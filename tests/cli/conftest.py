"""The command, in this process or in a process of its own, and folders of trained networks."""

import os
import re
import subprocess
import sys

import pytest

from keras_sat import cli

COMMAND = os.path.join(os.path.dirname(sys.executable), "keras-sat")
TRAIN = ["train", '--activation={"name": "gelu", "approximate": false}', "--epsilon=10", "--epochs=1", "--steps=1"]
TRAIN += ["--train_split=train[:500]", "--validation=100", "--batch_size=100", "--image_size=14"]
TRAIN += ["--attack_precision=mixed_bfloat16", "--ema=0.5", "--guard=none"]


@pytest.fixture(scope="session")
def train_flags():
    return TRAIN


@pytest.fixture(scope="session")
def run():
    """Returns a function that runs the command as a user does, in a process of its own."""

    def completed(*arguments):
        return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)

    return completed


@pytest.fixture(scope="session")
def inside():
    """Returns a function that runs the command in this process, which spares starting TensorFlow."""

    def status(*arguments):
        args = cli.parse(["keras-sat", *map(str, arguments)])
        return args.run(args)

    return status


@pytest.fixture(scope="session")
def folder(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "gelu"
    done = run(*TRAIN, f"--output={path}")
    assert done.returncode == 0, done.stderr
    assert f"keras-sat evaluate {path}" in done.stdout
    for line in (
        "Data: fashion_mnist_mini: 10000 images of train, .*, 10 classes, 14 x 14 x 1",
        r"Network: ResNet8 \(gelu\), \d\d,\d\d\d parameters\.",
        r"Training: 1 epoch of 4 steps, 100 images in a step, on adversarial images of PGD-1, linf epsilon 10 of 255\.",
    ):
        assert re.search(f"^{line}", done.stdout, re.MULTILINE), done.stdout
    assert "robust validation accuracy" in done.stdout
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory, shades):
    """A folder of grey photos of two classes, bright and dark."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for split, number in (("train", 20), ("test", 10)):
        for name, factor in (("bright", 1.0), ("dark", 0.2)):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                picture = shades("L", (16, 18)).point(
                    lambda value, factor=factor, index=index, number=number: int(value * factor) + index + number
                )
                picture.save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def of_photos(inside, photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "photos"
    flags = ["--epochs=2", "--batch-size=10", "--steps=1", "--epsilon=4", "--learning-rate=0.01", "--validation=0"]
    assert inside("train", f"--dataset={photos}", f"--output={path}", *flags) == 0
    return path


@pytest.fixture(scope="session")
def exported(inside, of_photos, tmp_path_factory):
    """The network of the run `of_photos`, as a SavedModel and as an int8 file: their paths."""
    folder = tmp_path_factory.mktemp("exported")
    saved, small = folder / "saved", folder / "small.tflite"
    assert inside("export", of_photos, f"--to={saved}", f"--int8={small}") == 0
    return saved, small
