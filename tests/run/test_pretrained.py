"""Weights to train on from: what is known of them, and the networks that begin with them."""

import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import data, export, models, provenance
from keras_sat import run as run_lib
from keras_sat.attacks import PGD, LinfBall
from keras_sat.models import classifier
from keras_sat.models import weights as weights_lib
from keras_sat.training import AdversarialModel

TAG = "sat-fashion-mnist"
CLASSES = data.class_names("fashion_mnist_mini")


@pytest.fixture(scope="module")
def forms(trained_on_photos, tmp_path_factory):
    """The weights of one network in every form: {kind: path}. Its classes are bright and dark, its images 12 x 12."""
    folder, path = tmp_path_factory.mktemp("forms"), trained_on_photos / "run"
    run, model = run_lib.load(path)
    run_lib.export(run, model, path, folder / "export")
    model.save(folder / "whole.keras")
    weights_lib.save_file(model, folder / "alone.weights.h5")
    paths = {name: folder / name for name in ("export", "whole.keras", "alone.weights.h5")}
    return {"run": path, **paths}, model


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3)).astype(np.float32)


def test_all_forms_of_weights_give_the_same_network(forms, pictures):
    paths, model = forms
    digest = provenance.weights_sha256(model)
    for kind, path in paths.items():
        found = run_lib.find(path)
        assert (found.model, found.form, found.activation, found.channels, found.number) == (
            "ResNet8",
            "sat",
            "silu",
            3,
            2,
        )
        assert found.classes == (None if "." in kind else ["bright", "dark"])
        assert found.image_size == (None if kind == "alone.weights.h5" else 12)
        assert (found.source, found.sha256) == (str(path), digest)
        network, lines = found.build((12, 12, 3), ["bright", "dark"])
        np.testing.assert_allclose(network(pictures), model(pictures), atol=1e-5)
        said = "as many classes as the data, 2, but do not name" if "." in kind else "the 2 classes of the data."
        assert said in lines[1]
        assert len(lines) == 2


def test_a_file_of_a_run_is_described_by_its_run(trained_on_photos, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_on_photos / "run", run)
    shutil.copy(run / "model.weights.h5", run / "last.weights.h5")
    shutil.copy(run / "model.weights.h5", run / "mine.weights.h5")
    for name in ("model", "last"):
        found = run_lib.find(run / f"{name}.weights.h5")
        assert (found.classes, found.image_size) == (["bright", "dark"], 12)
        assert (found.source, found.sha256) == (str(run / f"{name}.weights.h5"), run_lib.find(run).sha256)
    assert run_lib.find(run / "mine.weights.h5").classes is None
    for open_ in (run_lib.find, run_lib.load):
        with pytest.raises(ValueError, match=f"is a file of a run: say the folder of the run, {run}"):
            open_(run / "run.json")
    with pytest.raises(ValueError, match="say the folder of the run"):
        run_lib.load(run / "model.weights.h5")


def test_the_parent_of_an_export(forms, tmp_path):
    shutil.copytree(forms[0]["export"], tmp_path / "versions" / "1")
    with pytest.raises(ValueError, match="is no SavedModel. It holds an export: say .*versions/1"):
        run_lib.find(tmp_path / "versions")


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((28, 28), CLASSES, r"input_shape must be \(height, width, channels\). Received: \(28, 28\)"),
        ((28, 28, 1), 3, "classes must be the names of the classes, one a class. Received: 3"),
        ((28, 28, 1), "abc", "classes must be the names of the classes"),
    ],
)
def test_wrong_shapes_and_classes(shape, classes, message):
    with pytest.raises(ValueError, match=message):
        run_lib.pretrained_network(TAG, shape, classes)


def test_classes_are_matched_by_name_in_any_order():
    original = models.ResNet8(weights=TAG)
    names = [name.replace("/", "_").lower() for name in reversed(CLASSES)]  # as folders have them
    network, lines = run_lib.find(TAG, activation="silu").build((28, 28, 1), names)
    images, _ = next(iter(data.load("fashion_mnist_mini", "test", 8)))
    np.testing.assert_allclose(network(images), original(images).numpy()[:, ::-1], atol=1e-5)
    assert lines[1].endswith("the 10 classes of the data; its outputs are put into the order of the data.")


def test_other_classes_get_a_new_last_layer_and_images_of_another_size_are_said():
    said = []
    classes = ["one", "two", "three"]
    network = run_lib.pretrained_network(TAG, (20, 16, 1), classes, say=said.append, model="ResNet20")
    original = models.ResNet20(weights=TAG, input_shape=(20, 16, 1))
    images = np.random.default_rng(0).uniform(0, 255, (4, 20, 16, 1))
    features = [classifier.features(model)(images) for model in (network, original)]
    np.testing.assert_allclose(*features, atol=1e-5)
    assert network(images).shape == (4, 3)
    assert said == [
        "Training begins with the weights sat-fashion-mnist: ResNet20 (sat, silu).",
        "The last layer is new: the weights have 10 classes (T-shirt/top, Trouser, Pullover, Dress, Coat, ...), the "
        "data 3 (one, two, three).",
        "The weights were trained on images of 28 x 28 pixels; these are 20 x 16.",
    ]


def test_channels(forms):
    of_grey, of_rgb = run_lib.find(TAG), run_lib.find(forms[0]["run"])
    assert (of_grey.channels_for(1), of_rgb.channels_for(1), of_rgb.channels_for(3)) == (1, 3, 3)
    with pytest.raises(ValueError, match="take grey images, these are RGB: --channels=1"):
        of_grey.channels_for(3)
    with pytest.raises(ValueError, match="take grey images, these are RGB: --channels=1"):
        of_grey.build((12, 12, 3), CLASSES)
    with pytest.raises(ValueError, match="take RGB images, 3 channels: load grey images with --channels=3"):
        of_rgb.build((12, 12, 1), ["bright", "dark"])
    _, lines = of_rgb.build((12, 12, 3), ["a", "b", "c"], images_channels=1)
    assert lines[-1] == "The weights take images in RGB: grey images get three equal channels."


def test_an_old_run_says_less(forms, tmp_path):
    shutil.copytree(forms[0]["run"], tmp_path / "old")
    record = json.loads((tmp_path / "old" / "run.json").read_text())
    for name in ("data", "form", "normalization"):
        del record[name]
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    found = run_lib.find(tmp_path / "old")
    assert (found.form, found.channels, found.image_size, found.number) == ("sat", 3, 12, 2)
    assert found.classes is None


def test_the_weights_own_normalization_is_taken():
    found = run_lib.find("robustbench/Augustin2020Adversarial")
    assert (found.model, found.form, found.activation, found.number) == ("ResNet50", "small", "relu", 10)
    assert found.normalization == next(
        entry["normalization"] for entry in weights_lib.entries() if entry["tag"] == found.source
    )
    assert run_lib.find("robustbench/Andriushchenko2020Understanding").normalization == "none"
    assert run_lib.find(TAG, normalization=[0.5, 0.5]).normalization is None


@pytest.mark.parametrize(
    "kind, given, message",
    [
        ("run", {"activation": "relu"}, "has activation 'silu': leave out activation. Received: 'relu'"),
        ("run", {"model": "ResNet20"}, "has model 'ResNet8': leave out model. Received: 'ResNet20'"),
        ("export", {"form": "small"}, "has form 'sat': leave out form. Received: 'small'"),
        ("export", {"normalization": "none"}, "has normalization .*: leave out normalization. Received: 'none'"),
        ("alone.weights.h5", {"model": "VGG"}, "model must be one of .*Received: 'VGG'"),
        ("alone.weights.h5", {"model": "ResNet50", "form": "torchvision"}, "no last dense layer fc. Say which network"),
        (
            TAG,
            {"activation": "gelu"},
            "no weights 'sat-fashion-mnist' for ResNet8 with activation 'gelu'; there are for",
        ),
        ("sat-imagenet", {}, "no weights 'sat-imagenet' for ResNet8; there are for .*ResNet50"),
        ("sat-cifar", {}, "There are no weights 'sat-cifar'; there are"),
        ("nowhere", {}, r"There are no weights .*nowhere': a tag \(sat-fashion-mnist, .*\), the folder of a run"),
    ],
)
def test_arguments_that_are_not_those_of_the_weights_are_refused(forms, kind, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        run_lib.find(forms[0].get(kind, kind), **given)
    assert "\n" not in str(caught.value)


def test_what_is_no_weights_is_refused(forms, tiny_model, tmp_path):
    (tmp_path / "page.weights.h5").write_text("<html>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    shutil.copy(forms[0]["run"] / "run.json", tmp_path / "begun")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    export.export_saved_model(tiny_model(), tmp_path / "unnamed", signatures=[])
    for name, message in (
        ("page.weights.h5", "a web page"),
        ("empty", "is a folder, not a file of weights"),
        ("begun", "holds a run without weights yet"),
        ("torn", "run.json is damaged"),
        ("unnamed", r"does not say its network \(assets.robustness_card.json\).*load_for_fine_tuning"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            run_lib.find(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_of_another_network_is_refused_when_it_is_loaded(forms, tiny_model, tmp_path):
    paths, _ = forms
    tiny_model().save(tmp_path / "tiny.keras")
    for path, given, message in (
        (paths["alone.weights.h5"], {"activation": "relu"}, "network with silu, not relu.*Say which network it is of"),
        (paths["alone.weights.h5"], {"model": "ResNet20"}, "does not fit ResNet20.*Say which network it is of"),
        (paths["whole.keras"], {"activation": "relu"}, "do not compute the same in the network ResNet8: it has logits"),
        (tmp_path / "tiny.keras", {}, "tiny.keras does not fit ResNet8.*Say which network it is of"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            run_lib.find(path, **given).build((12, 12, 3), ["bright", "dark"])
        assert "\n" not in str(caught.value)


def test_under_a_strategy_and_in_mixed_precision(forms, pictures):
    paths, model = forms
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with strategy.scope():
            network, _ = run_lib.find(paths["export"]).build((12, 12, 3), ["dark", "bright"])
    finally:
        keras.config.set_dtype_policy("float32")
    assert classifier.computes_low(network)
    for own, theirs in zip(network.weights[:-2], model.weights[:-2]):
        for value in strategy.experimental_local_results(own.value):
            np.testing.assert_array_equal(value, theirs)
    np.testing.assert_allclose(network(pictures), model(pictures).numpy()[:, ::-1], atol=0.1)


def test_the_last_layer_first_then_all(built):
    network, _ = run_lib.find(TAG).build((14, 14, 1), ["a", "b"])
    images = np.random.default_rng(0).uniform(0, 255, (8, 14, 14, 1)).astype(np.float32)
    labels = np.arange(8) % 2
    moved = []
    for freeze in ("backbone", "batch_norm"):
        classifier.freeze(network, freeze)
        before = {weight.path: weight.numpy() for weight in network.weights}
        trainer = AdversarialModel(network, PGD(LinfBall(8), steps=1))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        built(trainer, images, labels).train_on_batch(images, labels)
        moved.append({path for path in before if np.any(before[path] != _value(network, path))})
    assert moved[0] == {"linear/kernel", "linear/bias"}
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert moved[1] == {weight.path for weight in network.weights} - {w.path for norm in norms for w in norm.weights}


def _value(network, path):
    return next(weight.numpy() for weight in network.weights if weight.path == path)


def test_a_relative_path_becomes_absolute(forms, monkeypatch):
    path = forms[0]["run"]
    monkeypatch.chdir(path.parent)
    assert run_lib.find(path.name).source == os.path.realpath(path)
