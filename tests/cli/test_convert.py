"""The command `keras-sat convert`."""

import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_sat import cli, models
from keras_sat import run as run_lib

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
DM = {"form": "dm", "activation": "relu", "normalization": "cifar100", "classes": 7}


@pytest.fixture
def torch_file(tmp_path):
    """A network of another number of classes, and the file of its weights for PyTorch."""
    keras.utils.set_random_seed(0)
    model = models.WideResNet(10, 1, **DM)
    models.pytorch.save(model, tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"


NETWORK = ("--model=WideResNet10_1", "--form=dm", "--activation=relu", "--normalization=cifar100")


def test_convert(inside, tmp_path, write_release, monkeypatch, capfd):
    source = models.EfficientNetB0(input_shape=(None, None, 3))
    write_release(tmp_path / "model", source)
    to = tmp_path / "out" / "b0.weights.h5"
    assert inside("convert", f"--from={tmp_path / 'model'}", "--model=EfficientNetB0", f"--to={to}") == 0
    converted = models.EfficientNetB0(input_shape=(None, None, 3), weights=to)
    for one, other in zip(source.get_weights(), converted.get_weights()):
        np.testing.assert_array_equal(one, other)
    capfd.readouterr()
    flags = [f"--from={tmp_path / 'model'}", "--model=EfficientNetB1", f"--to={tmp_path / 'b1.weights.h5'}"]
    monkeypatch.setattr(sys, "argv", ["keras-sat", "convert", *flags])
    with pytest.raises(SystemExit) as left:
        cli.main()
    error = capfd.readouterr().err
    assert (left.value.code, len(error.splitlines())) == (1, 1), error
    assert "missing" in error
    assert not (tmp_path / "b1.weights.h5").exists()


def test_pytorch_to_keras_and_back(inside, torch_file, tmp_path, capsys):
    model, source = torch_file
    path, whole, back = tmp_path / "model.weights.h5", tmp_path / "model.keras", tmp_path / "back.safetensors"
    assert inside("convert", f"--from={source}", *NETWORK, f"--to={path}") == 0
    said = capsys.readouterr().out
    assert f"Written to {path}\nWideResNet10_1, form dm, activation relu, normalization [[0.5071, " in said
    assert ", 7 classes, RGB images. Verified: " in said
    np.testing.assert_array_equal(models.WideResNet(10, 1, **DM, weights=path)(IMAGES), model(IMAGES))
    assert inside("convert", f"--from={path}", *NETWORK, f"--to={whole}") == 0
    np.testing.assert_array_equal(keras.saving.load_model(whole).get_weights()[0], model.get_weights()[0])
    assert inside("convert", f"--from={path}", *NETWORK, f"--to={back}") == 0
    assert f"load_file('{back}')), where model is robustbench." in capsys.readouterr().out
    arrays, again = load_file(source), load_file(back)
    assert arrays.keys() == again.keys()
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


def test_a_run_says_its_network_itself(inside, photos, tmp_path, capsys):
    folder, to = tmp_path / "run", tmp_path / "model.safetensors"
    flags = [f"--dataset={photos}", "--image_size=8", "--crop=stretch", "--channels=1", "--batch_size=10", "--steps=1"]
    flags += ["--model=WideResNet10_1", "--form=dm", "--normalization=[[0.25], [0.5]]", "--epochs=1", "--validation=0"]
    assert inside("train", *flags, f"--output={folder}") == 0
    assert inside("convert", f"--from={folder}", f"--to={to}") == 0
    assert "form dm, activation silu, normalization [[0.25], [0.5]], 2 classes, grey images" in capsys.readouterr().out
    _, model = run_lib.load(folder)
    options = {"input_shape": (8, 8, 1), "activation": "silu"}
    copy = models.pytorch.build(models.builder("WideResNet10_1"), to, form="dm", **options)
    np.testing.assert_array_equal(copy.get_weights()[5], model.get_weights()[5])


def test_refusals(inside, torch_file, tmp_path):
    _, source = torch_file
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "page.pt").write_bytes(b"<html>")
    (tmp_path / "text.pt").write_bytes(b"weights")
    shutil.copy(source, tmp_path / "other.weights.h5")
    to = f"--to={tmp_path / 'new.weights.h5'}"
    for flags, message in (
        (
            [f"--from={source}", *NETWORK, f"--to={tmp_path / 'model.pt'}"],
            "--to must end in one of .weights.h5, .keras",
        ),
        ([f"--from={source}", *NETWORK, f"--to={source}"], "exists: choose a new file, or remove it first"),
        ([f"--from={tmp_path / 'none'}", *NETWORK, to], "There is no file, folder or checkpoint at"),
        ([f"--from={source}", to], "is a file of PyTorch: say its network, --model"),
        (
            [f"--from={source}", "--model=WideResNet10_1", f"--to={tmp_path / 'model.keras'}"],
            "say it, such as --activation=relu",
        ),
        ([f"--from={source}", *NETWORK, "--ema", to], "--ema does not go with"),
        ([f"--from={tmp_path / 'run'}", "--form=dm", to], "--form does not go with .* the folder of a run"),
        ([f"--from={source}", *NETWORK, "--form=wide", to], "form of WideResNet10_1 must be one of trades, dm"),
        ([f"--from={source}", *NETWORK, "--form=trades", to], "does not fit WideResNet10_1: .* missing"),
        ([f"--from={source}", *NETWORK, "--normalization=cifar10", to], "is of a network that normalizes images with"),
        ([f"--from={source}", *NETWORK, "--classes=9", to], "of another shape"),
        ([f"--from={source}", *NETWORK, "--channels=1", to], "of another shape"),
        ([f"--from={source}", *NETWORK, "--choice=best", to], "best"),
        ([f"--from={tmp_path / 'page.pt'}", *NETWORK, to], "a web page"),
        ([f"--from={tmp_path / 'text.pt'}", *NETWORK, to], "unknown format"),
        (
            [f"--from={tmp_path / 'other.weights.h5'}", "--model=ResNet8", "--activation=silu", to],
            "form that PyTorch's checkpoints do not",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            inside("convert", *flags)
    assert not list(pathlib.Path(tmp_path).glob("*new*"))


def test_networks_that_pytorch_does_not_have_are_not_written_for_it(inside, tmp_path):
    models.ResNet8().save_weights(tmp_path / "m.weights.h5")
    flags = [f"--from={tmp_path / 'm.weights.h5'}", "--model=ResNet8", "--activation=silu"]
    with pytest.raises(ValueError, match="form that PyTorch's checkpoints do not have"):
        inside("convert", *flags, f"--to={tmp_path / 'm.safetensors'}")
    assert [path.name for path in tmp_path.iterdir()] == ["m.weights.h5"]


def test_an_activation_that_is_not_said_is_the_default_with_a_warning(inside, tmp_path, capsys):
    source = tmp_path / "model.safetensors"
    models.pytorch.save(models.WideResNet(10, 1, "dm", normalization=((0.2,), (0.5,)), input_shape=(8, 8, 1)), source)
    flags = [f"--from={source}", "--model=WideResNet10_1", "--form=dm", "--normalization=[[0.2], [0.5]]"]
    with pytest.warns(UserWarning, match="does not say its activation: silu is used.*--activation="):
        assert inside("convert", *flags, f"--to={tmp_path / 'model.weights.h5'}") == 0
    assert "activation silu, normalization [[0.2], [0.5]], 10 classes, grey images" in capsys.readouterr().out
