import fnmatch
import gc
import io
import os
import socket
import subprocess

import numpy as np
import pytest
from PIL import Image

import keras_sat_command

if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core: more threads, also in children, would only wait
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"

with keras_sat_command.quiet():  # TensorFlow's start-up notes would come after pytest's last line
    import keras
    import tensorflow as tf

    # Two replicas on any machine. This must be set before TensorFlow starts.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    tf.config.list_logical_devices()

# TensorFlow is a million objects that stay. The garbage collector need not look at them again while tests trace graphs,
# which saves a tenth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 50, 100)

# What `make test-fast` runs: patterns of test ids, in which the part in brackets is left out.
# These tests start no process and trace no large graph.
FAST = [
    "tests/test_activations.py::*",
    "tests/test_files.py::*",
    "tests/test_internals.py::*",
    "tests/test_losses.py::*",
    "tests/test_preprocessing.py::*",
    "tests/test_tables.py::*",
    "tests/test_package.py::test_imports_go_one_way",
    "tests/test_readme.py::test_commands_parse",
    "tests/attacks/test_gradients.py::*",
    "tests/attacks/test_judging.py::*",
    "tests/attacks/test_names.py::*",
    "tests/attacks/test_survivors.py::*",
    "tests/attacks/test_threats.py::*",
    "tests/data/test_batches.py::*",
    "tests/data/test_prepared.py::*",
    "tests/evaluation/test_attack_names.py::*",
    "tests/evaluation/test_corruptions.py::*",
    "tests/evaluation/test_intervals.py::*",
    "tests/evaluation/test_report.py::*",
    "tests/models/test_blocks.py::*",
    "tests/models/test_classifier.py::*",
    "tests/models/test_graph.py::*",
    "tests/models/pytorch/test_wrappers.py::*",
    "tests/training/test_schedules.py::*",
    # what is refused: configurations, inputs, flags and requests
    "tests/attacks/*refus*",
    "tests/evaluation/*::test_refusals",
    "tests/models/test_zoo.py::*refused*",
    "tests/serving/*::test_refusals",
    "tests/training/*refus*",
    "*::test_bad_configurations",
    "*::test_bad_input*",
    "*::test_bad_values",
    "*::test_bad_bodies",
    "*::test_bad_requests",
]


def pytest_collection_modifyitems(config, items):
    """Marks the tests that FAST lists. A pattern without a test is an error in a run of all fast tests."""
    unused = set(FAST)
    for item in items:
        patterns = {pattern for pattern in FAST if fnmatch.fnmatchcase(item.nodeid.partition("[")[0], pattern)}
        if patterns and not item.get_closest_marker("slow"):
            item.add_marker("fast")
        unused -= patterns
    whole = config.args_source is config.ArgsSource.TESTPATHS  # no file was named
    if config.option.markexpr == "fast" and whole and unused:
        raise pytest.UsageError(f"FAST in tests/conftest.py lists what does not exist: {', '.join(sorted(unused))}")


# Folders whose tests share trained runs, as fixtures of the session.
SHARING = ("tests/cli", "tests/run")


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Returns the scheduler of --dist=loadfile, except that it treats a folder of SHARING as one file."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            folder = nodeid.partition("::")[0].rpartition("/")[0]
            return folder if folder in SHARING else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def no_process_in_a_fast_test(request, monkeypatch):
    """Makes a test that is marked fast fail when it starts a process."""
    if request.node.get_closest_marker("fast"):

        def refuse(*_, **__):
            raise AssertionError("A fast test must not start a process. Take it out of FAST in tests/conftest.py.")

        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(scope="session")
def tiny_model():
    """Returns a function that builds a convolutional classifier: images of 8 x 8 x 3 pixels, 4 classes."""

    def build(activation="silu", batch_norm=True, seed=0):
        keras.utils.set_random_seed(seed)
        layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(2 / 255, -1.0, dtype="float32")]
        layers += [keras.layers.Conv2D(8, 3, strides=2, padding="same")]
        layers += [keras.layers.BatchNormalization(synchronized=True)] if batch_norm else []
        layers += [keras.layers.Activation(activation), keras.layers.Flatten(), keras.layers.Dense(4, dtype="float32")]
        return keras.Sequential(layers)

    return build


@pytest.fixture(scope="module")
def shared_model(tiny_model):
    """Returns one tiny model for the tests of a file that do not change it: they share what attacks trace for it."""
    return tiny_model()


@keras.saving.register_keras_serializable("keras_sat_tests")
class Quantized(keras.layers.Conv2D):
    """A convolution with its own `call`, which rounds the weights to three levels for each sign."""

    def call(self, inputs):
        step = tf.reduce_max(tf.abs(self.kernel)) / 3
        kernel = self.kernel + tf.stop_gradient(tf.round(self.kernel / step) * step - self.kernel)
        return keras.ops.conv(inputs, kernel, strides=self.strides, padding=self.padding) + self.bias


@keras.saving.register_keras_serializable("keras_sat_tests")
class Forgetful(keras.layers.Layer):
    """A layer whose get_config leaves out an argument that has a default."""

    def __init__(self, gain=1.0, **kwargs):
        super().__init__(**kwargs)
        self.gain = gain

    def call(self, inputs):
        return keras.ops.tanh(self.gain * inputs)

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable, "dtype": "float32"}


@keras.saving.register_keras_serializable("keras_sat_tests")
class Derived(keras.layers.Layer):
    """A layer that computes with a constant, which it computes from its weight when weights are loaded."""

    def build(self, input_shape):
        self.raw = self.add_weight(shape=(), initializer="ones", trainable=False, name="raw")
        self.gain = 1.0

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.gain = float(np.exp(store["0"]))

    def call(self, inputs):
        return self.gain * inputs


@keras.saving.register_keras_serializable("keras_sat_tests")
class AlwaysDropping(keras.layers.Dropout):
    """Monte Carlo dropout: it also drops units in inference."""

    def call(self, inputs, training=False):
        return super().call(inputs, training=True)


@pytest.fixture
def foreign_model(images):
    """Returns a function that builds a classifier with unusual layers: images of 8 x 8 x 3 pixels, 4 classes."""

    def adapted():
        layer = keras.layers.Normalization()
        layer.adapt(images.astype(np.float32))
        return layer

    def derived():
        layer = Derived()
        layer.build(None)
        layer.load_own_variables({"0": np.float32(0.7)})
        layer.raw.assign(0.7)
        return layer

    def convolution(layer=keras.layers.Conv2D):
        return layer(8, 3, strides=2, padding="same")

    def lora():
        layer = keras.layers.Conv2D(8, 3, strides=2, padding="same")
        layer.build((None, 8, 8, 3))
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(0.1 * np.random.default_rng(0).normal(size=layer.lora_kernel_b.shape))
        return layer

    parts = {
        "normalization": lambda: (adapted(), convolution()),
        "derived": lambda: (derived(), convolution()),
        "own convolution": lambda: (keras.layers.Rescaling(2 / 255, -1.0), convolution(Quantized)),
        "forgetful": lambda: (keras.layers.Rescaling(2 / 255, -1.0), Forgetful(3.0), convolution()),
        "random": lambda: (keras.layers.Rescaling(2 / 255, -1.0), AlwaysDropping(0.3), convolution()),
        "lora": lambda: (keras.layers.Rescaling(2 / 255, -1.0), lora()),
    }

    def build(name):
        keras.utils.set_random_seed(0)
        layers = [*parts[name](), keras.layers.BatchNormalization(), keras.layers.Activation("silu")]
        model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Flatten(), keras.layers.Dense(4)])
        norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
        random = np.random.default_rng(1)
        norm.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in norm.get_weights()])
        return model

    return build


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 4, 8)


@pytest.fixture(scope="session")
def write_checkpoint():
    """Returns a function that writes {name: array} as a TF1 checkpoint and returns its prefix."""

    def written(prefix, arrays):
        names = sorted(arrays)
        tensors = [arrays[name] for name in names]
        tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
        return prefix

    return written


@pytest.fixture(scope="session")
def write_release(write_checkpoint):
    """Returns a function that writes a network as a checkpoint with the names of the authors' release."""
    from keras_sat.models import release

    def written(prefix, network):
        variables = release._names(network).items()
        return write_checkpoint(prefix, {name: variable.numpy() for name, variable in variables})

    return written


@pytest.fixture(scope="session")
def free_ports():
    """Returns a function that returns the given number of unused ports of this machine."""

    def find(number):
        sockets = [socket.socket() for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        return ports

    return find


@pytest.fixture(scope="session")
def shades():
    """Returns a function that makes a smooth picture as a Pillow image."""

    def make(mode="RGB", size=(60, 80)):
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
        pixels = np.stack([rows * 4, columns * 3, rows + columns], -1).astype(np.uint8)
        image = Image.fromarray(pixels)
        return image.quantize(32) if mode == "P" else image.convert(mode)

    return make


@pytest.fixture(scope="session")
def encode(shades):
    """Returns a function that returns the bytes of an image file."""

    def make(mode, kind, **options):
        file = io.BytesIO()
        shades(mode).save(file, kind, **options)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def image_files(shades, encode):
    """Returns {kind: bytes}: one picture in every kind of image file that TensorFlow and Pillow decode."""
    deep = np.asarray(shades()).astype(np.uint16) * 257 + 100
    fine = {"quality": 95, "subsampling": 0}
    return {
        "JPEG": encode("RGB", "JPEG", **fine),
        "grey JPEG": encode("L", "JPEG", quality=95),
        "progressive JPEG": encode("RGB", "JPEG", **fine, progressive=True),
        "CMYK JPEG": encode("CMYK", "JPEG", quality=95),
        "PNG": encode("RGB", "PNG"),
        "grey PNG": encode("L", "PNG"),
        "grey PNG with alpha": encode("LA", "PNG"),
        "PNG with alpha": encode("RGBA", "PNG"),
        "PNG with a palette": encode("P", "PNG"),
        "PNG of one bit": encode("1", "PNG"),
        "PNG of 16 bits": tf.io.encode_png(deep).numpy(),
        "grey PNG of 16 bits": tf.io.encode_png(deep[..., :1]).numpy(),
        "GIF": encode("P", "GIF"),
        "grey GIF": encode("L", "GIF"),
        "BMP": encode("RGB", "BMP"),
        "grey BMP": encode("L", "BMP"),
        "BMP with alpha": encode("RGBA", "BMP"),
        "BMP with a palette": encode("P", "BMP"),
        "WebP": encode("RGB", "WEBP", lossless=True),
        "lossy WebP": encode("RGB", "WEBP", quality=95),
        "WebP with alpha": encode("RGBA", "WEBP", lossless=True),
    }
