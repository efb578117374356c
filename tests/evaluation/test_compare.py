import json
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat.attacks import FGSM, PGD, LinfBall, Square
from keras_sat.evaluation import compare
from keras_sat.evaluation._compare import ORIGINAL, WORST
from keras_sat.export import export_litert, export_saved_model

ATTACK = PGD(LinfBall(2), steps=3)


@pytest.fixture
def data(tiny_model):
    """Images, labelled with the predictions of the model of seed 0."""
    images = np.random.default_rng(3).integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    return images, np.argmax(tiny_model()(images), -1)


def test_an_export_is_as_robust_as_its_original(tiny_model, data, tmp_path):
    model = tiny_model()
    export_saved_model(model, tmp_path / "saved", signatures=[])
    comparison = compare(model, tmp_path / "saved", data, ATTACK, batch_size=25)
    assert set(comparison.results) == {ORIGINAL, "saved"}
    one, other = comparison.results.values()
    assert one["clean"].accuracy == 1
    assert 0.1 < one[ORIGINAL].accuracy < 0.9
    assert list(one) == ["clean", ORIGINAL, "saved", WORST]
    for column in one:
        assert abs(one[column].correct - other[column].correct) <= 1
    assert comparison.warnings == []
    assert (one["clean"].n, comparison.context["attacks"]) == (60, {str(ATTACK): ATTACK.settings()})
    comparison.to_json(tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text())["results"]["saved"]["clean"]["n"] == 60


def test_attacks_are_carried_over(tiny_model, data):
    """Each cell of the table is compared with its definition."""
    networks = {ORIGINAL: tiny_model(), "other": tiny_model(seed=1)}
    images, labels = data
    attacks = [FGSM(LinfBall(8)), ATTACK]
    with pytest.warns(UserWarning, match="other is less"):
        comparison = compare(networks[ORIGINAL], {"other": networks["other"]}, data, attacks, batch_size=60)
    x, y = tf.cast(images, tf.float32), tf.cast(labels, tf.int32)
    for source, network in networks.items():
        adversarial = [attack(network, x, y, 0) for attack in attacks]
        for target, judge in networks.items():
            right = [np.argmax(judge(shown), -1) == labels for shown in (x, *adversarial)]
            cell = comparison.results[target][source]
            assert abs(cell.correct - np.sum(np.all(right, axis=0))) <= 2  # because the random starts differ
    for rows in comparison.results.values():
        assert rows[WORST].correct <= min(rows[ORIGINAL].correct, rows["other"].correct)


def test_a_loss_of_robustness_is_said(tiny_model, data):
    model = tiny_model()
    images = data[0] // 8 * 8
    data = (images, np.argmax(model(images), -1))

    def brittle(images):
        """A network with the same predictions for these images, on which a perturbation has twenty times the effect."""
        images = tf.cast(images, tf.float32)
        nearest = tf.stop_gradient(tf.round(images / 8) * 8)
        return model(nearest + 20 * (images - nearest))

    with pytest.warns(UserWarning, match="brittle is less robust than the original") as warned:
        comparison = compare(model, {"brittle": brittle}, data, PGD(LinfBall(1), steps=3))
    assert [str(one.message) for one in warned if one.category is UserWarning] == comparison.warnings
    assert len(comparison.warnings) == 1
    assert comparison.results["brittle"]["clean"].accuracy == 1
    assert f"Warning: {comparison.warnings[0]}" in comparison.table()


def test_without_gradients(tiny_model, data, tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = tiny_model()
    export_saved_model(model, tmp_path / "saved", signatures=[])
    export_litert(tmp_path / "saved", tmp_path / "int8.tflite", data[0])
    exported = {"int8": tmp_path / "int8.tflite"}
    comparison = compare(model, exported, data, ATTACK)
    assert list(comparison.results["int8"]) == ["clean", ORIGINAL, WORST]
    assert comparison.results["int8"][ORIGINAL].accuracy < comparison.results["int8"]["clean"].accuracy
    comparison = compare(model, exported, data, Square(LinfBall(4), queries=20))
    assert list(comparison.results["int8"]) == ["clean", ORIGINAL, "int8", WORST]
    header, *rows = comparison.table().splitlines()
    assert "worst of all" in " ".join(rows)  # the explanation of the columns
    assert re.split("  +", header) == ["network", "clean", "from original", "from int8", "worst of all"]


def test_refusals(tiny_model, data, tmp_path):
    model = tiny_model()
    empty = (data[0][:0], data[1][:0])
    for exported, dataset, attacks, message in (
        ({}, data, ATTACK, "exported must be a path"),
        ({"original": model}, data, ATTACK, "other than 'original'"),
        (tmp_path / "none", data, ATTACK, "is not a SavedModel"),
        ({"other": model}, data, [], "at least one attack"),
        ({"other": model}, data, "pgd-50", "An attack is a configuration"),
        ({"other": model}, empty, ATTACK, "no images to compare on"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(model, exported, dataset, attacks)


def test_what_is_not_finite_counts_as_misclassified_and_is_said(tiny_model, images):
    model = tiny_model()
    labels = np.argmax(model(images), -1)
    broken = keras.Sequential([model, keras.layers.Lambda(lambda z: z * float("nan"))])
    broken.build((None, 8, 8, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        comparison = compare(model, {"broken": broken}, (images, labels), PGD(LinfBall(2), steps=1))
    assert any("broken has a logit that is NaN or infinite for 24 of" in str(one.message) for one in caught)
    assert comparison.results["broken"]["clean"].correct == 0
    with pytest.raises(ValueError, match="is targeted"):
        compare(model, {"broken": broken}, (images, labels), PGD(LinfBall(2), targeted=True))
