import json
import os
import shutil
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest

from keras_sat.export import export_saved_model

pytest.importorskip("waitress")

from keras_sat.serving import Server  # noqa: E402


def network(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(4)]
    return keras.Sequential(layers)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A folder with two SavedModels, and the Keras models that were exported to it."""
    folder = tmp_path_factory.mktemp("exported")
    models = [network(seed) for seed in (1, 2)]
    for number, model in enumerate(models, 1):
        export_saved_model(model, folder / str(number))
    return folder, models


def _publish(source, base, version):
    shutil.copytree(source, base / f".{version}")
    os.rename(base / f".{version}", base / str(version))


@pytest.fixture(scope="session")
def publish():
    """Returns a function that adds a version to a model's folder: copied first, then renamed."""
    return _publish


@pytest.fixture(scope="module")
def served(exported, publish, tmp_path_factory):
    """A server with version 1 of the model "net"."""
    base = tmp_path_factory.mktemp("served") / "net"
    base.mkdir()
    publish(exported[0] / "1", base, 1)
    with Server(base, rest_port=0, grpc_port=0, poll=0.05, max_bytes=2**20) as server:
        yield server


@pytest.fixture(scope="session")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="session")
def ask():
    """Returns a function that sends an HTTP request to a server, and returns the status and the JSON of the answer."""
    return _ask


def _ask(server, path, body=None, method=None, **headers):
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{server.rest_port}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
