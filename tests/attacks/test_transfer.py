import json

import numpy as np
import pytest
import tensorflow as tf

from keras_sat import evaluation, provenance
from keras_sat.attacks import PGD, L2Ball, LinfBall, Square, Transfer

PGD_3 = PGD(LinfBall(8), steps=3, keep="first")


def test_images_are_those_made_for_the_surrogate(tiny_model, images, labels):
    network, surrogate = tiny_model(), tiny_model(seed=1)
    attack = Transfer(surrogate, PGD_3)
    expected = PGD_3.for_transfer()(surrogate, images, labels, seed=4)
    np.testing.assert_array_equal(attack(network, images, labels, seed=4), expected)
    assert str(attack) == f"PGD-3 from {surrogate.name}"
    assert not attack.needs_gradients
    assert attack.with_radius(2).ball == attack.with_radius(2).attack.ball == LinfBall(2)


def test_it_is_a_row_of_a_report(tiny_model, images, tmp_path):
    """A network whose own gradients are useless: the transferred images break what PGD does not."""
    model = tiny_model()
    labels = np.argmax(model(images), -1)

    @tf.custom_gradient
    def hidden(x):
        return tf.identity(x), tf.zeros_like

    attack = PGD(LinfBall(60), steps=10, random_start=False)
    attacks = {"PGD": attack, "transfer": Transfer(model, attack)}
    report = evaluation.evaluate(lambda x: model(hidden(tf.cast(x, tf.float32))), (images, labels), attacks)
    assert report["PGD"].accuracy == 1
    assert report["transfer"].accuracy < 1
    report.to_json(tmp_path / "report.json")
    settings = json.loads((tmp_path / "report.json").read_text())["results"][2]["settings"]
    sha256 = provenance.weights_sha256(model)
    assert (settings["attack"], settings["surrogate"]) == ("PGD", {"model": model.name, "weights_sha256": sha256})


def test_refusals(tiny_model, images, labels):
    model = tiny_model()
    with pytest.raises(ValueError, match="attack must be an attack"):
        Transfer(model, "pgd")
    with pytest.raises(ValueError, match="surrogate must be a network"):
        Transfer("ResNet8", PGD_3)
    with pytest.raises(ValueError, match="The surrogate has 2 classes, the network 4"):
        Transfer(lambda x: model(x)[:, :2], PGD_3)(model, images, labels % 2)
    with pytest.raises(ValueError, match="softmax"):
        Transfer(lambda x: tf.nn.softmax(model(x)), Square(L2Ball(8)))(model, images, labels)
