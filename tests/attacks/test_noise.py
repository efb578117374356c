"""Gaussian noise in place of an attack, in evaluation and in training."""

import keras
import numpy as np
import pytest

from keras_sat.attacks import PGD, GaussianNoise, LinfBall
from keras_sat.evaluation import evaluate
from keras_sat.training import TRADES, AdversarialModel, Free, GradAlign

NOISE = GaussianNoise(60.0)


def test_it_is_normal_and_not_clipped(shared_model, images, labels):
    noise = NOISE(shared_model, images, labels, seed=3).numpy() - images
    assert noise.std() == pytest.approx(60, rel=0.1)
    assert noise.mean() == pytest.approx(0, abs=10)
    assert (images + noise).min() < 0 < 255 < (images + noise).max()
    seeds = np.stack([np.arange(8), np.full(8, 5)], axis=1).astype(np.int32)
    each = NOISE(shared_model, images, labels, seed=seeds).numpy()
    np.testing.assert_array_equal(NOISE(shared_model, images[2:5], labels[2:5], seed=seeds[2:5]), each[2:5])
    assert len(np.unique((each - images)[:, 0, 0, 0])) == 8


def test_evaluate_counts_all_images(shared_model, images, labels):
    report = evaluate(shared_model, (images, labels), [NOISE], progress=False)
    row = report["noise-60"]
    assert row.settings == {"attack": "GaussianNoise", "sigma": 60.0, "bounds": (0.0, 255.0)}
    assert "clean" not in report.examples["attacks"]["noise-60"]["broken_by"]
    assert row.correct == sum(by == "" for by in report.examples["attacks"]["noise-60"]["broken_by"])


def compiled(model, attack, **options):
    trainer = AdversarialModel(model, attack, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], jit_compile=False)
    return trainer


def test_training_takes_keras_own_step_on_noisy_images(tiny_model, images, labels):
    model, reference = tiny_model(), tiny_model()
    trainer = compiled(model, NOISE)
    noisy = NOISE(model, images, labels, seed=trainer._replica_seed(0))
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    assert logs.keys() == {"loss", "noisy_accuracy"}
    reference.compile(keras.optimizers.SGD(0.1), trainer.loss, jit_compile=False)
    reference.train_on_batch(noisy, labels)
    for ours, expected in zip(model.get_weights(), reference.get_weights()):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_validation_measures_the_accuracy_under_noise(tiny_model, images):
    model = tiny_model()
    labels = np.argmax(model(images), -1)
    labels[:2] = (labels[:2] + 1) % 4  # wrong without noise; noise may lead to the label
    slight = compiled(model, GaussianNoise(0.001)).evaluate(images, labels, verbose=0, return_dict=True)
    assert slight["robust_accuracy"] == slight["accuracy"] == pytest.approx(6 / 8)
    strong = compiled(model, GaussianNoise(5000.0)).evaluate(images, labels, verbose=0, return_dict=True)
    assert strong["accuracy"] == pytest.approx(6 / 8)
    assert strong["robust_accuracy"] != pytest.approx(6 / 8)


def test_refusals(tiny_model, images, labels):
    for sigma in (0, -1.0, float("nan"), "8"):
        with pytest.raises(ValueError, match="sigma must be a positive number"):
            GaussianNoise(sigma)
    with pytest.raises(ValueError, match="bounds must be two numbers"):
        GaussianNoise(1.0, bounds=(1, 0))
    with pytest.raises(ValueError, match="gradient_alignment needs an attack with a ball"):
        AdversarialModel(tiny_model(), NOISE, gradient_alignment=GradAlign())
    with pytest.raises(ValueError, match="which must be PGD"):
        AdversarialModel(tiny_model(), NOISE, objective=Free())
    with pytest.raises(ValueError, match="needs an attack whose loss it can choose"):
        AdversarialModel(tiny_model(), NOISE, objective=TRADES())
    with pytest.raises(ValueError, match="must be an attack"):
        AdversarialModel(tiny_model(), "noise")
    with pytest.raises(ValueError, match="The images reach from 0 to 1"):
        compiled(tiny_model(), NOISE).fit(images / 255.0, labels, verbose=0)
    with pytest.raises(ValueError, match="The images reach from 0 to 1"):
        compiled(tiny_model(), PGD(LinfBall(8))).fit(images / 255.0, labels, verbose=0)
