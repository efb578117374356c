"""What a file of weights is, and whether the advice about it works."""

import pathlib
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import models
from keras_sat.models import foreign

PYTORCH = pathlib.Path(__file__).parent / "pytorch" / "files"
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)


def network(seed=0, **options):
    keras.utils.set_random_seed(seed)
    return models.ResNet8(input_shape=(16, 16, 3), classes=4, **options)


def refusal(path):
    with pytest.raises(ValueError) as refused:
        network(weights=path)
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture(scope="module")
def source():
    return network(1)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def write(source, folder, kind):
    """Writes a network in a format of Keras or TensorFlow. Returns the path."""
    path = folder / {"keras": "m.keras", "h5 model": "m.h5", "h5 weights": "w.h5", "weights": "m.h5"}.get(kind, "m")
    if kind in ("keras", "h5 model"):
        source.save(path)
    elif kind == "h5 weights":
        source.save(folder / "whole.h5")
        with h5py.File(folder / "whole.h5") as whole, h5py.File(path, "w") as file:
            for name in whole["model_weights"]:
                whole.copy(f"model_weights/{name}", file)
            file.attrs.update(whole["model_weights"].attrs)
    elif kind == "checkpoint":
        tf.train.Checkpoint(model=source).write(str(path))
    elif kind == "checkpoint of a training":
        return tf.train.Checkpoint(model=source, step=tf.Variable(1)).save(str(path))
    elif kind == "weights":
        source.save_weights(folder / "m.weights.h5")
        shutil.move(folder / "m.weights.h5", path)
    return path


@pytest.mark.parametrize(
    ("kind", "advised"),
    [
        ("keras", 'model = keras.saving.load_model("{path}")'),
        ("h5 model", 'model = keras.saving.load_model("{path}")'),
        ("h5 weights", 'model.load_weights("{path}")'),
        ("checkpoint", 'tf.train.Checkpoint(model=model).read("{path}").assert_existing_objects_matched()'),
        (
            "checkpoint of a training",
            'tf.train.Checkpoint(model=model).read("{path}").assert_existing_objects_matched()',
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_the_advice_works(kind, advised, source, tmp_path, monkeypatch):
    path = write(source, tmp_path, kind)
    message, line = refusal(path), advised.format(path=path)
    assert line in message
    assert 'model.save_weights("model.weights.h5")' in message
    monkeypatch.chdir(tmp_path)
    names = {"keras": keras, "tf": tf, "model": network(2)}
    exec(line, names)
    names["model"].save_weights("model.weights.h5")
    np.testing.assert_array_equal(network(3, weights="model.weights.h5")(IMAGES), source(IMAGES))


def test_weights_with_another_suffix_are_to_be_renamed(source, tmp_path):
    assert "must end in .weights.h5: rename it" in refusal(write(source, tmp_path, "weights"))


@pytest.mark.parametrize("name", ["training.pt", "training_legacy.pt", "training_protocol5.pt", "kinds.safetensors"])
@pytest.mark.parametrize("suffix", [None, ".weights.h5"])
def test_a_file_of_pytorch_is_converted(name, suffix, tmp_path):
    path = PYTORCH / name
    if suffix:
        path = shutil.copy(path, tmp_path / f"m{suffix}")
    assert (
        f"{path} is a file of PyTorch: keras-sat convert --from={path} --model=ResNet8 --form=FORM --activation=relu "
        "--to=model.weights.h5"
    ) in pytest.raises(ValueError, network, weights=path, activation="relu").value.args[0]


def test_the_command_names_form_and_activation():
    activation = {"name": "gelu", "approximate": False}
    flags = foreign.network_flags("ResNet50", activation, "torchvision")
    assert flags == """--model=ResNet50 --form=torchvision '--activation={"name": "gelu", "approximate": false}'"""
    assert "--activation=ACTIVATION" in foreign.network_flags("ResNet50", keras.layers.ReLU())


def test_checkpoints_of_tensorflow(source, tmp_path, write_checkpoint):
    release = write_checkpoint(tmp_path / "sat", {"conv0/W": np.ones(1, np.float32)})
    for name in (release, f"{release}.index", f"{release}.data-00000-of-00001"):
        assert f"keras-sat convert --from={release} --model=ResNet8" in refusal(name)
    layers = {"layer_with_weights-0": tf.Variable(1.0)}
    tf.train.Checkpoint(**layers).write(str(tmp_path / "old"))
    assert 'with Keras 2, model.load_weights("' in refusal(tmp_path / "old")
    (tmp_path / "cut.index").write_bytes(b"cut")
    assert "unknown kind" in refusal(tmp_path / "cut")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file that cannot be read"),
        (b"\x1c\0\0\0TFL3", "keras-sat evaluate"),
        (b"\x1f\x8b\x08", "extract it"),
        (b"PK\x03\x04", "unknown kind"),
        (b"\x93NUMPY", "unknown kind"),
    ],
)
def test_other_files(content, message, tmp_path):
    for name in ("m.weights.h5", "m.pb"):
        (tmp_path / name).write_bytes(content)
        assert message in refusal(tmp_path / name)


def test_other_archives_and_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("kernel.npy", b"")
    assert "an archive" in refusal(tmp_path / "m.npz")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["data"] = np.zeros(3)
    assert "holds no weights of Keras" in refusal(tmp_path / "m.h5")
    for name, message in (("saved_model.pb", "load_for_fine_tuning"), ("run.json", "folder of a run")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        assert "is a folder" in refusal(folder)
        (folder / name).write_bytes(b"")
        assert message in refusal(folder)


def test_what_is_not_there(tmp_path):
    assert "There is no weights file at" in refusal(tmp_path / "none.weights.h5")
    assert "weights must be None, one of" in refusal("imagenet")
