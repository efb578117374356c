import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import evaluation, provenance
from keras_sat.attacks import PGD, L2Ball, LinfBall, Square, Transfer
from keras_sat.evaluation.stages import stage_of, stages_of

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


def test_it_sees_what_layers_of_the_surrogate_computed_since_the_last_call(tiny_model, images, labels):
    """A Normalization layer computes constants from its weights, which a traced function keeps."""
    normalization = keras.layers.Normalization()
    normalization.adapt(tf.cast(images, tf.float32))
    surrogate = keras.Sequential([keras.Input((8, 8, 3)), normalization, *tiny_model(seed=1).layers[1:]])
    attack = Transfer(surrogate, PGD(LinfBall(8), steps=2, random_start=False))
    changed = tf.cast(images, tf.float32) * 0.01 + 200
    expected = []
    for _ in range(2):
        stage = stage_of(attack, tiny_model())
        expected.append(attack.attack.for_transfer()(lambda x: surrogate(x), images, labels))
        for adversarial in (stage.attack(stage.logits_fn, images, labels), attack(tiny_model(), images, labels)):
            np.testing.assert_allclose(adversarial, expected[-1], atol=1e-3)
        normalization.adapt(changed)
    assert np.abs(expected[0] - expected[1]).max() > 1


def test_a_low_precision_copy_of_the_network_does_not_concern_it(tiny_model):
    network, low, attack = tiny_model(), tiny_model(), Transfer(tiny_model(seed=1), PGD_3)
    assert [stage.name for stage in stages_of(attack, network, low)] == [str(attack)]
    assert [stage.logits_fn for stage in stages_of(PGD_3, network, low)] == [low, network]


def test_an_evaluation_refuses_before_it_begins(tiny_model, images, labels, tmp_path):
    small = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    attacks = {"first": PGD_3, "second": Transfer(small, PGD_3)}
    with pytest.raises(ValueError, match=r"^The surrogate takes images of shape \(4, 4, 3\). Received: \(8, 8, 3\)$"):
        evaluation.evaluate(tiny_model(), (images, labels), attacks, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


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
