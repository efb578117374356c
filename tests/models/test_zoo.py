"""weights="sat-imagenet": the registry, and fetching from a real HTTP server on loopback."""

import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from keras_sat import files, models
from keras_sat.models import weights as weights_lib

PARTS = ("efficientnet-b0.index", "efficientnet-b0.data-00000-of-00001")


def test_the_registry_holds_the_24_checkpoints():
    entries = [entry for entry in weights_lib.entries() if entry["release"] == "sat-imagenet"]
    assert len({entry["id"] for entry in entries}) == len(entries) == 24
    for entry in entries:
        assert set(entry["drive"]) == {"index", "data-00000-of-00001"}
        assert {"source", "paper", "license", "pixels", "dataset"} <= set(entry)
    drive_ids = [drive_id for entry in entries for drive_id in entry["drive"].values()]
    assert len(set(drive_ids)) == 48


def channels_and_classes(entry):
    """(The default of the builders is a network with 1000 classes for RGB images.)"""
    if entry["release"] == "sat-imagenet":
        return {}
    return dict(zip(("input_shape", "classes"), weights_lib.shape_and_classes(entry)))


PARAMETERS_AND_SIZE = {}  # of networks that were built: the entries of several image sizes are of one network


def parameters_and_size(without_weights, *network):
    """Returns the number of trainable parameters of a network and the height of its images."""
    if network not in PARAMETERS_AND_SIZE:
        name, activation, options = network
        with without_weights():
            model = models.BUILDERS[name](activation=activation, **dict(options))
        parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        PARAMETERS_AND_SIZE[network] = (parameters, model.input_shape[1])
    return PARAMETERS_AND_SIZE[network]


@pytest.mark.parametrize(
    "entry",
    [entry for entry in weights_lib.entries() if entry["release"].startswith("sat-")],
    ids=lambda entry: entry["id"],
)
def test_an_entry_is_of_a_network_that_there_is(entry, without_weights):
    parameters, size = parameters_and_size(
        without_weights, entry["model"], entry["activation"], tuple(channels_and_classes(entry).items())
    )
    assert parameters == entry["parameters"]
    if entry["model"].startswith("EfficientNet"):
        assert size == entry["image_size"]


@pytest.mark.parametrize(
    ("network", "activation", "tag", "size", "expected"),
    [
        ("ResNet50", "silu", "sat-imagenet", 224, "Res50-silu"),
        ("ResNet50", "swish", "sat-imagenet", None, "Res50-silu"),
        ("ResNet50", "silu", "sat-imagenet", 380, "Res50-silu-380"),
        ("ResNet50", "silu", "sat-imagenet-299", 224, "Res50-silu-299"),
        ("ResNet50", {"name": "gelu"}, "sat-imagenet", 224, "Res50-gelu"),
        ("ResNet50", "smooth_relu", "sat-imagenet", 224, "Res50-smoothrelu"),
        ("ResNeXt152_32x8d", "silu", "sat-imagenet-380", 380, "ResX152-silu-380-32x8d"),
        ("EfficientNetL1", "silu", "sat-imagenet-enhanced", 600, "efficientnet-bL1-enhanced"),
    ],
)
def test_what_a_tag_picks(network, activation, tag, size, expected):
    assert weights_lib.find(network, activation, tag, size)["id"] == expected


@pytest.mark.parametrize(
    ("network", "activation", "tag", "message"),
    [
        ("ResNet101", "gelu", "sat-imagenet", "there are for silu"),
        ("ResNet50", {"name": "gelu", "approximate": False}, "sat-imagenet", "there are for elu, gelu, mish, relu"),
        ("ResNet50", "silu", "sat-imagenet-512", "there are sat-imagenet, sat-imagenet-299, sat-imagenet-380"),
        ("ResNet20", "silu", "sat-imagenet", "for ResNet20; there are for EfficientNetB0"),
        ("ResNet20", "silu", "sat-cifar", "no weights 'sat-cifar'; there are sat-fashion-mnist, sat-imagenet"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(network, activation, tag, message):
    with pytest.raises(ValueError, match=message):
        models.BUILDERS[network](activation=activation, weights=tag, input_shape=(64, 64, 3))


def test_the_list():
    rows = {(row["model"], row["activation"], row["tag"]): row for row in models.list_weights()}
    assert len(rows) == len(weights_lib.entries())
    silu = rows["ResNet50", "silu", "sat-imagenet"]
    assert (silu["clean"], silu["robust"]) == (69.7, 41.9)
    assert silu["under"] == "pgd-50, L-inf, epsilon 4 of 255, step size 1"
    assert rows["EfficientNetB7", "silu", "sat-imagenet"]["robust"] is None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, write_release):
    """A folder with a checkpoint in the release's layout and a registry, and the network of the checkpoint.

    The registry is the package's, but for the entry of EfficientNet-B0: it is of ResNet-8, which is built much faster.
    """
    folder = tmp_path_factory.mktemp("bundle")
    model = models.ResNet8(input_shape=(None, None, 3), classes=1000)
    write_release(folder / "efficientnet-b0", model)
    kernel = model.get_layer("conv0").kernel
    kernel.assign(kernel.numpy()[:, :, ::-1])  # the release's ResNets take BGR images
    registry = json.loads(pathlib.Path(weights_lib.REGISTRY).read_text())
    [entry] = [one for one in registry["sat-imagenet"]["checkpoints"] if one["id"] == "efficientnet-b0"]
    parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    entry |= {"model": "ResNet8", "parameters": parameters}
    (folder / "weights.json").write_text(json.dumps(registry))
    return folder, model


@pytest.fixture
def server(bundle, tmp_path, monkeypatch):
    """A web server of that folder; `.requests` are the paths asked for, `.bodies` what is sent in place of a file.

    `.stalled` files are sent in part, until their event is set.
    """

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the library's name
            name = self.path.lstrip("/")
            web.requests.append(name)
            if name in web.stalled:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"x" * 100_000)
                web.stalled[name].wait(timeout=60)
                return None
            if name not in web.bodies:
                return super().do_GET()
            status, length, body = web.bodies[name]
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

        def __init__(self, *args):
            super().__init__(*args, directory=str(bundle[0]))

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.requests, web.bodies, web.stalled = [], {}, {}
    web.address = f"http://127.0.0.1:{web.server_port}/"
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    monkeypatch.setattr(weights_lib, "REGISTRY", str(bundle[0] / "weights.json"))
    monkeypatch.setenv("KERAS_SAT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERAS_SAT_WEIGHTS_URL", web.address)
    yield web
    web.shutdown()
    web.server_close()
    thread.join()


def fetched(**options):
    return models.ResNet8(**{"input_shape": (40, 40, 3), "weights": "sat-imagenet"} | options)


def cache():
    """Returns the files in the cache, without the lock."""
    return sorted(name for name in os.listdir(weights_lib.home()) if not name.endswith(".lock"))


def test_first_use_fetches_and_later_uses_do_not(server, bundle):
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3)).astype(np.uint8)
    np.testing.assert_allclose(fetched()(images), bundle[1](images), atol=1e-5)
    assert server.requests == list(PARTS)
    assert cache() == ["efficientnet-b0.weights.h5", "efficientnet-b0.weights.h5.sha256"]
    fetched()
    assert len(server.requests) == 2


def test_a_changed_file_is_fetched_again(server, bundle):
    fetched()
    path = pathlib.Path(weights_lib.home()) / "efficientnet-b0.weights.h5"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="was changed since it was fetched"):
        model = fetched()
    assert len(server.requests) == 4
    np.testing.assert_array_equal(model.get_layer("conv0").kernel, bundle[1].get_layer("conv0").kernel)


BAD = {
    "a web page": (PARTS[1], (200, 30, b"<!DOCTYPE html><html>full</html>"[:30]), "web page in place of the file"),
    "cut short": (PARTS[1], (200, 21_000_000, b"x" * 1000), "could not be downloaded.*KERAS_SAT_WEIGHTS_URL"),
    "another file": (PARTS[1], (200, 1000, b"x" * 1000), "no readable checkpoint"),
    "not found": (PARTS[0], (404, 0, b""), "could not be downloaded.*404"),
}


@pytest.mark.parametrize(("name", "body", "message"), BAD.values(), ids=BAD)
def test_bad_answers_are_errors_and_leave_nothing(name, body, message, server):
    server.bodies[name] = body
    with pytest.raises(ValueError, match=message):
        fetched()
    assert cache() == []
    server.bodies.clear()
    fetched()  # and the next attempt succeeds


def test_a_wrong_hash_is_an_error(server, monkeypatch):
    entries = weights_lib.entries()
    for entry in entries:
        entry["sha256"] = {"index": "0" * 64}
    monkeypatch.setattr(weights_lib, "entries", lambda: entries)
    with pytest.raises(ValueError, match=f"sha256 is [0-9a-f]{{64}}, not {'0' * 64}"):
        fetched()
    assert cache() == []


def test_a_later_download_of_another_file_is_an_error(server):
    """The authors publish no hash: the first download records one."""
    fetched()
    path = pathlib.Path(weights_lib.home()) / "efficientnet-b0.weights.h5"
    own, *downloaded = [line.split("  ") for line in pathlib.Path(f"{path}.sha256").read_text().splitlines()]
    assert own == [files.sha256(path)]
    assert [name for _, name in downloaded] == list(PARTS)
    first = downloaded[1][0]
    path.unlink()
    server.bodies[PARTS[1]] = (200, 1000, b"x" * 1000)
    message = f"{PARTS[1]} from {re.escape(server.address)}.* is not the file that was fetched first: its sha256 is "
    with pytest.raises(ValueError, match=rf"{message}[0-9a-f]{{64}}, not {first}. To accept it, delete {path}.sha256"):
        fetched()
    assert cache() == ["efficientnet-b0.weights.h5.sha256"]
    os.remove(f"{path}.sha256")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        fetched()
    assert cache() == []
    server.bodies.clear()
    fetched()


def test_a_network_of_robustbench_lies_under_its_full_name(server):
    entry = weights_lib.find("WideResNet28_10", "relu", "robustbench/Carmon2019Unlabeled")
    with pytest.raises(
        ValueError, match="robustbench/cifar10/Linf/Carmon2019Unlabeled.pt could not be downloaded.*404"
    ):
        weights_lib.fetch(entry, None)
    assert server.requests == ["robustbench/cifar10/Linf/Carmon2019Unlabeled.pt"]
    folder = pathlib.Path(weights_lib.home(), "robustbench", "cifar10", "Linf")
    assert os.listdir(folder) == ["Carmon2019Unlabeled.weights.h5.lock"]


def test_no_network(server, monkeypatch):
    monkeypatch.setenv("KERAS_SAT_WEIGHTS_URL", "http://127.0.0.1:1/")
    with pytest.raises(ValueError, match="could not be downloaded from http://127.0.0.1:1/efficientnet-b0.index"):
        fetched()
    assert cache() == []


SCRIPT = """
import resource, sys
from keras_sat import models
models.weights.REGISTRY, limit = sys.argv[1], int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
models.ResNet8(input_shape=(40, 40, 3), weights="sat-imagenet")
"""


def start(limit=0):
    command = [sys.executable, "-c", SCRIPT, weights_lib.REGISTRY, str(limit)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_disk_that_takes_no_more_leaves_nothing(server):
    """The kernel refuses to let a file grow beyond 100 kB, in the middle of the download."""
    process = start(100_000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "could not be downloaded" in error
    assert "File too large" in error
    assert cache() == []


def test_a_fetch_that_is_killed_leaves_nothing_that_matters(server):
    server.stalled[PARTS[1]] = threading.Event()
    process = start()
    while server.requests != list(PARTS):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.communicate()
    server.stalled.pop(PARTS[1]).set()
    assert cache() == [".fetching-efficientnet-b0"]
    fetched()
    assert cache() == ["efficientnet-b0.weights.h5", "efficientnet-b0.weights.h5.sha256"]


def test_of_two_processes_one_fetches_and_the_other_waits(server):
    processes = [start(), start()]
    for process in processes:
        assert process.wait(timeout=120) == 0, process.stderr.read()
        process.stderr.close()
    assert server.requests == list(PARTS)


def test_other_heads(server, bundle):
    trunk = fetched(include_top=False, name="mine")
    with pytest.warns(UserWarning, match="The head of ResNet8 is new: the weights have 1000 classes, not 7"):
        new = fetched(classes=7)
    for model in (trunk, new):
        for layer in ("conv0", "group2_block0_convshortcut", "group2_block0_conv2_bn"):
            expected = bundle[1].get_layer(layer).get_weights()
            np.testing.assert_array_equal(model.get_layer(layer).get_weights(), expected)
    with pytest.raises(ValueError, match="take RGB images"):
        fetched(input_shape=(40, 40, 1))


WRN = "robustbench/cifar10/Linf/Wang2023Better_WRN-28-10"


@pytest.fixture
def small_entry(bundle, monkeypatch):
    """RobustBench's entry WRN, for a smaller network; returns that network, whose file the server has."""
    model = models.WideResNet(10, 1, "dm")
    path = bundle[0] / f"{WRN}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    models.pytorch.save(model, path.with_suffix(".safetensors"))  # the reader tells a format by its first bytes
    os.replace(path.with_suffix(".safetensors"), path)
    entries = weights_lib.entries()
    for entry in entries:
        if entry["id"] == WRN:
            parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
            entry |= {"model": "WideResNet10_1", "parameters": parameters}
    monkeypatch.setattr(weights_lib, "entries", lambda: entries)
    return model


def small_fetched(**options):
    return models.WideResNet(10, 1, "dm", weights="robustbench/Wang2023Better_WRN-28-10", **options)


def test_a_network_of_robustbench_is_fetched_and_held_to_its_hash(server, bundle, small_entry):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    model = small_fetched()
    np.testing.assert_array_equal(model(images), small_entry(images))
    assert models.normalization.of_model(model) == models.normalization.NAMED["cifar10"]
    small_fetched()
    assert server.requests == [f"{WRN}.pt"]
    with pytest.warns(UserWarning, match="The head of WideResNet10_1 is new: the weights have 10 classes, not 3"):
        new = small_fetched(classes=3)
    np.testing.assert_array_equal(new.get_layer("init_conv").kernel, model.get_layer("init_conv").kernel)
    path = pathlib.Path(weights_lib.home()) / f"{WRN}.weights.h5"
    path.unlink()
    models.pytorch.save(models.WideResNet(10, 1, "dm"), bundle[0] / "other.safetensors")
    os.replace(bundle[0] / "other.safetensors", bundle[0] / f"{WRN}.pt")
    with pytest.raises(ValueError, match=r"is not the file that was fetched first: .* delete .*\.sha256"):
        small_fetched()
    pathlib.Path(f"{path}.sha256").unlink()
    small_fetched()


def test_another_normalization_than_that_of_the_weights_is_refused(small_entry):
    with pytest.raises(ValueError, match=r'need WideResNet10_1\(form="dm", activation="silu"'):
        small_fetched(normalization="cifar100")
    with pytest.raises(ValueError, match="need WideResNet10_1"):
        models.WideResNet(10, 1, weights="robustbench/Wang2023Better_WRN-28-10")
