import os

import keras
import numpy as np
import pytest

from keras_sat import deployed
from keras_sat.attacks import PGD, LinfBall, Square
from keras_sat.evaluation import evaluate
from keras_sat.export import export_litert, export_saved_model
from keras_sat.preprocessing import Preprocessing

pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def calibration():
    return np.random.default_rng(2).integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)


def test_int8(tiny_model, images, labels, calibration, tmp_path):
    model = tiny_model()
    export_saved_model(model, tmp_path / "saved", signatures=[])
    export_litert(tmp_path / "saved", tmp_path / "small.tflite", calibration)
    small = deployed.load(str(tmp_path / "small.tflite"))
    logits = model(images).numpy()
    for number in (8, 3):
        difference = np.abs(small(images[:number]) - logits[:number])
        assert 0 < difference.max() < 0.1 * np.ptp(logits)
    labels = np.argmax(logits, -1)
    report = evaluate(small, (images, labels), Square(LinfBall(20), queries=50), progress=False)
    assert report["clean"].accuracy >= 0.5
    assert report.results[1].correct < report["clean"].correct
    with pytest.raises(ValueError, match="no gradient with respect to the images"):
        PGD(LinfBall(4))(small, images, labels)


def test_an_int8_network_that_answers_otherwise_is_refused(calibration, tmp_path):
    """The activations are about ten thousand: a step of int8 is larger than all differences between them."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dense(4)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    x = keras.layers.ReLU()(keras.layers.Rescaling(1.0, 1e4)(x))
    model = keras.Model(inputs, keras.layers.Rescaling(1.0, -1e4)(x))
    export_saved_model(model, tmp_path / "saved", signatures=[])
    with pytest.raises(ValueError, match="in int8 is too inaccurate.*calibration"):
        export_litert(tmp_path / "saved", tmp_path / "small.tflite", calibration)
    assert os.listdir(tmp_path) == ["saved"]


def test_the_file_says_its_classes_and_how_its_images_are_made(tiny_model, calibration, tmp_path):
    how = Preprocessing(8, 8, 3, "padded")
    export_saved_model(tiny_model(), tmp_path / "saved", labels=["a", "b c", "d", "é"], preprocessing=how)
    export_litert(tmp_path / "saved", tmp_path / "small.tflite", calibration)
    small = deployed.load(tmp_path / "small.tflite")
    assert (small.classes, small.preprocessing) == (["a", "b c", "d", "é"], how)


def test_bfloat16_is_refused(tiny_model, calibration, tmp_path):
    export_saved_model(tiny_model(), tmp_path / "low", precision="bfloat16")
    with pytest.raises(ValueError, match="computes in bfloat16.*export it in float32"):
        export_litert(tmp_path / "low", tmp_path / "small.tflite", calibration)
    assert os.listdir(tmp_path) == ["low"]


def test_refusals_write_nothing(tiny_model, calibration, tmp_path):
    export_saved_model(tiny_model(), tmp_path / "saved", signatures=[])
    (tmp_path / "there.tflite").write_bytes(b"something")
    for source, to, images, message in (
        ("saved", "small.onnx", calibration, "ends in .tflite"),
        ("saved", "there.tflite", calibration, "exists"),
        ("none", "small.tflite", calibration, "is not a SavedModel"),
        ("saved", "small.tflite", calibration[0], "must have shape"),
        ("saved", "small.tflite", np.zeros((1, 9, 9, 3)), "cannot be converted"),
    ):
        with pytest.raises(ValueError, match=message):
            export_litert(tmp_path / source, tmp_path / to, images)
    assert sorted(os.listdir(tmp_path)) == ["saved", "there.tflite"]
    with pytest.raises(ValueError, match="is not a LiteRT file"):
        deployed.load(str(tmp_path / "there.tflite"))
    with pytest.raises(ValueError, match="There is no"):
        deployed.load(str(tmp_path / "none.tflite"))
