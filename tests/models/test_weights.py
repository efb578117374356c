import os
import pathlib
import re
import shutil
import warnings

import h5py
import keras
import numpy as np
import pytest

from keras_sat import data, evaluation, files, models
from keras_sat.attacks import PGD, LinfBall
from keras_sat.models import normalization
from keras_sat.models import weights as weights_lib

EMBEDDED = [entry for entry in weights_lib.entries() if "file" in entry]
GETTING_STARTED = pathlib.Path(__file__).parent.parent.parent / "docs" / "getting_started.md"
TAG = "sat-fashion-mnist"


def small(**options):
    return models.ResNet8(**{"input_shape": (16, 16, 3), "classes": 4, **options})


@pytest.fixture
def path(tmp_path):
    small().save_weights(tmp_path / "net.weights.h5")
    return tmp_path / "net.weights.h5"


def test_a_path_is_loaded(path):
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(small(weights=path)(images), small(weights=str(path))(images))


def test_a_path_may_begin_with_the_home_folder(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    for home in ("~/net.weights.h5", pathlib.Path("~", "net.weights.h5")):
        np.testing.assert_array_equal(small(weights=home).get_weights()[0], small(weights=path).get_weights()[0])


def test_channels_and_classes_are_those_of_a_file(tmp_path):
    for build, size in ((models.ResNet8, 32), (models.PreActResNet18, 32), (models.EfficientNetB0, 224)):
        path = tmp_path / f"{build.__name__}.weights.h5"
        build(input_shape=(16, 16, 1), classes=3).save_weights(path)
        model = build(weights=path)
        assert (model.input_shape, model.output_shape) == ((None, size, size, 1), (None, 3))


def test_the_reason_for_which_a_file_does_not_fit_is_said(tmp_path):
    path = tmp_path / "net.weights.h5"
    models.WideResNet(10, 1, normalization="cifar10").save_weights(path)
    with pytest.raises(ValueError, match="it normalizes images with another mean"):
        models.WideResNet(10, 1, normalization="cifar100", weights=path)
    with pytest.raises(ValueError, match="it holds a layer .*, which the network does not have"):
        models.WideResNet(10, 1, "dm", normalization="cifar10", weights=path)


def test_files_that_do_not_fit_are_refused(path, tmp_path):
    for options in ({"classes": 5}, {"input_shape": (16, 16, 1)}):
        with pytest.raises(ValueError, match="damaged or does not fit ResNet8"):
            small(weights=path, **options)
    with pytest.raises(ValueError, match="damaged or does not fit ResNet20"):
        models.ResNet20(input_shape=(16, 16, 3), classes=4, weights=path)
    with pytest.raises(ValueError, match="no weights file"):
        small(weights=tmp_path / "other.weights.h5")
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match="damaged"):
        small(weights=cut)
    cut.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="damaged"):
        small(weights=cut)


@pytest.mark.parametrize("entry", EMBEDDED, ids=lambda entry: entry["id"])
def test_embedded_weights_are_as_robust_as_their_card_says(entry):
    assert os.path.getsize(weights_lib.fetch(entry, None)) <= 2_000_000
    assert set(entry["measured"]) == {"clean", "pgd-50", "autoattack"}
    model = models.BUILDERS[entry["model"]](activation=entry["activation"], weights=TAG)
    images = 600 if entry["model"] == "ResNet8" else 40
    test = data.load("fashion_mnist_mini", f"test[:{images}]", 200)
    report = evaluation.evaluate(model, test, {"pgd-50": PGD(LinfBall(25.5), steps=50)}, progress=False)
    for name in ("clean", "pgd-50"):
        low, high = (bound / 100 for bound in entry["measured"][name]["interval"])
        assert report[name].interval[0] <= high
        assert report[name].interval[1] >= low
    assert report["pgd-50"].accuracy > 0.5


@pytest.mark.parametrize("entry", EMBEDDED, ids=lambda entry: entry["id"])
def test_the_figures_in_getting_started_are_those_of_the_card(entry):
    cells = [f"| {entry['model']}, {entry['activation']} "]
    for name in ("clean", "pgd-50", "autoattack"):
        cells.append("| {accuracy} % ({interval[0]} .. {interval[1]}) ".format(**entry["measured"][name]))
    assert "".join(cells) + "|\n" in GETTING_STARTED.read_text()


@pytest.mark.parametrize("entry", EMBEDDED, ids=lambda entry: entry["id"])
def test_the_source_says_how_embedded_weights_were_trained(entry):
    page, _, anchor = entry["source"].partition("#")
    sections = re.split(r"^## ", (GETTING_STARTED.parent.parent / page).read_text(), flags=re.MULTILINE)
    (section,) = [text for text in sections if text.split("\n")[0].lower().replace(" ", "-") == anchor]
    assert entry["model"] in section


def test_shape_and_classes_are_those_of_the_weights_unless_said():
    model = models.ResNet8(activation="swish", weights=TAG)
    assert (model.input_shape, model.output_shape) == ((None, 28, 28, 1), (None, 10))
    with pytest.warns(UserWarning, match="head of ResNet8 is new: the weights have 10 classes, not 3"):
        tuned = models.ResNet8(weights=TAG, classes=3, input_shape=(40, 40, 1))
    assert (tuned.input_shape, tuned.output_shape) == ((None, 40, 40, 1), (None, 3))
    np.testing.assert_array_equal(tuned.get_layer("conv0").kernel, model.get_layer("conv0").kernel)


def test_embedded_weights_that_do_not_fit_or_were_changed_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"take grey images \(1 channel\)"):
        models.ResNet8(weights=TAG, input_shape=(28, 28, 3))
    with pytest.raises(ValueError, match="'mish'; there are for relu, silu"):
        models.ResNet8(weights=TAG, activation="mish")
    folder = tmp_path / "models"
    shutil.copytree(os.path.dirname(weights_lib.REGISTRY), folder)
    with open(folder / "fashion_mnist" / "ResNet8-silu.weights.h5", "r+b") as file:
        file.seek(100_000)
        file.write(b"changed")
    monkeypatch.setattr(weights_lib, "__file__", str(folder / "weights.py"))
    with pytest.raises(ValueError, match="not the file that came with keras_sat: install the package again"):
        models.ResNet8(weights=TAG)


def test_a_network_is_built_again_only_where_the_shapes_differ(monkeypatch):
    built = []

    def counted(apply):
        def applied(x, *arguments):
            built.append(x.shape)
            return apply(x, *arguments)

        return applied

    monkeypatch.setattr(normalization, "apply", counted(normalization.apply))
    inputs = keras.Input((28, 28, 1))
    centred = keras.layers.Normalization(mean=0.0, variance=1.0)(inputs)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1)).astype(np.uint8)
    logits = models.ResNet8(weights=TAG)(images)
    for options, networks in (
        ({}, 1),
        ({"input_shape": (40, 40, 1)}, 1),
        ({"input_tensor": inputs}, 1),
        ({"input_tensor": centred}, 1),
        ({"input_tensor": keras.layers.Conv2D(1, 1, kernel_initializer="ones")(inputs)}, 2),
        ({"include_top": False}, 2),
        ({"classes": 3}, 2),
    ):
        built.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if "classes" in options else "error", UserWarning)
            model = models.ResNet8(weights=TAG, **options)
        assert len(built) == networks, options
        if "input_tensor" in options:
            np.testing.assert_allclose(model(images), logits, atol=1e-4)


def test_leftovers_in_a_file_are_refused(tmp_path):
    """A file of smooth_relu holds a beta for each site, which silu does not have."""
    path = tmp_path / "smooth.weights.h5"
    models.ResNet8(activation="smooth_relu", input_shape=(8, 8, 1)).save_weights(path)
    with pytest.raises(ValueError, match=r"it holds \d+ variables, of which the network has \d+"):
        models.ResNet8(activation="silu", input_shape=(8, 8, 1), weights=path)
    models.ResNet8(activation="smooth_relu", input_shape=(8, 8, 1), weights=path)


def test_a_full_cache_that_is_read_only_is_used(tmp_path, monkeypatch):
    """A lock file cannot be written there, and need not."""
    entry = models.weights.find("ResNet50", "silu", "sat-imagenet")
    path = tmp_path / f"{entry['id']}.weights.h5"
    path.write_bytes(b"weights")
    (tmp_path / f"{path.name}.sha256").write_text(files.sha256(path))
    monkeypatch.setenv("KERAS_SAT_HOME", str(tmp_path))
    assert models.weights.fetch(entry, None) == str(path)
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.sha256"]  # no lock


@pytest.mark.parametrize("activation", ["relu", "silu", {"name": "gelu", "approximate": False}, "smooth_relu", "mish"])
def test_a_file_that_notes_its_activation_is_refused_by_another(activation, tmp_path):
    path = tmp_path / "net.weights.h5"
    weights_lib.save_file(small(activation=activation), path)
    small(activation=activation, weights=path)
    for other in ("elu", "gelu"):
        with pytest.raises(ValueError, match="does not fit ResNet8"):
            small(activation=other, weights=path)


def test_the_noted_activation_is_that_of_the_forward_pass(tmp_path):
    path = tmp_path / "net.weights.h5"
    weights_lib.save_file(small(activation={"name": "relu", "smooth_backward": "attacker"}), path)
    small(activation="relu", weights=path)
    with pytest.raises(ValueError, match="weights of a network with relu, not silu"):
        small(activation="silu", weights=path)
    small(activation="silu").load_weights(path)  # for Keras it is an ordinary file


@pytest.mark.parametrize(
    ("saved", "same", "other", "told"),
    [
        (
            "leaky_relu",
            {"name": "leaky_relu", "negative_slope": 0.2},
            {"name": "leaky_relu", "negative_slope": 0.1},
            "0.2",
        ),
        (
            {"name": "leaky_relu", "negative_slope": 0},
            {"name": "leaky_relu", "negative_slope": 0.0},
            "relu",
            "LeakyReLU",
        ),
        (keras.layers.ELU, keras.layers.ELU, keras.layers.LeakyReLU, "ELU"),
        (keras.layers.ReLU, keras.layers.ReLU, "silu", "ReLU"),
        ("silu", "silu", keras.layers.ReLU, "silu"),
    ],
)
def test_layers_of_keras_are_noted_too(saved, same, other, told, tmp_path):
    path = tmp_path / "x.weights.h5"
    weights_lib.save_file(small(activation=saved), path)
    small(activation=same, weights=path)
    with pytest.raises(ValueError, match=f"the weights of a network with .*{told}"):
        small(activation=other, weights=path)


def test_files_that_note_no_layers_of_keras_load_as_before(tmp_path):
    path = tmp_path / "x.weights.h5"
    weights_lib.save_file(small(activation="leaky_relu"), path)
    with h5py.File(path, "a") as file:
        del file.attrs["keras_sat_activation_layers"]
    small(activation="leaky_relu", weights=path)
    with pytest.raises(ValueError, match="with no activation, not relu"):
        small(activation="relu", weights=path)
