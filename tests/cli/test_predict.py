"""The command `keras-sat predict`."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_sat import export
from keras_sat import run as run_lib


def test_the_pixels_of_a_folder_are_the_same_everywhere(inside, photos, of_photos, exported, tmp_path, capsys):
    """evaluate, serving_bytes, predict and the int8 file get the same pixels, and return the same classes."""
    saved, small = exported
    assert inside("evaluate", of_photos, "--attack=fgsm") == 0
    examples = json.loads((of_photos / "report.json").read_text())["examples"]
    run, model = run_lib.load(of_photos)
    paths = [path for path, _ in run.source.examples("test")]
    images = tf.concat([x for x, _ in run.load_data("test", 5)], 0)
    served = tf.saved_model.load(saved).signatures["serving_bytes"]
    outputs = served(image_bytes=tf.stack([tf.io.read_file(path) for path in paths]))
    np.testing.assert_allclose(outputs["logits"], model(images), atol=1e-4)
    labels = [label for _, label in run.source.examples("test")]
    np.testing.assert_array_equal(outputs["classes"] == labels, examples["clean"])

    for subject, tolerance in ((of_photos, 1e-4), (saved, 1e-4), (small, 0.2)):
        capsys.readouterr()
        assert inside("predict", subject, *paths, "--top=2", "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["image"] for row in rows] == paths
        probabilities = [[row["classes"]["bright"], row["classes"]["dark"]] for row in rows]
        np.testing.assert_allclose(probabilities, outputs["probabilities"], atol=tolerance)
    given = (f"--dataset={photos}", "--epsilon=4", f"--output={tmp_path}")
    assert inside("evaluate", saved, "--attack=fgsm", *given) == 0
    card = json.loads((saved / "assets" / "robustness_card.json").read_text())
    assert card["training"]["dataset"] == "photos"  # no folder of this machine
    assert json.loads((tmp_path / "report.json").read_text())["examples"]["clean"] == examples["clean"]


def test_an_export_of_another_tool_is_taken_with_a_word(inside, photos, tmp_path, capsys):
    model = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.export(tmp_path / "saved", verbose=False)
    with pytest.warns(UserWarning, match="does not describe its preprocessing.*: crop stretch is used"):
        assert inside("predict", tmp_path / "saved", photos / "test" / "dark" / "0.png") == 0
    given = (f"--dataset={photos}", "--epsilon=4", "--attack=fgsm", f"--output={tmp_path / 'out'}")
    with pytest.warns(UserWarning) as said:
        assert inside("evaluate", tmp_path / "saved", *given) == 0
    lines = "\n".join(str(each.message) for each in said)
    assert "does not name its classes (assets/labels.txt): those of" in lines
    assert "crop stretch is used" in lines


@pytest.mark.filterwarnings("ignore:.*does not describe its preprocessing")
def test_an_export_that_returns_probabilities(photos, tmp_path):
    image = photos / "test" / "dark" / "0.png"
    for head in (keras.layers.Dense(2, "softmax"), keras.layers.Dense(1, "sigmoid")):
        layers = [keras.Input((16, 16, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), head]
        model = keras.Sequential(layers)
        model.export(path := tmp_path / head.activation.__name__, verbose=False)
        predict = run_lib.open_predictor(path)
        *_, last = model(tf.cast(predict.pixels(image)[None], tf.float32)).numpy()[0]
        assert predict(image)["1"] == pytest.approx(last, abs=1e-5)
    layers = [keras.Input((16, 16, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(3, "sigmoid")]).export(tmp_path / "several", verbose=False)
    with pytest.raises(ValueError, match="several labels an image: one was expected"):
        run_lib.open_predictor(tmp_path / "several")


@pytest.mark.parametrize("top", ["0", "-1", "a"])
def test_a_number_of_classes_that_there_is_not(inside, top, capsys):
    with pytest.raises(SystemExit):
        inside("predict", "run", "image.png", f"--top={top}")
    assert f"an integer >= 1 was expected. Received: '{top}'" in capsys.readouterr().err


def test_predict_names_what_cannot_be_read(inside, photos, of_photos, tmp_path, capsys):
    assert inside("predict", of_photos, photos / "test" / "dark") == 0
    assert re.match(r".*dark/0.png +(dark|bright) \d+.\d%$", capsys.readouterr().out.splitlines()[0])
    (tmp_path / "page.jpg").write_text("<html>")
    for path, message in ((tmp_path / "page.jpg", "a web page"), (tmp_path / "none.png", "no such file")):
        with pytest.raises(ValueError, match=f"{path} cannot be read: {message}"):
            inside("predict", of_photos, path)


def test_attack_shows_what_it_makes_of_each_image(inside, photos, of_photos, exported, tmp_path, capsys):
    """A run and its export say the same, and the files that are written are what the network is said to see in them."""
    paths = [str(photos / "test" / name / "0.png") for name in ("bright", "dark")]
    flags = ("--attack=fgsm,pgd-5", "--epsilon=120", "--json", "--top=2")
    assert inside("predict", of_photos, *paths, *flags, f"--output={tmp_path / 'out'}") == 0
    rows = json.loads(capsys.readouterr().out)
    assert inside("predict", exported[0], *paths, *flags) == 0
    of_export = json.loads(capsys.readouterr().out)
    for row, other, name in zip(rows, of_export, ("bright", "dark")):
        own = next(iter(row["classes"]))
        for attack, attacked in row["attacked"].items():
            assert (attacked["norm"], attacked["epsilon"]) == ("linf", 120)
            assert next(iter(attacked["classes"])) != own
            assert attacked["file"] == str(tmp_path / "out" / name / f"0.{attack.lower()}.adversarial.png")
            clean, written = (
                np.asarray(Image.open(path), int) for path in (tmp_path / "out" / name / "0.png", attacked["file"])
            )
            assert 0 < np.abs(written - clean).max() <= 120
            assert inside("predict", of_photos, attacked["file"], "--json", "--top=2") == 0
            assert json.loads(capsys.readouterr().out)[0]["classes"] == pytest.approx(attacked["classes_of_file"])
            assert other["attacked"][attack]["classes"] == pytest.approx(attacked["classes"], abs=0.02)


def test_the_table_of_an_attack_and_the_epsilon_of_the_training(inside, photos, of_photos, exported, capsys):
    for path in (of_photos, exported[0]):
        assert inside("predict", path, photos / "test" / "dark" / "0.png", "--attack=pgd-5") == 0
        head, row, _, note = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"image +clean +under PGD-5", head)
        assert re.fullmatch(r".*0.png +(dark|bright) \d+.\d% +(dark|bright) \d+.\d%", row)
        assert note == "Each attack is untargeted, away from the class in the column clean, linf epsilon 4 of 255."


def test_what_an_attack_needs_and_what_would_be_overwritten_is_refused(inside, photos, of_photos, exported, tmp_path):
    image = photos / "test" / "dark" / "0.png"
    (tmp_path / "0.adversarial.png").write_text("mine")
    (tmp_path / "twice").mkdir()
    for name in ("a.png", "a.bmp"):
        Image.open(image).save(tmp_path / "twice" / name)
    model = keras.Sequential([keras.Input((16, 18, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    export.export_saved_model(model, tmp_path / "unnamed", signatures=[])
    for arguments, message in (
        (
            (exported[1], image, "--attack=pgd-5", "--epsilon=4"),
            "has no gradients, which PGD-5 needs: use --attack=square",
        ),
        ((of_photos, image, "--attack=pgd"), "attack must be one of"),
        ((of_photos, image, "--attack=pgd-5", "--norm=l2"), "is for --norm=linf: say --epsilon for --norm=l2 too"),
        ((of_photos, image, f"--output={tmp_path}"), "--output goes with --attack"),
        ((of_photos, image, "--epsilon=4"), "--epsilon goes with --attack"),
        ((tmp_path / "unnamed", image, "--attack=fgsm"), "does not say an epsilon: say --epsilon"),
        (
            (of_photos, image, "--attack=fgsm", f"--output={tmp_path}"),
            "0.adversarial.png exists: choose another folder",
        ),
        ((of_photos, tmp_path / "twice", "--attack=fgsm", f"--output={tmp_path / 'out'}"), "would both be written to"),
    ):
        with pytest.raises(ValueError, match=message):
            inside("predict", *arguments)
    assert (tmp_path / "0.adversarial.png").read_text() == "mine"
    assert not (tmp_path / "0.png").exists()
    assert not (tmp_path / "out").exists()
