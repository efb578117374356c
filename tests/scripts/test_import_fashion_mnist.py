"""Imports Fashion-MNIST from local files. Without Debian's package, only the error messages are tested."""

import gzip
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent.parent / "scripts" / "import_fashion_mnist.py"
DEBIAN = "/usr/share/datasets/fashion-mnist"


def run(*flags):
    return subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir(DEBIAN), reason="needs Debian's dataset-fashion-mnist")
def test_the_command_of_the_study(tmp_path):
    from keras_sat import data

    done = run(f"--data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    splits = data.info("fashion_mnist", str(tmp_path)).splits
    assert {name: splits[name].num_examples for name in splits} == {"train": 60_000, "test": 10_000}
    whole, _ = next(iter(data.load("fashion_mnist", "test", 10_000, data_dir=str(tmp_path))))
    mini, _ = next(iter(data.load("fashion_mnist_mini", "test", 2_000)))
    assert {image.tobytes() for image in mini.numpy()} <= {image.tobytes() for image in whole.numpy()}


def test_files_that_are_missing_or_others(tmp_path):
    done = run(f"--from={tmp_path}", f"--data_dir={tmp_path / 'to'}")
    assert done.returncode == 1
    assert "apt-get install dataset-fashion-mnist" in done.stderr.splitlines()[-1]
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"another")
    done = run(f"--from={tmp_path}", f"--data_dir={tmp_path / 'to'}")
    assert "is not the file of Fashion-MNIST" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "to").exists()
