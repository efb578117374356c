import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import models
from keras_sat.attacks import PGD, LinfBall
from keras_sat.export import export_saved_model
from keras_sat.training import AdversarialModel

# TensorFlow itself imports keras where it can: here it cannot.
WITHOUT_KERAS = """
import sys
sys.modules.update({"keras": None, "keras_sat": None})
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
images = np.load(sys.argv[2])
for name, x in (("serving_default", images), ("serving_default", images.astype(np.float32)), ("serving_uint8", images)):
    outputs = loaded.signatures[name](images=x)
    np.testing.assert_allclose(outputs["logits"], np.load(sys.argv[3]), atol=1e-5)
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(outputs["logits"]), atol=1e-6)
"""


@pytest.mark.parametrize("activation", ["silu", "gelu", "smooth_relu", {"name": "relu", "smooth_backward": "both"}])
def test_a_process_without_keras_agrees(activation, tmp_path):
    model = models.ResNet8(input_shape=(28, 28, 1), classes=10, activation=activation)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)
    export_saved_model(model, tmp_path / "saved")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "logits.npy", model(images))
    arguments = [tmp_path / "saved", tmp_path / "images.npy", tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-c", WITHOUT_KERAS, *map(str, arguments)], check=True, env=os.environ)


def test_any_image_size_and_gradients(tmp_path, images):
    model = models.ResNet8(input_shape=(None, None, 3), classes=4)
    export_saved_model(model, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    for size in (8, 13):
        x = tf.random.uniform((2, size, size, 3), 0, 255)
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = loaded.signatures["serving_default"](images=x)["logits"]
        np.testing.assert_allclose(logits, model(x), atol=1e-5)
        assert np.any(tape.gradient(logits, x) != 0)


def test_an_adversarial_model_exports_its_classifier(tiny_model, images, tmp_path):
    model = tiny_model()
    export_saved_model(AdversarialModel(model, PGD(LinfBall(4))), tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    outputs = loaded.signatures["serving_uint8"](images=tf.constant(images))
    np.testing.assert_allclose(outputs["logits"], model(images), atol=1e-5)


def test_refusals_write_nothing(tiny_model, tmp_path):
    export_saved_model(tiny_model(), tmp_path / "saved")
    before = sorted(os.listdir(tmp_path / "saved"))
    with pytest.raises(ValueError, match="exists"):
        export_saved_model(tiny_model(), tmp_path / "saved")
    softmax = keras.Sequential([tiny_model(), keras.layers.Softmax()])
    softmax.build((None, 8, 8, 3))
    for bad, message in ((softmax, "probabilities"), (keras.Sequential([keras.layers.Dense(2)]), "built")):
        with pytest.raises(ValueError, match=message):
            export_saved_model(bad, tmp_path / "other")
    assert os.listdir(tmp_path) == ["saved"]
    assert sorted(os.listdir(tmp_path / "saved")) == before
