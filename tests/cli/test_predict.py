"""The command `keras-sat predict`."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

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
    with pytest.warns(UserWarning, match="does not say how its images are made.*: crop stretch is taken"):
        assert inside("predict", tmp_path / "saved", photos / "test" / "dark" / "0.png") == 0
    given = (f"--dataset={photos}", "--epsilon=4", "--attack=fgsm", f"--output={tmp_path / 'out'}")
    with pytest.warns(UserWarning) as said:
        assert inside("evaluate", tmp_path / "saved", *given) == 0
    lines = "\n".join(str(each.message) for each in said)
    assert "does not name its classes (assets/labels.txt): those of" in lines
    assert "crop stretch is taken" in lines


def test_predict_names_what_cannot_be_read(inside, photos, of_photos, tmp_path, capsys):
    assert inside("predict", of_photos, photos / "test" / "dark") == 0
    assert re.match(r".*dark/0.png +(dark|bright) \d+.\d%$", capsys.readouterr().out.splitlines()[0])
    (tmp_path / "page.jpg").write_text("<html>")
    for path, message in ((tmp_path / "page.jpg", "a web page"), (tmp_path / "none.png", "no such file")):
        with pytest.raises(ValueError, match=f"{path} cannot be read: {message}"):
            inside("predict", of_photos, path)
