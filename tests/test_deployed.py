import shutil

import numpy as np
import pytest

from keras_sat import deployed, export, models
from keras_sat.attacks import PGD, L2Ball, LinfBall, Square
from keras_sat.evaluation import audit, evaluate


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    model, path = tiny_model(), str(tmp_path_factory.mktemp("exported") / "model")
    export.export_saved_model(model, path)
    images = np.random.default_rng(7).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    return model, path, (images, np.argmax(model(images), -1))


def test_a_folder_in_place_of_a_model_through_gradients_and_through_outputs(exported):
    model, path, data = exported
    attacks = [PGD(LinfBall(4), steps=5), Square(LinfBall(4), queries=40)]
    ours, deployed_ = (evaluate(subject, data, attacks, progress=False) for subject in (model, path))
    assert [row.correct for row in deployed_.results] == [row.correct for row in ours.results]
    assert deployed_["PGD-5"].correct < 40
    assert deployed_["Square"].correct < 40
    assert deployed_.context["model"] == path
    assert audit(path, data, LinfBall(4), steps=5, queries=20)["softmax in the output"].outcome == "pass"


def test_integers_have_no_gradient_and_square_needs_none(exported):
    _, path, data = exported
    loaded = deployed.load(path, "serving_uint8")
    with pytest.raises((ValueError, LookupError), match="no gradient"):
        evaluate(loaded, data, PGD(LinfBall(4), steps=1), progress=False)
    assert evaluate(loaded, data, Square(LinfBall(8), queries=100), progress=False)["Square"].correct < 40


def test_integers_are_rounded_and_not_wrapped(exported):
    model, path, (images, labels) = exported
    loaded = deployed.load(path, "serving_uint8")
    points = np.float32(images) + np.random.default_rng(0).uniform(-40, 40, images.shape)
    np.testing.assert_allclose(loaded(points), model(np.clip(np.round(points), 0, 255)), atol=1e-4)
    for ball in (LinfBall(2.5), L2Ball(4)):
        with pytest.warns(UserWarning, match="takes whole pixel values: adversarial images are rounded"):
            evaluate(loaded, (images, labels), Square(ball, queries=2), progress=False)


def test_probabilities_alone_are_enough(exported):
    model, path, data = exported
    loaded = deployed.load(path, output="probabilities")
    difference = np.array(loaded(data[0])) - np.array(model(data[0]))
    np.testing.assert_allclose(difference, difference[:, :1] * np.ones(4), atol=1e-4)  # logits but for a constant
    assert evaluate(loaded, data, PGD(LinfBall(4), steps=5), progress=False)["PGD-5"].correct < 40


def test_the_image_size_is_known_where_it_is_fixed(exported, tmp_path):
    pytest.importorskip("ai_edge_litert")
    _, path, (images, labels) = exported
    small = str(tmp_path / "small.tflite")
    export.export_litert(path, small, images)
    larger = (np.repeat(np.repeat(images, 2, 1), 2, 2), labels)
    for what in (path, small):
        assert deployed.load(what).image_size == 8
        with pytest.raises(ValueError, match="takes images of 8 x 8 pixels. Received: 16 x 16"):
            evaluate(what, larger, Square(LinfBall(4), queries=2), progress=False)
    free = models.ResNet8(input_shape=(None, None, 3), classes=4)
    export.export_saved_model(free, tmp_path / "free", signatures=[])
    assert deployed.load(str(tmp_path / "free")).image_size is None


def test_names_of_classes_that_others_wrote(exported, tmp_path):
    shutil.copytree(exported[1], path := tmp_path / "saved")
    labels = path / "assets" / "labels.txt"
    labels.write_text("crane\ndog\ncrane\nshoe\n")
    assert deployed.load(path).classes == ["crane (0)", "dog", "crane (2)", "shoe"]
    labels.write_text("background\ncrane\ndog\nhat\nshoe\n")
    with pytest.raises(ValueError, match=r"5 class names \(labels.txt\) for 4 classes"):
        deployed.load(path)


def test_refusals(exported, tmp_path):
    _, path, _ = exported
    with pytest.raises(ValueError, match=r"no signature 'serve'; it has .*'serving_default', 'serving_uint8'"):
        deployed.load(path, "serve")
    with pytest.raises(ValueError, match="no output 'scores'; it has"):
        deployed.load(path, output="scores")
    with pytest.raises(ValueError, match="is not a SavedModel"):
        deployed.load(str(tmp_path))
