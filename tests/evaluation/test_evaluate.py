import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import FGSM, PGD, L2Ball, LinfBall
from keras_sat.evaluation import evaluate


def data(model, images, wrong=2):
    labels = np.argmax(model(images), -1)
    labels[:wrong] = (labels[:wrong] + 1) % 4
    return images, labels


def test_counts_are_what_one_counts_by_hand(tiny_model, images):
    model = tiny_model()
    images, labels = data(model, images)
    attack = FGSM(LinfBall(6))
    report = evaluate(model, (images, labels), attack, batch_size=3, progress=False)
    adversarial = attack(model, images, labels)
    by_hand = (np.argmax(model(images), -1) == labels) & (np.argmax(model(adversarial), -1) == labels)
    assert (report["clean"].n, report["clean"].correct) == (8, 6)
    assert (report["PGD-1"].n, report["PGD-1"].correct) == (8, by_hand.sum())
    assert 0 < by_hand.sum() < 6


def test_several_attacks_and_all_that_is_needed_to_repeat_them(tiny_model, images, capsys):
    model = tiny_model()
    attacks = {"strong": PGD(LinfBall(60), steps=10), "L2": PGD(L2Ball(5), steps=2), "none": PGD(LinfBall(0), steps=1)}
    report = evaluate(model, data(model, images), attacks, seed=3, batch_size=4)
    assert [result.name for result in report.results] == ["clean", "strong", "L2", "none"]
    assert report["none"].correct == report["clean"].correct == 6
    assert report["strong"].correct < 6
    assert report["strong"].settings["step_size"] == 6
    assert report["L2"].settings["norm"] == "l2"
    assert report.context["seed"] == 3
    assert report.context["versions"]["tensorflow"] == tf.__version__
    assert report.context["versions"]["keras_sat"] == keras_sat.__version__
    assert report["strong"].seconds > 0
    assert "strong" in capsys.readouterr().out  # the progress bar


def test_same_seed_same_figures(tiny_model):
    model = tiny_model()
    images = np.random.default_rng(5).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    attack = PGD(LinfBall(3), steps=1, step_size=1e-6)  # noise alone decides
    counts = [
        evaluate(model, data(model, images), attack, seed=s, progress=False)["PGD-1"].correct for s in (0, 0, 1, 2)
    ]
    assert counts[0] == counts[1]
    assert len(set(counts)) > 1


def test_datasets_functions_and_models_with_nothing_right(tiny_model, images):
    model = tiny_model()
    dataset = tf.data.Dataset.from_tensor_slices(data(model, images, wrong=8)).batch(3)
    report = evaluate(lambda x: model(x), dataset, [FGSM(LinfBall(4))], progress=False)
    assert (report["clean"].correct, report["PGD-1"].correct, report["PGD-1"].n) == (0, 0, 8)


def test_one_hot_labels_and_sample_weights(tiny_model, images):
    model = tiny_model()
    x, y = data(model, images)
    attack = FGSM(LinfBall(6))
    plain = evaluate(model, (x, y), attack, progress=False)
    one_hot = evaluate(model, (x, np.eye(4)[y], np.ones(8)), attack, progress=False)
    assert [result.correct for result in plain.results] == [result.correct for result in one_hot.results]


def test_refusals(tiny_model, images):
    model = tiny_model()
    attack = PGD(LinfBall(4), steps=1)
    with pytest.raises(ValueError, match="pass a dict"):
        evaluate(model, data(model, images), [attack, PGD(LinfBall(8), steps=1)], progress=False)
    with pytest.raises(ValueError, match="no images"):
        evaluate(model, (images[:0], np.zeros(0, int)), attack, progress=False)
    with pytest.raises(ValueError, match='"clean"'):
        evaluate(model, data(model, images), {"clean": attack}, progress=False)
    with pytest.raises(ValueError, match="softmax hides the gradient"):
        evaluate(lambda x: tf.nn.softmax(model(x)), data(model, images), attack, progress=False)
