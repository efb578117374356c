"""The folder of a run."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from keras_sat import deployed, models
from keras_sat import run as run_lib
from keras_sat.attacks import PGD, LinfBall

FILES = {"model.weights.h5", "last.weights.h5", "run.json", "history.csv", "logs", "checkpoints"}


def test_the_folder_holds_the_weights_the_configuration_and_the_curves(short, trained):
    folder, _ = trained
    assert set(os.listdir(folder)) == FILES
    assert set(os.listdir(folder / "logs")) == {"train", "validation"}
    record = json.loads((folder / "run.json").read_text())
    assert {name: record[name] for name in short.settings()} == short.settings()
    assert record["data"]["preprocessing"]["crop"] == "stretch"
    assert record["data"]["classes"][9] == "Ankle boot"
    assert record["finished"] is True
    assert record["iterations"] == 4
    assert set(record["versions"]) == {"keras_sat", "keras", "tensorflow", "python"}
    assert set(record["history"]) >= {"loss", "adversarial_accuracy", "val_accuracy", "val_robust_accuracy"}


def test_load_gives_the_trained_network_back(short, trained):
    folder, model = trained
    run, loaded = run_lib.load(folder)
    assert run.settings() == short.settings()
    assert run.description == short.description
    images = np.random.default_rng(0).integers(0, 256, (3, 14, 14, 1)).astype(np.uint8)
    np.testing.assert_array_equal(loaded(images), model(images))
    adversarial = PGD(LinfBall(8), steps=2)(model, images, [0, 1, 2])  # though it was trained by two replicas
    np.testing.assert_allclose(loaded(adversarial), model(adversarial), atol=1e-5)


def test_a_run_without_a_form_is_of_the_first_one(trained, tmp_path):
    """As those of ResNet8 that were written before there were forms."""
    folder, model = trained
    shutil.copytree(folder, tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    del record["form"], record["normalization"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    run, loaded = run_lib.load(tmp_path / "run")
    assert (run.form, run.normalization) == (None, None)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


def test_what_cannot_be_read_is_named(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ValueError, match="no folder"):
        run_lib.load(tmp_path / "none")
    with pytest.raises(ValueError, match="run.json is missing.$"):
        run_lib.load(tmp_path)
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="training has not ended: the same `keras-sat train` continues it"):
        run_lib.load(tmp_path / "unfinished")
    for version in ("1", "2"):
        (tmp_path / "served" / version).mkdir(parents=True)
        (tmp_path / "served" / version / "saved_model.pb").touch()
    with pytest.raises(ValueError, match=r"It holds an export: say .*served/2\.$"):
        run_lib.load(tmp_path / "served")
    (tmp_path / "run.json").write_text('{"model": "ResNet8"')
    with pytest.raises(ValueError, match="run.json is damaged"):
        run_lib.load(tmp_path)
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    with pytest.raises(ValueError, match="no weights file"):
        run_lib.load(tmp_path)
    (tmp_path / "model.weights.h5").write_bytes((folder / "model.weights.h5").read_bytes()[:9999])
    with pytest.raises(ValueError, match="model.weights.h5 is damaged"):
        run_lib.load(tmp_path)


def test_a_run_knows_its_classes_and_pixels(trained_on_photos, run_on_photos, tmp_path, monkeypatch):
    """The images and the working folder are no longer needed. Other classes raise an error."""
    record = json.loads((trained_on_photos / "run" / "run.json").read_text())
    assert record["dataset"] == str(trained_on_photos / "photos")
    assert record["data"]["classes"] == ["bright", "dark"]
    assert record["data"]["splits"]["train"]["classes"] == {"bright": 12, "dark": 12}
    expected = {"height": 12, "width": 12, "channels": 3, "crop": "shortest_edge", "interpolation": "bicubic"}
    assert record["data"]["preprocessing"] == expected

    _, photos = run_on_photos
    monkeypatch.chdir(tmp_path)
    run, _ = run_lib.load("run")
    labels = [label for _, y in run.load_data("test", 4).as_numpy_iterator() for label in y]
    os.rename(photos, tmp_path / "moved")
    monkeypatch.chdir("/")
    run, model = run_lib.load(tmp_path / "run")
    run_lib.export(run, model, tmp_path / "run", tmp_path / "saved")
    assert (tmp_path / "saved" / "assets" / "labels.txt").read_text() == "bright\ndark\n"
    assert deployed.preprocessing_of(str(tmp_path / "saved")) == run.description.preprocessing
    with pytest.raises(ValueError, match="photos, which the network was trained on, does not exist.*--dataset=FOLDER"):
        run.load_data("test")

    elsewhere = dataclasses.replace(run, dataset=str(tmp_path / "moved"))
    assert [label for _, y in elsewhere.load_data("test", 4).as_numpy_iterator() for label in y] == labels
    for split in ("train", "test"):
        os.rename(tmp_path / "moved" / split / "bright", tmp_path / "moved" / split / "light")
    with pytest.raises(ValueError, match="the network does not know: 'light' .*lacks 'bright'"):
        dataclasses.replace(run, dataset=str(tmp_path / "moved")).load_data("test")


def test_a_file_of_weights_is_no_run(tmp_path):
    path = tmp_path / "model.safetensors"
    models.pytorch.save(models.WideResNet(10, 1), path)
    with pytest.raises(ValueError, match="is a file of PyTorch: keras-sat convert --from="):
        run_lib.load(path)
