"""Warm-up requests without tensorflow-serving-api, which the extra `serve` installs."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules["tensorflow_serving"] = None  # as if it were not installed
import os, warnings
import keras
from keras_sat import cli, export, extras
layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
model = keras.Sequential(layers)
for warmup, number in ((True, 1), (False, 0)):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export.export_saved_model(model, str(warmup), warmup=warmup)
    said = [str(one.message) for one in caught if "warm-up" in str(one.message)]
    assert len(said) == number, said
    assert all(extras.install("serve") in line and chr(10) not in line for line in said), said
    assert not os.path.exists(f"{warmup}/assets.extra")
export.verify("True", model)
print("verified")
sys.argv = ["keras-sat", "serve", "models"]
cli.main()
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A process that exports, and then serves."""
    folder = tmp_path_factory.mktemp("without")
    return subprocess.run([sys.executable, "-c", WITHOUT], cwd=folder, capture_output=True, text=True)


def test_an_export_has_no_warm_up_file_and_says_so(done):
    assert "verified" in done.stdout.splitlines(), done.stderr


def test_serve_says_how_to_install_it(done):
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("keras-sat: serve needs waitress and tensorflow-serving-api: ")
    assert line.rstrip("'").endswith("[serve]")
    assert "Traceback" not in done.stderr
